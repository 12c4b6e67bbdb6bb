"""Tables with an index on the request key: a query for a few keys reads a few rows, however many there are. Pure.

Keys are hashes, so the first bytes of a key tell its approximate place in a sorted table. Keys that share them are
found as well, only slower.
"""

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

FAN_OUT = 4
"""This many runs of one size are merged into one of the next size: a row is sorted again once for each size."""
_BUCKET_ROWS = 8
_PREFIX_BYTES = 4
_PREFIX_BITS = 8 * _PREFIX_BYTES


class SortedRun:
    """A table sorted by its column `key` (binary(16), none null), with an index on the first bytes of the keys."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return len(self.table)

    def near(self, keys: pa.Array) -> pa.Table:
        """All rows of some keys (none null), and a few of others near them."""
        if not len(self.table) or not len(keys):
            return self.table.slice(0, 0)
        prefixes = _unsigned(_prefixes(keys))
        buckets = pc.unique(pc.shift_right(prefixes, pa.scalar(self._shift, pa.uint32())))
        buckets = buckets.take(pc.sort_indices(buckets))
        return pa.Table.from_struct_array(self._buckets.take(buckets).flatten())

    def rows_of(self, key: bytes) -> pa.Table:
        """The rows of one key, in order."""
        if not len(self.table):
            return self.table
        bucket = int.from_bytes(key[:_PREFIX_BYTES], "big") >> self._shift
        start, end = self._starts[bucket], self._starts[bucket + 1]
        keys = self.table["key"].chunk(0).slice(start, end - start).to_pylist()
        first = bisect_left(keys, key)
        return self.table.slice(start + first, keys.count(key))

    @cached_property
    def _shift(self) -> int:
        """Bits of a prefix that do not name its bucket."""
        # One bit at least: Arrow shifts by less than the width only.
        return _PREFIX_BITS - max((len(self.table) // _BUCKET_ROWS).bit_length() - 1, 1)

    @cached_property
    def _starts(self) -> "array[int]":
        """The first row of each bucket, and the end of the last one."""
        prefixes = _prefixes(self.table["key"].chunk(0))
        count = 1 << (_PREFIX_BITS - self._shift)
        starts = array("i", (bisect_left(prefixes, bucket << self._shift) for bucket in range(count)))
        starts.append(len(self.table))
        return starts

    @cached_property
    def _buckets(self) -> pa.ListArray:
        starts = pa.Array.from_buffers(pa.int32(), len(self._starts), [None, pa.py_buffer(self._starts)])
        # One chunk, and no copy.
        return pa.ListArray.from_arrays(starts, self.table.to_struct_array().chunk(0))


class KeyedTable:
    """Holds `reduce` of all parts added, in sorted runs of growing size (`FAN_OUT` runs of a size become one).

    `reduce` takes all rows of some keys and returns those that count, sorted by `key` (none null). It must be
    idempotent. Adding n rows sorts each of them log(n) times, in about three times their memory. Rows of one key stay
    in the order in which they were added, if `reduce` keeps it.
    """

    def __init__(self, schema: pa.Schema, reduce: Callable[[pa.Table], pa.Table]) -> None:
        self._reduce = reduce
        self._schema = schema
        self._sizes: list[list[SortedRun]] = []

    def add(self, part: pa.Table) -> None:
        """Add a part."""
        if not len(part):
            return
        run = self._run(part)
        for runs in self._sizes:
            runs.append(run)
            if len(runs) < FAN_OUT:
                return
            run = self._merged(runs)
            runs.clear()
        self._sizes.append([run])

    def of(self, keys: pa.Array) -> pa.Table:
        """The rows of some keys (none null), after `reduce`."""
        near = []
        for run in self._runs:
            rows = run.near(keys)
            near.append(rows.filter(pc.is_in(rows["key"], keys)))
        return self._reduce(pa.concat_tables([self._schema.empty_table(), *near])).combine_chunks()

    def rows_of(self, key: bytes) -> pa.Table:
        """The rows of one key, before `reduce`."""
        return pa.concat_tables([self._schema.empty_table(), *(run.rows_of(key) for run in self._runs)])

    def table(self) -> pa.Table:
        """All rows that count, in one chunk, sorted by key. Cheap if nothing was added since the last call."""
        runs = self._runs
        if len(runs) > 1:
            self._sizes.clear()
            self._sizes.append([self._merged(runs)])
        return self._runs[0].table if self._runs else self._schema.empty_table()

    @property
    def _runs(self) -> list[SortedRun]:
        """In the order in which their rows came."""
        return [run for runs in reversed(self._sizes) for run in runs]

    def _merged(self, runs: list[SortedRun]) -> SortedRun:
        return self._run(pa.concat_tables([run.table for run in runs]))

    def _run(self, rows: pa.Table) -> SortedRun:
        return SortedRun(self._reduce(rows))


def sorted_by_key(rows: pa.Table) -> pa.Table:
    """The rows, sorted by key: a `reduce` that keeps all rows."""
    return rows.sort_by("key")


def _prefixes(keys: pa.Array) -> "array[int]":
    """The first bytes of every key as numbers, in the order of the keys."""
    cut = pc.binary_slice(keys, 0, _PREFIX_BYTES)
    raw = memoryview(cut.buffers()[1] or b"")[_PREFIX_BYTES * cut.offset : _PREFIX_BYTES * (cut.offset + len(cut))]
    prefixes = array("I", bytes(raw))
    if sys.byteorder == "little":
        prefixes.byteswap()
    return prefixes


def _unsigned(numbers: "array[int]") -> pa.Array:
    return pa.Array.from_buffers(pa.uint32(), len(numbers), [None, pa.py_buffer(numbers)])
