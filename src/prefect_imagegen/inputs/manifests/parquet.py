"""Parquet files as pieces of columns: only those that are needed, in pieces whose bytes are bounded too."""

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
"""The length of the footer, and the mark, at the end of a file."""
_WIDE_BYTES = 16


class WideColumnError(ValueError):
    """A column whose integers have more than 64 bits, which Arrow does not know."""

    remedy = "Write that column as text, or as integers of 64 bits."


def footer_of(source: Any) -> tuple[pa.Schema, int]:
    """The columns of a file, and how many rows it has. Raises WideColumnError, and what Arrow raises."""
    try:
        reader = pq.ParquetFile(source, pre_buffer=False)
    except pa.ArrowNotImplementedError as error:
        names = ", ".join(map(repr, _wide_columns(source)))
        if not names:
            raise
        raise WideColumnError(f"there are integers of more than 64 bits (Int128) in {names}") from error
    return reader.schema_arrow.remove_metadata(), reader.metadata.num_rows


def parquet_pieces(source: Any, needed: Collection[str], bounds: Bounds) -> Iterator[Piece]:
    """The rows of the needed columns, as the file has them; fewer at a time where rows are large.

    A file tells its sizes by row group, so a piece is bounded as far as the rows of a group are alike. A text that many
    rows share stands in it once: those are read as dictionaries, and unfolded for no more rows than fit.
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
    # What cannot be weighed once it is read may be as large as its whole column in each row.
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
    """Whether `_unfolded` knows how many bytes the cells of a column have, texts among them."""
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
    """The parts of some columns that hold texts or bytes, and may hold each value once for all rows that share it."""
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    texts = (chunk for chunk in chunks if chunk.physical_type == "BYTE_ARRAY")
    return [one for one in texts if one.path_in_schema in columns or one.path_in_schema.partition(".")[0] in columns]


def _parts(batch: pa.RecordBatch, size: int) -> Iterator[pa.RecordBatch]:
    """A batch in parts that have no more bytes than `size` when they are unfolded, but for a single row."""
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
    """How many bytes of shared texts an array has at most; quick to tell."""
    if pa.types.is_dictionary(array.type):
        longest: int = pc.max(_lengths(array)).as_py() or 0
        return longest * len(array)
    if pa.types.is_struct(array.type):
        return sum(map(_most, array.flatten()))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _most(array.values)
    return 0


def _lengths(array: pa.DictionaryArray) -> pa.Array:
    """The bytes of each value of a dictionary; nothing of values that are no texts."""
    kind = array.type.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_binary(kind)
    return pc.binary_length(array.dictionary) if is_text else pa.nulls(len(array.dictionary), pa.int32())


def _unfolded(array: pa.Array) -> Sequence[int]:
    """How many bytes of shared texts each cell has."""
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
    """The columns that may hold integers of 128 bits: as Parquet knows them, without what Arrow's schema says of them.

    Arrow opens no file with such a schema, so the footer is read alone, and the schema's name in it is another one.
    """
    source.seek(-_TAIL, 2)
    size = int.from_bytes(source.read(4), "little")
    source.seek(-_TAIL - size, 2)
    footer = source.read(size).replace(b"ARROW:schema", b"arrow:schema")
    file = _MARK + footer + size.to_bytes(4, "little") + _MARK
    columns = pq.read_metadata(pa.BufferReader(file)).schema
    found = [columns.column(number) for number in range(len(columns))]
    wide = [one for one in found if one.length == _WIDE_BYTES and one.logical_type.type == "NONE"]
    return list(dict.fromkeys(one.path.partition(".")[0] for one in wide if one.physical_type.startswith("FIXED")))


def _row_bytes(group: Any, needed: Collection[str]) -> float:
    """How many bytes a row of a row group has in the needed columns, on the average, unpacked."""
    size = 0.0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in needed or column.path_in_schema.partition(".")[0] in needed:
            size += column.total_uncompressed_size
    return size / float(max(1, group.num_rows))
