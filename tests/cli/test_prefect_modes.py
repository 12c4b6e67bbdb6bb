"""`generate --prefect auto|on|off`: when a run is a Prefect flow, and that Prefect is not loaded where it is not."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect import get_client
from prefect.settings import PREFECT_API_URL, sources
from prefect.settings.models.root import Settings

from prefect_imagegen.cli.prefect_api import configured_api
from prefect_imagegen.core.errors import RefusedError
from tests.support.command import call, call_fresh, prompts_parquet

_URLS = st.none() | st.sampled_from(["http://127.0.0.1:4200/api", "https://prefect.example/api", ""])
_PROFILES = st.none() | st.sampled_from(["here", "there", "nowhere"])


def _profiles(active: str | None, here: str | None, there: str | None) -> str:
    """A file of profiles."""
    lines = [f'active = "{active}"'] if active is not None else []
    for name, url in (("here", here), ("there", there)):
        lines += [f"[profiles.{name}]", *([f'PREFECT_API_URL = "{url}"'] if url is not None else [])]
    return "\n".join(lines)


@contextmanager
def _machine(files: dict[str, str], **environment: str | None) -> Iterator[None]:
    """Within: a working directory and a home with some files, and only these variables of Prefect."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("PREFECT_")]:
            patch.delenv(name)
        for name, value in {"HOME": folder, "PREFECT_HOME": f"{folder}/home", **environment}.items():
            if value is not None:
                patch.setenv(name, value)
        patch.chdir(folder)
        for name, text in files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sources._file_cache.clear()
        yield


@settings(max_examples=150)
@given(
    urls=st.fixed_dictionaries(dict.fromkeys(("env", "dotenv", "toml", "pyproject", "here", "there"), _URLS)),
    active=_PROFILES,
    chosen=_PROFILES,
    spelling=st.sampled_from(["PREFECT_API_URL", "prefect_api_url"]),
    places=st.sampled_from(["", "env", "dotenv", "toml", "pyproject"]),
    test_mode=st.sampled_from([None, None, None, "1"]),
)
def test_a_prefect_api_is_found_where_prefect_finds_it(urls, active, chosen, spelling, places, test_mode) -> None:
    """Environment, .env, prefect.toml, pyproject.toml and profile: what counts is what counts for Prefect."""
    elsewhere = "elsewhere/profiles.toml"
    files = {elsewhere if places else "home/profiles.toml": _profiles(active, urls["here"], urls["there"])}
    dotenv = [f"export {spelling}='{urls['dotenv']}'"] if urls["dotenv"] is not None else []
    dotenv += [f"PREFECT_PROFILES_PATH={elsewhere}"] if places == "dotenv" else []
    toml = [f'profiles_path = "{elsewhere}"'] if places == "toml" else []
    toml += ["[api]", *([f'url = "{urls["toml"]}"'] if urls["toml"] is not None else [])]
    pyproject = ["[tool.prefect]", *([f'profiles_path = "{elsewhere}"'] if places == "pyproject" else [])]
    pyproject += ["[tool.prefect.api]", *([f'url = "{urls["pyproject"]}"'] if urls["pyproject"] is not None else [])]
    files |= {name: "\n".join(lines) for name, lines in ((".env", dotenv), ("prefect.toml", toml)) if lines}
    files["pyproject.toml"] = "\n".join(pyproject)
    variables = {spelling: urls["env"], "PREFECT_PROFILE": chosen, "PREFECT_TEST_MODE": test_mode}
    variables["PREFECT_PROFILES_PATH"] = elsewhere if places == "env" else None
    with _machine(files, **variables):
        assert configured_api() == (Settings().api.url or None)


def test_a_settings_file_that_nobody_can_read_is_named() -> None:
    """Prefect would not start with it either."""
    with _machine({"prefect.toml": "[api"}), pytest.raises(RefusedError, match=r"prefect\.toml"):
        configured_api()


def _without_prefect(folder: Path) -> dict[str, str]:
    """The environment of a process in which Prefect cannot be imported."""
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['prefect'] = None\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


@pytest.mark.parametrize("words", [(), ("--prefect", "off")])
def test_without_an_api_prefect_is_not_loaded(words: tuple[str, ...], tmp_path: Path) -> None:
    """Where no API is configured, a run needs no Prefect, and says so unless it was asked for."""
    place = ("generate", prompts_parquet(tmp_path), "--store", "out", "--backend", "sandbox")
    process = call_fresh(*place, *words, folder=tmp_path, **_without_prefect(tmp_path))
    assert process.returncode == 0, process.stderr
    assert ("No Prefect API is configured" in process.stdout) == (not words)
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == 2
    assert not (tmp_path / "prefect-home").exists()


def test_off_asks_no_api(tmp_path: Path) -> None:
    """`--prefect off` runs beside a configured API that is away."""
    words = ("generate", prompts_parquet(tmp_path), "--store", "out", "--backend", "sandbox", "--prefect", "off")
    assert call(*words, folder=tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api").returncode == 0


@pytest.mark.parametrize("words", [(), ("--prefect", "on")])
def test_an_api_out_of_reach_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    """A configured API that is away ends the command before any call, with the way out; never a silent fall-back."""
    place = ("generate", prompts_parquet(tmp_path), "--store", "out", "--backend", "sandbox")
    process = call(*place, *words, folder=tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert process.returncode == 2
    said = " ".join(process.stderr.split())
    assert "http://127.0.0.1:9/api cannot be reached" in said
    assert "--prefect off" in said
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize("block", [("--store", "image-store/mine"), ("--store", "out", "--backend", "segmind/mine")])
def test_blocks_need_prefect(block: tuple[str, ...], tmp_path: Path) -> None:
    """A block's name with `--prefect off` is refused by name."""
    process = call("generate", prompts_parquet(tmp_path), *block, "--prefect", "off", folder=tmp_path)
    assert process.returncode == 2
    assert f"{block[-1]} is a block of Prefect" in " ".join(process.stderr.split())


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_the_flow_sees_a_configured_api(tmp_path: Path) -> None:
    """Where an API is configured, the run is a flow run there."""
    words = ("generate", prompts_parquet(tmp_path), "--store", tmp_path / "out", "--backend", "sandbox")
    process = call(*words, folder=tmp_path, PREFECT_API_URL=PREFECT_API_URL.value())
    assert process.returncode == 0, process.stderr
    assert "No Prefect API" not in process.stdout
    with get_client(sync_client=True) as client:
        assert str(tmp_path / "out") in {run.parameters.get("store") for run in client.read_flow_runs()}
