"""Manifests read as a run reads them, and what is said of broken ones."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.request.manifest_types import join_schemas
from prefect_imagegen.inputs.manifests.manifest import Manifest
from prefect_imagegen.inputs.manifests.window import Window

ROWS = {"prompt": ["a cup", "Käse 🧀", None], "seed": [1, None, 3], "tags": [["a"], [], None]}
TABLE = pa.table(ROWS)


def parquet(path: Path, table: pa.Table = TABLE, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def windows(url, *, limit=None, wanted=("prompt",), needed=None, **options) -> Iterator[Window]:
    """All windows, with the columns of all files joined."""
    manifest = Manifest(str(url), options or None)
    try:
        schema = join_schemas(manifest.schemas(wanted, limit))
        yield from manifest.windows(schema, needed, limit)
    finally:
        manifest.close()


def read(url, **options) -> pa.Table:
    """All rows, as the metadata would carry them."""
    chunks = list(windows(url, **options))
    names = chunks[0].schema.names
    return pa.concat_tables(pa.table({name: window.column(name) for name in names}) for window in chunks)


def refusal(url, **options) -> RefusedError:
    with pytest.raises(RefusedError) as raised:
        read(url, **options)
    error = raised.value
    assert error.remedy
    assert "Traceback" not in str(error)
    return error
