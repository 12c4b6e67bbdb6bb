"""The recipes for workers: their commands are ones that this package takes, and each says first what was not run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from prefect_imagegen.cli.main import cli

FOLDER = Path(__file__).parents[2] / "deployments"
RECIPES = ["engines/README.md", "gpu_worker/Containerfile", "gpu_worker/compose.yaml", "ray_serve/README.md"]


def options_of(command: str) -> set[str]:
    """The options of one of our commands."""
    return {option for one in cli.commands[command].params for option in one.opts}


def commands_in(text: str) -> list[list[str]]:
    """Every `prefect-imagegen` command of a text, continued lines joined, comment signs left out."""
    joined = re.sub(r"\\\n#?\s*", " ", text)
    return [shlex.split(line) for line in re.findall(r"prefect-imagegen ((?:generate|serve) [^\n`]*)", joined)]


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_line_says_what_was_not_run(name: str) -> None:
    """Who reads a recipe learns first whether anybody has tried it."""
    first = (FOLDER / name).read_text().splitlines()[0]
    assert re.search(r"not (built or )?run", first, re.IGNORECASE), first


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_exist(name: str) -> None:
    """Every option of our commands in a recipe is one that the command has."""
    assert name.endswith("Containerfile") or commands_in((FOLDER / name).read_text())
    for words in commands_in((FOLDER / name).read_text()):
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options_of(words[0]), words


def test_the_container_starts_a_worker() -> None:
    """The container's entry point and the compose file's command are options of `serve`, with the same model."""
    text = (FOLDER / "gpu_worker" / "Containerfile").read_text()
    entry, arguments = (
        yaml.safe_load(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE)
    )
    assert entry[:4] == ["prefect-imagegen", "serve", "--engine", "diffusers"]
    services = yaml.safe_load((FOLDER / "gpu_worker" / "compose.yaml").read_text())["services"]
    for command in [entry[2:] + arguments, *(service["command"] for service in services.values())]:
        assert {word for word in command if word.startswith("--")} <= options_of("serve")
    assert all(service["command"][:2] == arguments for service in services.values())
    assert {service["ports"][0].rpartition(":")[2] for service in services.values()} == {entry[-1]}
