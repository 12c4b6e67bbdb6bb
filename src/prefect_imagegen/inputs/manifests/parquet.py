"""Read Parquet in pieces: only the needed columns, each piece bounded in rows and bytes."""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_imagegen.inputs.manifests.window import Bounds, Piece

_BUFFER = 4 * 2**20
_MARK = b"PAR1"
_TAIL = 8
"""Bytes at the end of a file: the length of the footer (4), and the mark (4)."""
_WIDE_BYTES = 16


class WideColumnError(ValueError):
    """A column has integers of more than 64 bits, which Arrow cannot read."""

    remedy = "Write that column as text, or as integers of 64 bits."


def footer_of(source: Any) -> tuple[pa.Schema, int]:
    """The schema of a file, and its number of rows. Raises WideColumnError, and what Arrow raises."""
    try:
        reader = pq.ParquetFile(source, pre_buffer=False)
    except pa.ArrowNotImplementedError as error:
        names = ", ".join(map(repr, _wide_columns(source)))
        if not names:
            raise
        raise WideColumnError(f"there are integers of more than 64 bits (Int128) in {names}") from error
    return reader.schema_arrow.remove_metadata(), reader.metadata.num_rows


def parquet_pieces(source: Any, needed: Collection[str], bounds: Bounds) -> Iterator[Piece]:
    """The rows of the needed columns, in pieces; the larger the rows, the fewer in a piece.

    A file records its sizes by row group, so the bound holds as far as the rows of a group are of similar size. Text
    that many rows share is stored once: it is read as dictionaries, and expanded for no more rows than fit.
    """
    metadata = pq.read_metadata(source)
    source.seek(0)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((_row_bytes(group, needed) for group in groups), default=0.0)
    whole = largest * max((group.num_rows for group in groups), default=0)
    # A large row group is read through a buffer; of a small one each column is one request.
    buffer = _BUFFER if whole > bounds.size else 0
    types = pq.ParquetFile(source, metadata=metadata, pre_buffer=False).schema_arrow
    weighed = {name for name in needed if name in types.names and _is_weighed(types.field(name).type)}
    shared = sorted({chunk.path_in_schema for chunk in _text_chunks(groups, weighed)})
    # Of types whose cells cannot be weighed after reading, a single row may be as large as the whole column.
    unweighed = _text_chunks(groups, set(needed) - weighed)
    largest = max([largest, *(float(chunk.total_uncompressed_size) for chunk in unweighed)])
    with pq.ParquetFile(
        source, metadata=metadata, pre_buffer=False, buffer_size=buffer, read_dictionary=shared
    ) as reader:
        names = [name for name in types.names if name in needed]
        rows = int(max(1, min(bounds.rows, bounds.size / max(largest, 1.0))))
        # Arrow reads dictionaries within lists from one row group at a time only.
        numbers = range(len(groups))
        spans = [[number] for number in numbers] if any("." in path for path in shared) else [[*numbers]]
        for batch in chain.from_iterable(reader.iter_batches(rows, span, names) for span in spans):
            for part in _parts(batch, bounds.size):
                columns = {name: part.column(name).cast(types.field(name).type) for name in names}
                yield Piece(columns, size=part.num_rows)


def _is_weighed(kind: pa.DataType) -> bool:
    """Whether `_unfolded` can tell the bytes of this type's cells."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_weighed(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_weighed(kind.field(number).type) for number in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return _is_weighed(kind.value_type)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    is_plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return bool(is_text or is_bytes or is_plain)


def _text_chunks(groups: Collection[Any], columns: Collection[str]) -> list[Any]:
    """The column chunks of text or bytes: they may hold a value once for all rows that share it (dictionaries)."""
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    texts = (chunk for chunk in chunks if chunk.physical_type == "BYTE_ARRAY")
    return [
        chunk for chunk in texts if chunk.path_in_schema in columns or chunk.path_in_schema.partition(".")[0] in columns
    ]


def _parts(batch: pa.RecordBatch, size: int) -> Iterator[pa.RecordBatch]:
    """Split a batch so that no part has more than `size` bytes once it is expanded; a single row may have more."""
    if sum(map(_most, batch.columns)) <= size:
        yield batch
        return
    sums = [0]
    for weights in zip(*map(_unfolded, batch.columns), strict=True):
        sums.append(sums[-1] + sum(weights))
    start = 0
    while start < batch.num_rows:
        end = max(start + 1, bisect_right(sums, sums[start] + size) - 1)
        yield batch.slice(start, end - start)
        start = end


def _most(array: pa.Array) -> int:
    """An upper bound of the bytes of an array's shared text, once expanded; quick to compute."""
    if pa.types.is_dictionary(array.type):
        longest: int = pc.max(_lengths(array)).as_py() or 0
        return longest * len(array)
    if pa.types.is_struct(array.type):
        return sum(map(_most, array.flatten()))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _most(array.values)
    return 0


def _lengths(array: pa.DictionaryArray) -> pa.Array:
    """The bytes of each value of a dictionary; null for values that are not text."""
    kind = array.type.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_binary(kind)
    return pc.binary_length(array.dictionary) if is_text else pa.nulls(len(array.dictionary), pa.int32())


def _unfolded(array: pa.Array) -> Sequence[int]:
    """The bytes of shared text in each cell, once expanded."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths: Sequence[int] = _lengths(array).take(array.indices).fill_null(0).to_pylist()
        return lengths
    if pa.types.is_struct(kind):
        return [sum(weights) for weights in zip(*map(_unfolded, array.flatten()), strict=True)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        sums = [0, *accumulate(_unfolded(array.values))]
        return [sums[end] - sums[start] for start, end in pairwise(array.offsets.to_pylist())]
    return [0] * len(array)


def _wide_columns(source: Any) -> list[str]:
    """The columns that may hold integers of 128 bits, by their Parquet types.

    Arrow refuses to open a file whose embedded Arrow schema has such a type; so the footer is read by itself, with the
    name of that schema changed.
    """
    source.seek(-_TAIL, 2)
    size = int.from_bytes(source.read(4), "little")
    source.seek(-_TAIL - size, 2)
    footer = source.read(size).replace(b"ARROW:schema", b"arrow:schema")
    file = _MARK + footer + size.to_bytes(4, "little") + _MARK
    columns = pq.read_metadata(pa.BufferReader(file)).schema
    all_columns = [columns.column(number) for number in range(len(columns))]
    wide = [column for column in all_columns if column.length == _WIDE_BYTES and column.logical_type.type == "NONE"]
    return list(
        dict.fromkeys(column.path.partition(".")[0] for column in wide if column.physical_type.startswith("FIXED"))
    )


def _row_bytes(group: Any, needed: Collection[str]) -> float:
    """The average uncompressed bytes of a row in a row group, over the needed columns."""
    size = 0.0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in needed or column.path_in_schema.partition(".")[0] in needed:
            size += column.total_uncompressed_size
    return size / float(max(1, group.num_rows))
