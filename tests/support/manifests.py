"""Manifests that tests write."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def manifest_of(folder: Path, **columns: list[Any]) -> str:
    """A manifest of these columns, as Parquet; its path, which is the same for each in a folder."""
    path = folder / "prompts.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def numbered(folder: Path, rows: int, what: str = "scene number") -> str:
    """A manifest of so many prompts, which differ in their number."""
    return manifest_of(folder, prompt=[f"{what} {number}" for number in range(rows)])
