"""A table to which parts are added, and which is compacted whenever it has doubled. Pure."""

from collections.abc import Callable

import pyarrow as pa

_MIN_ROWS = 1 << 18


class GrowingTable:
    """Holds `reduce` of all parts added: in at most twice its memory and a part, in a few times the time of one call.

    `reduce` takes a table of rows and returns those that count, in order. It must be idempotent.
    """

    def __init__(self, schema: pa.Schema, reduce: Callable[[pa.Table], pa.Table]) -> None:
        self._reduce = reduce
        self._reduced = schema.empty_table()
        self._parts: list[pa.Table] = []
        self._rows = 0

    def add(self, part: pa.Table) -> None:
        """Add a part."""
        self._parts.append(part)
        self._rows += len(part)
        if self._rows > max(len(self._reduced), _MIN_ROWS):
            self.table()

    def table(self) -> pa.Table:
        """All rows that count, in one chunk. Costs nothing if no part was added since the last call."""
        if self._parts:
            self._reduced = self._reduce(pa.concat_tables([self._reduced, *self._parts])).combine_chunks()
            self._parts, self._rows = [], 0
        return self._reduced
