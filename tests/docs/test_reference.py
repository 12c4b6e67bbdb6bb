"""The parts of the reference that are not made by cog alone say what is so."""

import importlib
import re
from pathlib import Path

import pytest

import prefect_imagegen

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r'"((?:SEGMIND|PREFECT_IMAGEGEN)_[A-Z_]+)"')


def test_every_variable_is_on_the_page() -> None:
    """Whatever the program reads from the environment under a name of its own is explained."""
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    read = {
        name
        for room in ("src", "blocks", "tasks", "flows")
        for path in (ROOT / room).rglob("*.py")
        for name in _VARIABLE.findall(path.read_text(encoding="utf-8"))
    }
    assert len(read) > 5
    assert {name for name in read if f"`{name}`" not in page} == set()


def test_all_that_a_run_writes_is_in_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each object that runs leave in a store is on the page, and each file of a run that is on the page is there."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    tables = importlib.import_module("layout_tables")
    (tmp_path / "photo.png").write_bytes((ROOT / "docs" / "logo.png").read_bytes())
    rows = "prompt,image_urls,cfg\na cup,photo.png,5\na jug,,5\na pot,,99\n"
    (tmp_path / "rows.csv").write_text(rows)
    store = tmp_path / "store"
    result = prefect_imagegen.generate(
        tmp_path / "rows.csv", store, backend="sandbox", on_invalid="skip", keep_references=True
    )
    assert (result.generated, result.invalid) == (2, 1)
    written = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    patterns = tables.patterns()
    assert {path for path in written if not any(pattern.fullmatch(path) for pattern in patterns)} == set()
    expected = {name for name in tables.RUN_FILES if f"runs/{result.run_id}/{name}" not in written}
    expected |= {name for name in tables.PARTS if f"runs/{result.run_id}/{name}/part-00000.parquet" not in written}
    assert expected == set()
