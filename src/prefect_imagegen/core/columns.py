"""Columns of Parquet tables, each declared at the field of the record whose value it holds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_type_hints

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Column:
    """The column of a record's field: `field: Annotated[float | None, Column(pa.float64(), "seconds in the queue")]`.

    `meaning` explains it to readers of the metadata; a column without one is not in the metadata. `name` is the
    column's name where it is not the field's. A field that holds an object needs `is_json`.
    """

    kind: pa.DataType
    meaning: str | None = None
    name: str | None = None
    is_json: bool = False


def columns_of(record: type) -> dict[str, Column]:
    """The declared columns of a record, by the names of its fields, in the order of the fields."""
    columns = {}
    for name, hint in get_type_hints(record, include_extras=True).items():
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, Column):
                columns[name] = mark
    return columns


def schema_with(placed: Iterable[pa.Field | str], columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """A schema of fields in the order of `placed`, where a name stands for the shared column of that name.

    Shared columns that are not placed follow the shared column before them (the first comes last), so that one that
    is added to the record is in every table that is made from it.
    """
    fields = [pa.field(item, columns[item]) if isinstance(item, str) else item for item in placed]
    names = [field.name for field in fields]
    before: str | None = None
    for name, kind in columns.items():
        if name not in names:
            position = len(names) if before is None else names.index(before) + 1
            names.insert(position, name)
            fields.insert(position, pa.field(name, kind))
        before = name
    return pa.schema(fields)
