"""Distributes the delivered events of many keys to the groups that ask for them, in one reading of the ledger. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.core.ledger.fold import EVENT_ORDER, EVENT_SCHEMA, KEY_TYPE
from prefect_imagegen.core.ledger.keyed_table import KeyedTable, sorted_by_key

MOST_GROUPS = 256
"""The most groups: more would cost more small parts than they save memory."""
_ASKED = pa.schema([("key", KEY_TYPE), ("group", pa.int32())])
_ROWS_AT_ONCE = 1 << 18


class Spool(Protocol):
    """A temporary place for events: parts are written once, then read by number."""

    def write(self, events: pa.Table) -> None:
        """Write a table of `EVENT_SCHEMA` as one part."""

    def __len__(self) -> int:
        """The number of parts written."""

    def __getitem__(self, number: int, /) -> pa.Table:
        """One part, after all are written."""


class Deliveries:
    """The delivered events of groups of keys: groups `ask`, then all events are read (`bring`), then `of` returns them.

    Takes 20 bytes of memory for each key asked for, until the events are read.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._asked = KeyedTable(_ASKED, sorted_by_key)
        self._parts: defaultdict[int, list[int]] = defaultdict(list)

    def ask(self, group: int, keys: pa.Array) -> None:
        """Ask for the events of some keys (none null) for a group. Several groups may ask for one key."""
        keys = pc.unique(keys)
        self._asked.add(pa.table([keys, pa.array([group], pa.int32()).take(_zeros(len(keys)))], schema=_ASKED))

    def bring(self, delivered: Iterable[pa.Table]) -> None:
        """Read all delivered events, as tables of `EVENT_SCHEMA`. To be called once."""
        waiting: list[pa.Table] = []
        self._asked.table()
        for events in delivered:
            waiting.append(events.combine_chunks())
            if sum(map(len, waiting)) >= _ROWS_AT_ONCE:
                self._sort(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            self._sort(pa.concat_tables(waiting))
        self._asked = KeyedTable(_ASKED, sorted_by_key)

    def of(self, group: int) -> pa.Table:
        """The events of a group's keys, sorted by time."""
        parts = [self._spool[number] for number in self._parts[group]]
        return pa.concat_tables([EVENT_SCHEMA.empty_table(), *parts]).sort_by(EVENT_ORDER)

    def _sort(self, events: pa.Table) -> None:
        """Write the events, one part for each group that asks for some of them."""
        asked = self._asked.of(pc.unique(events["key"].combine_chunks()).drop_null())
        asked = asked.group_by(["key", "group"]).aggregate([])  # parts of one group may ask for the same
        rows = pa.table({"key": events["key"], "row": pa.array(range(len(events)), pa.int32())})
        matches = rows.join(asked, "key", join_type="inner").sort_by([("group", "ascending"), ("row", "ascending")])
        counts = matches.group_by("group").aggregate([("row", "count")]).sort_by("group")
        start = 0
        for group, count in zip(counts["group"].to_pylist(), counts["row_count"].to_pylist(), strict=True):
            first = len(self._spool)
            self._spool.write(events.take(matches["row"].slice(start, count)))
            self._parts[group] += range(first, len(self._spool))
            start += count


def group_of(index: int, count: int) -> int:
    """The group of the item at `index` of `count` items in a row, for at most `MOST_GROUPS` groups."""
    return index // -(-count // MOST_GROUPS)


def _zeros(count: int) -> pa.Array:
    return pa.nulls(count, pa.int32()).fill_null(0)
