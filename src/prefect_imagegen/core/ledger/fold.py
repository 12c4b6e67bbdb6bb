"""The fold of the ledger: the state of every request key, from its events. Pure, vectorised, for any order of events.

Inside one attempt the highest rank wins (quarantined > delivered > retry_asked > failed > submitted > claimed), never
the clock. A key is delivered if any attempt is; else its highest attempt says whether it is open or failed, and why.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.core.ledger.attempts import Attempts, last_of_each, numbers_of
from prefect_imagegen.core.ledger.compacting_table import GrowingTable
from prefect_imagegen.core.ledger.delivery_columns import (
    DELIVERY_COLUMNS,
    IMAGE_COLUMNS,
    delivery_schema,
    delivery_values,
)
from prefect_imagegen.core.ledger.events import RANK, RETRY_ASKED, Event
from prefect_imagegen.core.ledger.keyed_table import KeyedTable, SortedRun
from prefect_imagegen.core.request.request import KEY_BYTES

KEY_TYPE = pa.binary(KEY_BYTES)
_TIME = pa.timestamp("us", tz="UTC")
EVENT_SCHEMA = delivery_schema(
    pa.field("type", pa.string()),
    pa.field("key", KEY_TYPE),
    pa.field("attempt_id", pa.string()),
    pa.field("run_id", pa.string()),
    pa.field("time", _TIME),
    "request_id",
    pa.field("error_kind", pa.string()),
    pa.field("error_message", pa.string()),
    "http_status",
    "cost_usd",
    "latency_s",
    pa.field("model", pa.string()),
    pa.field("cost_class", pa.string()),
    pa.field("seed", pa.int64()),
    pa.field("backend", pa.string()),
    "endpoint",
    "applied",
    "account",
    *IMAGE_COLUMNS,
)
"""One row per event: the fields of `core.ledger.events.Event`, with the facts of the image as columns."""
EVENT_ORDER = [("time", "ascending"), ("attempt_id", "ascending")]
"""The order of events, which does not depend on the order of segments."""
_FAILURES = pa.schema(
    [
        ("key", KEY_TYPE),
        ("n", pa.int32()),
        ("asked", pa.bool_()),
        *(EVENT_SCHEMA.field(name) for name in ("time", "attempt_id", "error_kind", "error_message")),
    ]
)
"""The columns kept of failures, in sort order: the last row of a key is its last failure, by number, not by time."""
COURSE = pa.schema(
    [
        EVENT_SCHEMA.field(name)
        for name in (
            *("key", "attempt_id", "type", "time", "run_id", "request_id"),
            *("error_kind", "error_message", "account", "endpoint"),
        )
    ]
)
"""The columns of the course of attempts that led to no image."""
_CALLS = pa.schema([EVENT_SCHEMA.field(name) for name in ("request_id", "time")])
_GATHERED_ROWS = 1 << 15


def events_table(events: Sequence[Event]) -> pa.Table:
    """Events as a table of `EVENT_SCHEMA`."""
    columns = delivery_values(events)
    own = (name for name in EVENT_SCHEMA.names if name not in DELIVERY_COLUMNS)
    columns |= {name: [getattr(event, name) for event in events] for name in own}
    return pa.table(columns, schema=EVENT_SCHEMA)


def first_of_each_key(events: pa.Table) -> dict[bytes, dict[str, Any]]:
    """The first row of each key in a table of `EVENT_SCHEMA`."""
    return {row["key"]: row for row in reversed(events.to_pylist())}


@dataclass(frozen=True, slots=True)
class CostStats:
    """The measured costs of one cost class in US dollars, and the provider's own mean latency in seconds, if known."""

    count: int
    low: float
    high: float
    mean: float
    latency_s: float | None


class EventStorage(Protocol):
    """Where a fold keeps the events with an image, a request_id or an end: written once, then read on demand."""

    def write(self, events: pa.Table) -> None:
        """Write a table of `EVENT_SCHEMA`."""

    def __iter__(self) -> Iterator[pa.Table]:
        """All events written, in parts that fit into memory."""


class _InMemory(list[pa.Table]):
    def write(self, events: pa.Table) -> None:
        self.append(events)


