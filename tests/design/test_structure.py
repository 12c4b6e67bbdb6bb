"""The plan of the rooms: sizes of files and folders, names that are gone, packages and layers that exist."""

import re
import tokenize
import tomllib
from collections import Counter
from pathlib import Path

from prefect_imagegen.blocks import gpu_worker_pool, image_store, segmind

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINKED = ("flows", "tasks", "blocks")
"""Rooms at the top level, which are installed below `prefect_imagegen`."""
MOST_LINES = 350
MOST_FILES = 14
_OLD_CLASSES = """
Kit Again Park Parked Step Lot Closing Calls Neighbours Studio Books Wire Picture Drawn Short Dropped Mending Job
Prepared Verified Retried Reconciled Ended SegmindBackend
"""
_OLD_MODULES_AND_FUNCTIONS = """
kit lot _lot _closing wiring mending written_plan studio books strike telling crashpoints reached growing strand kept_id
"""
_OLD_LOCALS = "one found given told"
OLD_NAMES = frozenset(f"{_OLD_CLASSES} {_OLD_MODULES_AND_FUNCTIONS} {_OLD_LOCALS}".split())
"""Identifiers that had to be looked up: each has a better name by now."""


def product() -> list[Path]:
    """The Python files of the product, each once: the links to the rooms at the top level are left out."""
    package = ROOT / "src" / "prefect_imagegen"
    files = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in LINKED]
    return sorted(files + [path for room in LINKED for path in (ROOT / room).rglob("*.py")])


def module_of(path: Path) -> str:
    """The dotted name of a file of the product."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "src" else ("prefect_imagegen", *parts)
    return ".".join(parts).removesuffix(".__init__")


def test_modules_are_short():
    """No module of the product is longer than can be read at one go."""
    lengths = {module_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in product()}
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_modules_of_tests_are_short():
    """No module of the tests, the benchmarks or the pages is longer than can be read at one go either."""
    files = [path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 200
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_folders_are_small():
    """No folder of the product or of the tests holds more Python files than can be told apart."""
    files = product() + list((ROOT / "tests").rglob("*.py"))
    sizes = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    assert {folder: size for folder, size in sizes.items() if size > MOST_FILES} == {}


def test_old_names_are_gone():
    """No identifier of the product has a name that tells nothing."""
    left: Counter[str] = Counter()
    for path in product():
        with path.open("rb") as file:
            tokens = tokenize.tokenize(file.readline)
            names = [piece.string for piece in tokens if piece.type == tokenize.NAME and piece.string in OLD_NAMES]
        left.update(f"{module_of(path)}: {name}" for name in names)
    assert dict(left) == {}


def test_packages_are_listed():
    """Every folder of the product that holds modules is a package of the wheel, and the reverse."""
    listed = PROJECT["tool"]["setuptools"]["packages"]
    folders = {module_of(path.parent / "__init__.py") for path in product()}
    assert sorted(listed) == sorted(folders)
    assert [name for name in folders if name not in {module_of(path) for path in product()}] == []


def test_layers_exist():
    """Every layer of the import rule is a room, and every room stands in a layer."""
    (contract,) = (entry for entry in PROJECT["tool"]["importlinter"]["contracts"] if entry["type"] == "layers")
    layers = {name for layer in contract["layers"] for name in re.split(r"[\s|:]+", layer)}
    modules = {module_of(path) for path in product()}
    assert layers <= modules
    rooms = {".".join(name.split(".")[:2]) for name in modules}
    missing = rooms - {".".join(name.split(".")[:2]) for name in layers}
    assert missing == {"prefect_imagegen", "prefect_imagegen.failpoints"}


def test_the_import_rule_is_told_as_it_is():
    """CONTRIBUTING and AGENTS name every room of the layers, in their order."""
    (contract,) = (entry for entry in PROJECT["tool"]["importlinter"]["contracts"] if entry["type"] == "layers")
    order = [name.split(".")[1] for layer in contract["layers"] for name in re.split(r"[\s|:]+", layer)]
    rooms = list(dict.fromkeys(order))
    for page in ("CONTRIBUTING.md", "AGENTS.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        (rule,) = re.findall(r"`(cli > [^`]* > core)`", text)
        assert re.findall(r"\w+", rule) == rooms


def test_the_projects_address_is_one():
    """The blocks lead to the same repository as the package's own metadata."""
    source = PROJECT["project"]["urls"]["Source"]
    assert {module._REPOSITORY for module in (gpu_worker_pool, image_store, segmind)} == {source}
    assert all(url.startswith(source) for url in PROJECT["project"]["urls"].values())
    assert (ROOT / "SECURITY.md").read_text(encoding="utf-8").count(source) == 1


def test_short_pages_stay_short():
    """AGENTS.md can be read before every piece of work."""
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 150
