"""A table that grows by parts and is put in order whenever it has doubled. Pure."""

from collections.abc import Callable

import pyarrow as pa

_MIN_ROWS = 1 << 18


class GrowingTable:
    """Holds `reduce` of all parts: in memory at most twice its size and a part, in time a few times that of one go.

    `reduce` takes a table of all rows and gives back the rows that count, in order; it may be applied again and again.
    """

    def __init__(self, schema: pa.Schema, reduce: Callable[[pa.Table], pa.Table]) -> None:
        self._reduce = reduce
        self._reduced = schema.empty_table()
        self._parts: list[pa.Table] = []
        self._rows = 0

    def add(self, part: pa.Table) -> None:
        """Take in a part."""
        self._parts.append(part)
        self._rows += len(part)
        if self._rows > max(len(self._reduced), _MIN_ROWS):
            self.table()

    def table(self) -> pa.Table:
        """All rows that count, in one chunk. Changes nothing where nothing came in since the last time."""
        if self._parts:
            self._reduced = self._reduce(pa.concat_tables([self._reduced, *self._parts])).combine_chunks()
            self._parts, self._rows = [], 0
        return self._reduced