class LedgerView:
    """The ledger as it was read: the state of every key and the facts of every image.

    Holds 21 bytes an attempt, and the last failure of each failed key; all else is read from `events` on demand.
    """

    def __init__(
        self, attempts: Attempts, failures: pa.Table, quarantined: pa.Array, events: Iterable[pa.Table]
    ) -> None:
        self._attempts = attempts
        self._failures = SortedRun(failures)
        self._quarantined = quarantined
        self._storage = events

    @classmethod
    def empty(cls) -> "LedgerView":
        """The view of a ledger without events."""
        return fold([])

    @property
    def delivered_keys(self) -> pa.Array:
        """The keys (binary(16), sorted) whose image was delivered."""
        return self._attempts.delivered_keys

    def states(self, keys: pa.Array) -> pa.Array:
        """`delivered`, `open`, `failed` or null for each key (binary(16))."""
        return self._attempts.states(keys)

    def state(self, key: bytes) -> str | None:
        """The state of one key: see `states`."""
        return self._attempts.state(key)

    def failure(self, key: bytes) -> tuple[str, str]:
        """The error kind and message of the last failure of a key."""
        rows = self._failures.rows_of(key).to_pylist()
        if not rows:
            return ("unknown", "the ledger gives no reason")
        kind, message = rows[-1]["error_kind"], rows[-1]["error_message"]
        return (kind or "unknown", message or "")

    def delivered(self, keys: pa.Array) -> pa.Table:
        """All delivered events of some keys, sorted by time. Reads all events; for many keys see `Deliveries`."""
        wanted = (events.filter(pc.is_in(events["key"], keys)) for events in self.all_delivered())
        return pa.concat_tables([EVENT_SCHEMA.empty_table(), *wanted]).sort_by(EVENT_ORDER)

    def all_delivered(self) -> Iterator[pa.Table]:
        """All delivered events, in parts that fit into memory."""
        for part in self._storage:
            events = part.filter(_delivered(part))
            yield events.filter(pc.invert(pc.is_in(events["attempt_id"], self._quarantined)))

    def facts(self, keys: pa.Array) -> dict[bytes, dict[str, Any]]:
        """The first delivered event of each key that has one, as a row of `EVENT_SCHEMA`."""
        return first_of_each_key(self.delivered(keys))

    def course(self, key: bytes) -> list[dict[str, Any]]:
        """The events of the attempts of a key without an image: rows of `COURSE`."""
        return list(self._courses.rows_of(key).to_pylist())

    def ranks(self, key: bytes) -> Mapping[int, int]:
        """The rank of each attempt of a key, by its number."""
        return self._attempts.ranks(key)

    def newest_calls(
        self, *, account: str | None = None, run_id: str | None = None, before: datetime | None = None, most: int = 3
    ) -> list[tuple[str, datetime]]:
        """The newest request ids of an account, or of a run, with the times of their first events; newest first."""
        calls = GrowingTable(_CALLS, _earliest)
        for part in self._calls_of(account, run_id):
            early = part if before is None else part.filter(pc.less(part["time"], before))
            calls.add(early.select(_CALLS.names))
        newest = calls.table().sort_by([("time", "descending"), ("request_id", "descending")]).slice(0, most)
        return [(row["request_id"], row["time"]) for row in newest.to_pylist()]

    def calls_among(
        self, request_ids: Collection[str], *, account: str | None = None, run_id: str | None = None
    ) -> frozenset[str]:
        """Those of some request ids that are known as calls of an account, or of a run."""
        asked = pa.array(sorted(request_ids), pa.string())
        calls: set[str] = set()
        for part in self._calls_of(account, run_id):
            calls.update(part.filter(pc.is_in(part["request_id"], asked))["request_id"].to_pylist())
        return frozenset(calls)

    def _calls_of(self, account: str | None, run_id: str | None) -> Iterator[pa.Table]:
        for part in self._storage:
            owned = pc.equal(part["account"], account) if account is not None else pc.equal(part["run_id"], run_id)
            yield part.filter(pc.and_(owned, pc.is_valid(part["request_id"])).fill_null(False))

    def known_ids(self, request_ids: Collection[str]) -> frozenset[str]:
        """Those of some request ids that any event names. Reads all events."""
        asked = pa.array(sorted(request_ids), pa.string())
        known: set[str] = set()
        for part in self._storage:
            known.update(part.filter(pc.is_in(part["request_id"], asked))["request_id"].to_pylist())
        return frozenset(known)

    def costs(self) -> dict[str, CostStats]:
        """The costs and latencies measured so far, by cost class; quarantined images count too."""
        columns = ["cost_class", "cost_usd", "latency_s"]
        parts = (part.select(columns).filter(_measured(part)) for part in self._storage)
        costs = pa.concat_tables([EVENT_SCHEMA.empty_table().select(columns), *parts])
        figures = [("cost_usd", how) for how in ("count", "min", "max", "mean")] + [("latency_s", "mean")]
        stats = costs.group_by("cost_class").aggregate(figures)
        names = [f"{name}_{how}" for name, how in figures]
        return {row["cost_class"]: CostStats(*(row[name] for name in names)) for row in stats.to_pylist()}

    def rank_of(self, attempt_id: str) -> int:
        """The rank of an attempt; -1 for an unknown one."""
        return self._attempts.rank_of(attempt_id)

    def next_attempt(self, key: bytes) -> int:
        """The number of the claim to try first: that of the last attempt if it is open, else the next one.

        No number is used twice, even after compaction has removed the claims of the key.
        """
        ranks = self._attempts.ranks(key)
        last = max(ranks, default=0)
        return 1 if last < 1 else last + (ranks[last] >= RANK["failed"])

    @cached_property
    def _courses(self) -> SortedRun:
        """The course of all keys without an image; made on demand, since few runs need it."""
        wanted = (self._undelivered(part).select(COURSE.names) for part in self._storage)
        return SortedRun(pa.concat_tables([COURSE.empty_table(), *wanted]).sort_by("key"))

    def _undelivered(self, events: pa.Table) -> pa.Table:
        keys = events["key"].combine_chunks()
        return events.filter(pc.is_in(keys, self._attempts.undelivered_among(keys)))


