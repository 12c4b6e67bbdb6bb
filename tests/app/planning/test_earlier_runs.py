"""A plan beside the earlier runs of its manifest: another id column means other seeds, and so other images."""

import json
from pathlib import Path

import pytest

import prefect_imagegen
from tests.support.manifests import manifest_of

WORDS = "rows without a seed get another one, so their images are made and paid for again"


@pytest.fixture
def table(tmp_path: Path) -> str:
    return manifest_of(tmp_path, prompt=["a cup", "a pan"], sku=["A1", "A2"], code=["x", "y"])


def warnings(table: str, tmp_path: Path, **options: str) -> dict[str, int]:
    summary = prefect_imagegen.plan(table, tmp_path / "store", backend="sandbox", **options)
    return {text: count for text, count in summary.warnings.items() if WORDS in text}


def test_another_id_column_is_warned_of(table: str, tmp_path: Path) -> None:
    """A plan says that all rows would be made again because the last run had another id column, and which."""
    prefect_imagegen.generate(table, tmp_path / "store", backend="sandbox", id_column="sku")
    for options, now in (({}, "without --id-column"), ({"id_column": "code"}, "with --id-column code")):
        ((text, count),) = warnings(table, tmp_path, **options).items()
        assert text.startswith(f"the last run of this table was made with --id-column sku, this one is {now}:")
        assert count == 2
    prefect_imagegen.generate(table, tmp_path / "store", backend="sandbox")
    (text,) = warnings(table, tmp_path, id_column="code")
    assert text.startswith("the last run of this table was made without --id-column, this one is with")


def test_what_changes_no_seed_is_not_warned_of(table: str, tmp_path: Path) -> None:
    """The same column, a plan without work, another table and a new store are no reason for a warning."""
    assert warnings(table, tmp_path, id_column="sku") == {}
    prefect_imagegen.generate(table, tmp_path / "store", backend="sandbox", id_column="sku")
    assert warnings(table, tmp_path, id_column="sku") == {}
    other = Path(table).rename(tmp_path / "other.parquet")
    assert warnings(str(other), tmp_path) == {}
    prefect_imagegen.generate(other, tmp_path / "store", backend="sandbox")
    assert warnings(str(other), tmp_path) == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"options": []}', '{"options": {}}', "\x00"])
def test_a_run_that_cannot_be_read_is_no_error(content: str, table: str, tmp_path: Path) -> None:
    """A damaged `run.json`, or one of another version, gives no warning and stops no plan."""
    prefect_imagegen.generate(table, tmp_path / "store", backend="sandbox", id_column="sku")
    (path,) = (tmp_path / "store" / "runs").glob("*/run.json")
    path.write_text(content)
    assert warnings(table, tmp_path) == {}
    path.write_text(json.dumps({"manifest": table, "options": {"id_column": "sku"}}))
    assert len(warnings(table, tmp_path)) == 1
