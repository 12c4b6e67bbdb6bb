"""Parquet files as pieces of columns: only those that are needed, in pieces whose bytes are bounded too."""

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_imagegen.io.manifest_window import Bounds, Piece

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

    A file tells its sizes by row group, so a piece is bounded as far as the rows of a group are alike.
    """
    metadata = pq.read_metadata(source)
    source.seek(0)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((_row_bytes(group, needed) for group in groups), default=0.0)
    whole = largest * max((group.num_rows for group in groups), default=0)
    # A large row group is read through a buffer; of a small one each column is one request.
    buffer = _BUFFER if whole > bounds.size else 0
    with pq.ParquetFile(source, metadata=metadata, pre_buffer=False, buffer_size=buffer) as reader:
        names = [name for name in reader.schema_arrow.names if name in needed]
        rows = int(max(1, min(bounds.rows, bounds.size / max(largest, 1.0))))
        for batch in reader.iter_batches(rows, columns=names):
            yield Piece({name: batch.column(name) for name in names}, size=batch.num_rows)


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