class LedgerFold:
    """Folds events into a `LedgerView`, table by table."""

    def __init__(self, events: EventStorage) -> None:
        self._storage = events
        self._attempts = Attempts()
        self._failures = KeyedTable(_FAILURES, _last_of_each_key)
        self._quarantined: list[pa.Array] = []
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def add(self, events: pa.Table) -> None:
        """Add a table of `EVENT_SCHEMA`. Small tables are gathered, since every step has a fixed cost."""
        self._waiting.append(events)
        self._waiting_rows += len(events)
        if self._waiting_rows >= _GATHERED_ROWS:
            self._take_in()

    def view(self) -> LedgerView:
        """The view of all events added."""
        self._take_in()
        self._attempts.compact()
        failures = self._failures.table()
        delivered = self._attempts.delivered_among(failures["key"].combine_chunks())
        failures = failures.filter(pc.invert(pc.is_in(failures["key"], delivered)))
        quarantined = pa.concat_arrays([pa.array([], pa.string()), *self._quarantined])
        return LedgerView(self._attempts, failures, quarantined, self._storage)

    def _take_in(self) -> None:
        if not self._waiting:
            return
        events = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._waiting_rows = [], 0
        self._attempts.add(events)
        self._storage.write(events.filter(pc.or_(_is_final(events), pc.is_valid(events["request_id"]))))
        quarantined = events.filter(pc.equal(events["type"], "quarantined"))
        self._quarantined.append(quarantined["attempt_id"].combine_chunks())
        self._failures.add(_failures_of(events))


def fold(tables: Iterable[pa.Table]) -> LedgerView:
    """The view of all events in some tables, which are held in memory."""
    folding = LedgerFold(_InMemory())
    for table in tables:
        folding.add(table.cast(EVENT_SCHEMA))
    return folding.view()


def _earliest(calls: pa.Table) -> pa.Table:
    """Each call once, with the time of its first event."""
    earliest = calls.group_by("request_id").aggregate([("time", "min")])
    return earliest.rename_columns(_CALLS.names).cast(_CALLS)


def _last_of_each_key(failures: pa.Table) -> pa.Table:
    if not len(failures):
        return failures
    ordered = failures.sort_by([(name, "ascending") for name in _FAILURES.names])
    return ordered.filter(last_of_each(ordered["key"]))


def _failures_of(events: pa.Table) -> pa.Table:
    failed = events.filter(pc.and_(pc.equal(events["type"], "failed"), pc.is_valid(events["key"]))).combine_chunks()
    asked = pc.equal(failed["error_kind"], RETRY_ASKED).fill_null(False)
    table = failed.append_column("n", numbers_of(failed["attempt_id"].combine_chunks())).append_column("asked", asked)
    return table.select(_FAILURES.names)


def _is_final(events: pa.Table) -> pa.ChunkedArray:
    """A mask of the events with an image or an end."""
    return pc.is_in(events["type"], pa.array(["delivered", "failed"]))


def _delivered(events: pa.Table) -> pa.ChunkedArray:
    return pc.equal(events["type"], "delivered")


def _measured(events: pa.Table) -> pa.ChunkedArray:
    return pc.and_(_delivered(events), pc.and_(pc.is_valid(events["cost_class"]), pc.is_valid(events["cost_usd"])))
