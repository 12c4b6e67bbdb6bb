"""What the command line loads: help, usage errors and shell completion answer at once, without the heavy libraries."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from prefect_imagegen.cli import options, serve
from prefect_imagegen.cli.main import cli
from prefect_imagegen.gateway import engines
from prefect_imagegen.gateway.engines import diffusers
from prefect_imagegen.providers.registry import PROVIDERS
from tests.support.command import prompts_parquet

HEAVY = frozenset(
    {"PIL", "aiohttp", "fastapi", "fsspec", "httpx", "numpy", "prefect", "pyarrow", "pydantic", "starlette", "uvicorn"}
)
_COMPLETE = "_PREFECT_IMAGEGEN_COMPLETE"
_MAIN = """
import atexit, os, sys
atexit.register(lambda: open(os.environ["LOADED"], "w").write(" ".join(sys.modules)))
from prefect_imagegen.cli.main import main
main()
"""
_EACH = """
import contextlib, io, json, sys
from prefect_imagegen.cli.main import main
answers, before = [], set()
for words in {lines!r}:
    stdout, stderr = io.StringIO(), io.StringIO()
    sys.argv = ["prefect-imagegen", *words]
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main()
        except SystemExit as end:
            code = end.code
    heavy = {heavy!r} & set(sys.modules)
    answer = dict(words=words, code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())
    answers.append(answer | dict(loaded=sorted(heavy - before)))
    before = heavy
