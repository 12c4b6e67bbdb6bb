"""What the package loads, and what it must never load."""

import re
import subprocess
import sys
from inspect import Parameter, signature
from pathlib import Path

import pytest

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions

HEAVY = {"PIL", "aiohttp", "fastapi", "fsspec", "httpx", "numpy", "prefect", "pyarrow", "pydantic"}
ROOT = Path(__file__).parents[2]
SOURCES = [
    path for room in ("src/prefect_imagegen", "blocks", "tasks", "flows") for path in (ROOT / room).rglob("*.py")
]


def run(code: str) -> str:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout


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


def test_importing_the_package_is_light() -> None:
    """`import prefect_imagegen`, and a look at its names, load nothing but the standard library."""
    code = (
        "import sys, prefect_imagegen\n"
        "dir(prefect_imagegen)\n"
        "ours = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        f"print(sorted(ours & {HEAVY | {'click', 'rich'}}), 'prefect_imagegen.app' in sys.modules)"
    )
    assert run(code).split() == ["[]", "False"]


@pytest.mark.parametrize("name", prefect_imagegen.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Every name of `__all__` is one that `dir` shows and that type checkers see."""
    assert getattr(prefect_imagegen, name) is not None
    assert name in dir(prefect_imagegen)
    text = Path(prefect_imagegen.__file__).read_text(encoding="utf-8")
    typed = text.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    assert re.search(rf"\b{name}\b", typed)


def test_only_the_blocks_load_prefect() -> None:
    """Every public name but a block is to be had without Prefect."""
    code = (
        "import sys, prefect_imagegen\n"
        "blocks = {'Segmind', 'GpuWorkerPool', 'ImageStore'}\n"
        "for name in set(prefect_imagegen.__all__) - blocks:\n"
        "    getattr(prefect_imagegen, name)\n"
        "print('prefect' in sys.modules)\n"
        "print(prefect_imagegen.Segmind.__name__, 'prefect' in sys.modules)"
    )
    assert run(code).split() == ["False", "Segmind", "True"]


def test_no_other_name_is_there() -> None:
    """A name that the package has not is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="'prefect_imagegen' has no attribute 'nonsense'"):
        prefect_imagegen.nonsense  # noqa: B018 - looked up for its error


def test_option_arguments_are_the_options() -> None:
    """`generate` and `plan` take, as typed keyword arguments, exactly the fields of the options and their types."""
    fields = {name: field.annotation for name, field in RunOptions.model_fields.items()}
    parameters = signature(prefect_imagegen.generate).parameters
    own = ["manifest", "store", "backend", "storage_options"]
    assert {name: parameter.annotation for name, parameter in parameters.items() if name not in own} == fields
    for name in ("agenerate", "plan", "aplan"):
        assert signature(getattr(prefect_imagegen, name)).parameters == parameters
    assert [parameters[name].kind.name for name in own] == ["POSITIONAL_OR_KEYWORD"] * 2 + ["KEYWORD_ONLY"] * 2
    assert all(parameters[name].default is not Parameter.empty for name in fields)


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
    process = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert "answer 42" in process.stdout, process.stderr
