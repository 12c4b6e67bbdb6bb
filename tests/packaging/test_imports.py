"""What the package loads, and what it must never load."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for room in ("src/prefect_imagegen", "blocks", "tasks", "flows") for path in (ROOT / room).rglob("*.py")
]


def run(code: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_imports_are_absolute() -> None:
    """No relative imports, and never `import blocks`, which would make a second class of everything."""
    wrong = re.compile(r"^\s*(from \.|(import|from) (blocks|tasks|flows)\b)", re.MULTILINE)
    assert SOURCES
    assert [path for path in SOURCES if wrong.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "module",
    ["prefect_imagegen", "prefect_imagegen.app.api", "prefect_imagegen.executor", "prefect_imagegen.cli.serve"],
)
def test_below_blocks_nothing_needs_prefect(module: str) -> None:
    """A GPU worker, and `prefect_imagegen.generate`, never load Prefect."""
    printed = run(
        "import importlib, sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'prefect':\n"
        "            raise ImportError('prefect is blocked')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        f"module = importlib.import_module({module!r})\n"
        "import prefect_imagegen\n"
        "print(prefect_imagegen.generate.__name__, prefect_imagegen.RunResult.__name__, 'prefect' in sys.modules)\n"
    )
    assert printed.split() == ["generate", "RunResult", "False"]


def test_the_blocks_are_light() -> None:
    """Prefect imports the blocks at every server start: they load nothing heavy that Prefect has not loaded itself."""
    heavy = "{'pyarrow', 'PIL', 'fsspec', 'aiohttp', 'httpx_aiohttp', 'fastapi', 'uvicorn', 'click'}"
    code = (
        "import sys, prefect, prefect.blocks.abstract\n"
        "before = set(sys.modules)\n"
        "import prefect_imagegen.blocks\n"
        f"print(sorted((set(sys.modules) - before) & {heavy}))"
    )
    assert run(code).strip() == "[]"


def test_the_blocks_are_a_prefect_collection() -> None:
    """Prefect finds our block types through the entry point `prefect.collections`."""
    code = (
        "from importlib.metadata import entry_points\n"
        "(point,) = [p for p in entry_points(group='prefect.collections') if p.name == 'prefect_imagegen']\n"
        "print(sorted(point.load().__all__))"
    )
    assert run(code).strip() == "['GpuWorkerPool', 'ImageStore', 'Segmind']"


@pytest.mark.prefect
@pytest.mark.timeout(300)
def test_the_ephemeral_server_starts(tmp_path: Path) -> None:
    """A flow without any server runs: Prefect's own server imports with the FastAPI that we ask for."""
    script = tmp_path / "trivial.py"
    script.write_text(
        "from prefect import flow\n\n@flow\ndef trivial():\n    return 42\n\nprint('answer', trivial())\n"
    )
    environment = {
        "PATH": "",
        "HOME": str(tmp_path),
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    found = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert "answer 42" in found.stdout, found.stderr
