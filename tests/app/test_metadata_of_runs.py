"""The metadata of old and new runs is read as one table, by the recipe of docs/reference/metadata.md."""

import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.core.metadata import METADATA_SCHEMA
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.deployments.terminal import section
from tests.support.manifests import manifest_of

ROOT = Path(__file__).parents[2]
OLD_STORE = ROOT / "tests" / "data" / "store_0_1.tar.gz"
NEWER = ["queue_s"]
"""Columns that version 0.1.0 did not write."""


@pytest.fixture
def new_run(tmp_path: Path) -> str:
    """A run of the present version in a store that version 0.1.0 began, with the old runs beside it; its id."""
    with tarfile.open(OLD_STORE) as archive:
        archive.extractall(tmp_path, filter="data")
    path = manifest_of(tmp_path, prompt=["new one", "new two"], shade=["light", "dark"])
    with EmbeddedGateway(GatewaySettings(engine="static", static_format="jpeg")) as gateway:
        settings = ProviderSettings(base_url=gateway.url, api_key=SecretStr("key-one"))
        result = prefect_imagegen.generate(path, str(tmp_path / "store"), backend=settings)
    assert result.generated == 2
    return str(result.run_id)


def test_old_and_new_metadata_is_one_table(new_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's recipe reads every row of every run, with all columns; what an old run did not tell is null."""
    monkeypatch.chdir(tmp_path)
    (recipe,) = section(ROOT / "docs" / "reference" / "metadata.md", "Several runs")
    names: dict[str, Any] = {}
    exec(recipe.code, names)
    table: pa.Table = names["table"]
    files = [Path(file) for file in names["files"]]
    assert len({file.parents[1] for file in files}) > 2
    assert len(table) == sum(len(ds.dataset(file).to_table()) for file in files)
    assert {name: table.schema.field(name).type for name in METADATA_SCHEMA.names} == {
        field.name: field.type for field in METADATA_SCHEMA
    }
    assert {"name", "shade"} <= set(table.column_names)
    rows = table.to_pylist()
    new = [row for row in rows if row["prompt"] in ("new one", "new two")]
    assert sorted((row["shade"], row["queue_s"] >= 0) for row in new) == [("dark", True), ("light", True)]
    assert {row[name] for row in rows if row not in new for name in NEWER} == {None}
    assert all(row["status"] for row in rows)


def test_old_runs_have_the_promised_columns(new_run: str, tmp_path: Path) -> None:
    """A script for the metadata of version 0.1.0 finds its columns in a new run, as they were, in their order."""
    runs = tmp_path / "store" / "runs"
    (new,) = runs.glob(f"{new_run}/metadata/*.parquet")
    later = ds.dataset(new).schema
    old = [ds.dataset(file).schema for file in runs.glob("*/metadata/*.parquet") if file != new]
    assert old
    for schema in old:
        ours = [field for field in schema if field.name in METADATA_SCHEMA.names]
        assert [later.field(field.name).type for field in ours] == [field.type for field in ours]
        names = [field.name for field in ours]
        assert [name for name in later.names if name in names] == names
        assert set(METADATA_SCHEMA.names) - set(names) == set(NEWER)
