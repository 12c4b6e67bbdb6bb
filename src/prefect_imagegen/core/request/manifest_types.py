"""Types of manifest columns: joining the schemas of several files, and checking what the metadata can hold."""

import io
from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.request.manifest import ColumnPlan, ManifestOptions, plan_columns


def columns_of(schemas: Sequence[tuple[str, pa.Schema]], options: ManifestOptions) -> tuple[ColumnPlan, pa.Schema]:
    """The column plan for all files of a manifest, and their joined schema.

    Each file's schema comes with its name. Raises RefusedError (`manifest_schema`).
    """
    for file, schema in schemas:
        doubled = next((name for name, count in Counter(schema.names).items() if count > 1), None)
        if doubled is not None:
            raise RefusedError(
                "manifest_schema", f"{file} has several columns named {doubled!r}.", remedy="Rename them in the file."
            )
    names = list(dict.fromkeys(name for _, schema in schemas for name in schema.names))
    plan = plan_columns(names, options)
    joined = join_schemas(schemas, plan.fed - set(plan.carried))
    plan = plan_columns(names, options, {column.name for column in joined if holds_bytes(column.type)})
    check_writable(joined, list(plan.carried))
    return plan, joined


def join_schemas(schemas: Iterable[tuple[str, pa.Schema]], fed: Iterable[str] = ()) -> pa.Schema:
    """The columns of all files, in order of their first appearance; each file comes with its name.

    A column that is nothing but nulls in one file takes the type of the others; numbers, texts, times and structs
    take the wider type. Raises RefusedError (`manifest_schema`) with file, column and both types where there is none;
    columns in `fed` are read cell by cell and may differ.
    """
    fields: dict[str, tuple[pa.DataType, str]] = {}
    may_differ = frozenset(fed)
    for file, schema in schemas:
        for column in schema:
            if column.name not in fields:
                fields[column.name] = (column.type, file)
                continue
            before, first = fields[column.name]
            joined = joined_type(before, column.type)
            if joined is None and column.name not in may_differ:
                raise RefusedError(
                    "manifest_schema",
                    f"The manifest's files differ in their columns: {column.name!r} is {column.type} in {file}, and"
                    f" {before} in {first}.",
                    remedy="Give all files the same columns and types, or write that column as text in all of them.",
                )
            fields[column.name] = (joined or pa.null(), first if before != pa.null() else file)
    return pa.schema([(name, kind) for name, (kind, _) in fields.items()])


def joined_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both types without loss of meaning; None if there is none."""
    if first == second:
        return first
    first, second = _plain(first), _plain(second)
    if _is_bytes(first) != _is_bytes(second) and pa.null() not in (first, second):
        return None
    pair = (pa.schema([("x", first)]), pa.schema([("x", second)]))
    try:
        return pa.unify_schemas(pair, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def conform(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column in the joined type. Raises pa.ArrowException where a value does not fit."""
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    return pc.cast(column, kind)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of the type hold bytes of any length (images, mostly), at any depth."""
    if _is_bytes(kind):
        return True
    if pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return holds_bytes(kind.storage_type)
    return any(holds_bytes(kind.field(position).type) for position in range(kind.num_fields))


def check_writable(schema: pa.Schema, columns: Sequence[str]) -> None:
    """Refuse carried columns that no Parquet file can hold. Raises RefusedError (`manifest_schema`)."""
    for name in columns:
        kind = schema.field(name).type
        try:
            pq.write_table(pa.schema([("x", kind)]).empty_table(), io.BytesIO())
        except (pa.ArrowException, NotImplementedError) as error:
            raise RefusedError(
                "manifest_schema",
                f"The column {name!r} of the manifest is of the type {kind}, which the metadata cannot hold ({error}).",
                remedy="Leave the column out of the manifest, or write it as text.",
            ) from error


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: of a dictionary its values, of a view the thing itself."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return pa.large_string() if pa.types.is_string_view(kind) else kind
