"""A manifest, a run of it over a pool of workers, and its metadata."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prefect_imagegen import generate
from prefect_imagegen.app.running.result import RunResult
from tests.support.manifests import manifest_of

Engine = Callable[..., Any]


def manifest(folder: Path, rows: int, **columns: Any) -> str:
    return manifest_of(folder, prompt=[f"cup {row}" for row in range(rows)], **columns)


def metadata(store: Path, result: RunResult) -> list[dict[str, Any]]:
    return pq.read_table(store / "runs" / str(result.run_id) / "metadata").to_pylist()


def run(source: str, store: Path, *engines: Any, **options: Any) -> RunResult:
    endpoints = [engine.endpoint for engine in engines]
    return generate(source, str(store), backend="pool", endpoints=endpoints, **options)