print(json.dumps(answers))
"""


class Ended:
    """A command that has ended: exit code, output, and the top-level modules that it loaded."""

    def __init__(self, folder: Path, *words: object, **environment: str) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SEGMIND_"))}
        own |= {"PREFECT_HOME": str(folder / "home"), "LOADED": str(folder / "loaded"), "COLUMNS": "200"}
        process = subprocess.run(
            [sys.executable, "-c", _MAIN, *map(str, words)],
            cwd=folder,
            env=own | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        self.code, self.stdout, self.stderr = process.returncode, process.stdout, process.stderr
        assert "Traceback" not in self.stderr, self.stderr
        self.loaded = {name.partition(".")[0] for name in (folder / "loaded").read_text().split()}
        assert "click" in self.loaded


def completed(folder: Path, *words: str) -> list[str]:
    """What bash is offered for the last of some words, one `type,value` each."""
    environment = {_COMPLETE: "bash_complete", "COMP_CWORD": str(len(words)), "COMP_WORDS": " ".join(["x", *words])}
    ended = Ended(folder, **environment)
    assert (ended.code, ended.loaded & HEAVY) == (0, set())
    return ended.stdout.splitlines()


def usage_errors() -> Iterator[tuple[tuple[str, ...], str]]:
    """For every command: an unknown option, a missing argument or option, and a bad choice."""
    for name, command in cli.commands.items():
        yield (name, "--nonsense"), "--nonsense"
        if any(parameter.required for parameter in command.params):
            yield (name,), "Missing"
        for parameter in command.params:
            if isinstance(parameter.type, click.Choice):
                yield (name, parameter.opts[0], "nonsense"), "nonsense"


HELP = [("--help",), ("--version",), *((name, "--help") for name in cli.commands)]
USAGE_ERRORS = dict(usage_errors())


def answers_to(
    lines: Sequence[tuple[str, ...]], folder: Path, **environment: str
) -> dict[tuple[str, ...], dict[str, Any]]:
    """What one process says to each command line in turn, and the heavy libraries that it has then and not before."""
    process = subprocess.run(
        [sys.executable, "-c", _EACH.format(lines=lines, heavy=HEAVY)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return {tuple(answer["words"]): answer for answer in json.loads(process.stdout)}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], dict[str, Any]]:
    """The answers to all that is to be answered at once."""
    return answers_to([*HELP, *USAGE_ERRORS], tmp_path_factory.mktemp("light"))


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_is_light(words: tuple[str, ...], answers: dict[tuple[str, ...], dict[str, Any]]) -> None:
    """Every command shows its help, and the program its version, without a heavy library."""
    answer = answers[words]
    assert (answer["code"], answer["loaded"]) == (0, [])
    assert answer["stdout"].startswith(("Usage: prefect-imagegen", "prefect-imagegen, version "))


@pytest.mark.parametrize("words", USAGE_ERRORS, ids=" ".join)
def test_usage_errors_are_light(words: tuple[str, ...], answers: dict[tuple[str, ...], dict[str, Any]]) -> None:
    """A wrong command line is refused with exit code 2, naming the culprit, without a heavy library."""
    answer = answers[words]
    assert (answer["code"], answer["loaded"]) == (2, [])
    assert USAGE_ERRORS[words] in answer["stderr"]


@pytest.mark.parametrize(
    ("trouble", "code", "message"),
    [("KeyboardInterrupt", 3, "interrupted before the first call"), ("ImportError('torn')", 4, "ImportError: torn")],
)
def test_loading_is_within_the_boundary(trouble: str, code: int, message: str, tmp_path: Path) -> None:
    """Ctrl-C, or a broken library, while a command loads what it needs ends it as at any other time."""
    (tmp_path / "pydantic.py").write_text(f"raise {trouble}\n")
    lines = []
    for name, command in cli.commands.items():
        required = [parameter for parameter in command.params if parameter.required]
        arguments = ["x" for parameter in required if isinstance(parameter, click.Argument)]
        valued = [f"{parameter.opts[0]}=x" for parameter in required if isinstance(parameter, click.Option)]
        lines.append((name, *arguments, *valued))
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    answers = answers_to(lines, tmp_path, PYTHONPATH=paths)
    assert {name: answer["code"] for (name, *_), answer in answers.items()} == dict.fromkeys(cli.commands, code)
    assert [answer["words"] for answer in answers.values() if message not in answer["stderr"]] == []
    assert [path.name for path in tmp_path.iterdir()] == ["pydantic.py"]


def test_the_guard_sees_a_heavy_library(tmp_path: Path) -> None:
    """A command that does its work does load heavy libraries: the list of modules is a real one."""
    ended = Ended(tmp_path, "plan", prompts_parquet(tmp_path), "--store", "out", "--backend", "sandbox")
    assert (ended.code, ended.loaded & {"pyarrow", "pydantic", "prefect"}) == (0, {"pyarrow", "pydantic"})


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    """A finished manifest is found finished without Prefect, a gateway or its web framework."""
    words = ("generate", prompts_parquet(tmp_path), "--store", "out", "--backend", "sandbox")
    first = Ended(tmp_path, *words)
    assert (first.code, "uvicorn" in first.loaded, "prefect" in first.loaded) == (0, True, False)
    again = Ended(tmp_path, *words)
    assert again.code == 0, again.stderr
    assert "3  reused" in again.stdout
    assert again.loaded & {"prefect", "fastapi", "starlette", "uvicorn"} == set()


def test_completion_offers_commands_options_and_values(tmp_path: Path) -> None:
    """The shell is offered commands, options, choices, the backends, and paths where a path belongs."""
    names = [name for name, command in cli.commands.items() if not command.hidden]
    assert sorted(completed(tmp_path, "")) == sorted(f"plain,{name}" for name in names)
    assert completed(tmp_path, "gen") == ["plain,generate"]
    assert completed(tmp_path, "generate", "--prof") == ["plain,--profile"]
    assert completed(tmp_path, "generate", "--on-unknown", "r") == ["plain,reconcile", "plain,retry-once"]
    assert completed(tmp_path, "generate", "--backend", "s") == ["plain,segmind", "plain,sandbox"]
    assert completed(tmp_path, "generate", "prom") == ["file,prom"]
    assert completed(tmp_path, "status", "--store", "out") == ["dir,out"]
    assert completed(tmp_path, "serve", "--engine", "") == [f"plain,{name}" for name in sorted(engines.ENGINES)]
    assert completed(tmp_path, "serve", "--data", "da") == ["dir,da"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_switched_on(shell: str, tmp_path: Path) -> None:
    """Each shell gets its script from the program itself."""
    ended = Ended(tmp_path, **{_COMPLETE: f"{shell}_source"})
    assert (ended.code, ended.loaded & HEAVY) == (0, set())
    assert f"{_COMPLETE}={shell}_complete" in ended.stdout
    page = (Path(__file__).parents[2] / "docs" / "guides" / "completion.md").read_text(encoding="utf-8")
    assert f"{_COMPLETE}={shell}_source prefect-imagegen" in page.split("Switch it on", 1)[1]
    assert "prefect-imagegen" in ended.stdout


def test_names_that_help_repeats_are_complete() -> None:
    """What help and completion name without loading it is what there is."""
    assert set(options.BACKENDS) == set(PROVIDERS)
    assert tuple(sorted(engines.ENGINES)) == serve.ENGINES
    assert diffusers.DTYPES == serve.DTYPES
