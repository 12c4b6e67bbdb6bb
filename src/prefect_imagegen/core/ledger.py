"""The ledger's fold: what a pile of events says of every request key. Pure, vectorised, in any order of events.

Inside one attempt the highest rank wins (quarantined > delivered > failed > submitted > claimed), never the clock.
A key is delivered if any attempt is, else open if any attempt is open, else failed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.core.events import RANK, Event, ImageFacts
from prefect_imagegen.core.request import KEY_BYTES

KEY_TYPE = pa.binary(KEY_BYTES)
_TIME = pa.timestamp("us", tz="UTC")
_FACTS = pa.schema(
    [
        ("image_path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("flags", pa.list_(pa.string())),
    ]
)
EVENT_SCHEMA = pa.schema(
    [
        ("type", pa.string()),
        ("key", KEY_TYPE),
        ("attempt_id", pa.string()),
        ("run_id", pa.string()),
        ("time", _TIME),
        ("request_id", pa.string()),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
        ("http_status", pa.int32()),
        ("cost_usd", pa.float64()),
        ("latency_s", pa.float64()),
        ("model", pa.string()),
        ("cost_class", pa.string()),
        ("seed", pa.int64()),
        ("backend", pa.string()),
        ("endpoint", pa.string()),
        ("applied", pa.string()),
        *_FACTS,
    ]
)
"""One row per event: the columns of `core.events.Event`, the image's facts beside them."""
_ORDER = [("time", "ascending"), ("attempt_id", "ascending")]
"""Which of several failures is the last: told alike whatever the order of segments."""
_PLAIN = [name for name in EVENT_SCHEMA.names if name not in _FACTS.names]


def events_table(events: Sequence[Event]) -> pa.Table:
    """Events as a table of `EVENT_SCHEMA`."""
    columns: dict[str, list[Any]] = {name: [getattr(event, name) for event in events] for name in _PLAIN}
    images = [event.image for event in events]
    columns["image_path"] = [image.path if image else None for image in images]
    for name in _FACTS.names[1:-1]:
        columns[name] = [getattr(image, name) if image else None for image in images]
    columns["flags"] = [list(image.flags) if image else None for image in images]
    return pa.table(columns, schema=EVENT_SCHEMA)


def image_facts(row: dict[str, Any]) -> ImageFacts | None:
    """The image's facts in a row of `EVENT_SCHEMA` (or any row with its columns); None if there is no image."""
    if row.get("image_path") is None:
        return None
    facts = {name: row[name] for name in _FACTS.names[1:-1]}
    return ImageFacts(path=row["image_path"], flags=tuple(row["flags"] or ()), **facts)


@dataclass(frozen=True, slots=True)
class CostStats:
    """Measured costs of one class, in US dollars, and the backend's own mean latency in seconds, where it told one."""

    count: int
    low: float
    high: float
    mean: float
    latency_s: float | None


class LedgerView:
    """What the ledger said when it was read: the state of every key, and the facts of every image."""

    def __init__(self, events: pa.Table) -> None:
        ranks = pa.array([RANK[name] for name in RANK], pa.int8())
        rank = ranks.take(pc.index_in(events["type"], pa.array(list(RANK))).combine_chunks())
        events = events.append_column("rank", rank)
        self._attempts = (
            events.select(["key", "attempt_id", "rank"]).group_by(["key", "attempt_id"]).aggregate([("rank", "max")])
        )
        top = self._attempts["rank_max"]
        self.delivered_keys = _distinct(self._attempts.filter(pc.equal(top, RANK["delivered"]))["key"])
        not_delivered = self._attempts.filter(pc.invert(pc.is_in(self._attempts["key"], self.delivered_keys)))
        self._open_keys = _distinct(
            not_delivered.filter(pc.less_equal(not_delivered["rank_max"], RANK["submitted"]))["key"]
        )
        failures = events.filter(pc.equal(events["type"], "failed")).sort_by(_ORDER)
        self._failures = failures.select(["key", "error_kind", "error_message", "http_status", "attempt_id"])
        settled = not_delivered.filter(pc.invert(pc.is_in(not_delivered["key"], self._open_keys)))
        self._failed_keys = _distinct(settled["key"])
        calls = events.filter(pc.is_valid(events["request_id"])).select(["key", "request_id"])
        self._calls = calls.filter(pc.invert(pc.is_in(calls["key"], self.delivered_keys)))
        facts = events.filter(pc.equal(events["type"], "delivered"))
        quarantined = self._attempts.filter(pc.equal(top, RANK["quarantined"]))["attempt_id"].combine_chunks()
        facts = facts.filter(pc.invert(pc.is_in(facts["attempt_id"], quarantined)))
        self._facts = facts.drop_columns(["rank"])

    @classmethod
    def empty(cls) -> "LedgerView":
        """The view of a ledger without events."""
        return cls(EVENT_SCHEMA.empty_table())

    def states(self, keys: pa.Array) -> pa.Array:
        """`delivered`, `open`, `failed` or null for each key (binary(16))."""
        null = pa.scalar(None, pa.string())
        return pc.if_else(
            pc.is_in(keys, self.delivered_keys),
            "delivered",
            pc.if_else(
                pc.is_in(keys, self._open_keys), "open", pc.if_else(pc.is_in(keys, self._failed_keys), "failed", null)
            ),
        )

    def failure(self, key: bytes) -> tuple[str, str]:
        """Kind and message of the last failure of a key."""
        return self._last_failures.get(key, ("unknown", "the ledger gives no reason"))

    def request_ids(self, key: bytes) -> frozenset[str]:
        """The request ids known of a key that has no image."""
        return self._request_ids.get(key, frozenset())

    def facts(self, keys: pa.Array) -> dict[bytes, dict[str, Any]]:
        """The (first) delivered event of each key that has one, as a row of `EVENT_SCHEMA`."""
        rows = self._facts.filter(pc.is_in(self._facts["key"], keys)).sort_by(_ORDER).to_pylist()
        return {row["key"]: row for row in reversed(rows)}

    def costs(self) -> dict[str, CostStats]:
        """What the answers said of cost and latency so far, by cost class."""
        known = self._facts.filter(
            pc.and_(pc.is_valid(self._facts["cost_usd"]), pc.is_valid(self._facts["cost_class"]))
        )
        table = known.group_by("cost_class").aggregate(
            [
                ("cost_usd", "count"),
                ("cost_usd", "min"),
                ("cost_usd", "max"),
                ("cost_usd", "mean"),
                ("latency_s", "mean"),
            ]
        )
        rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        return {name: CostStats(*figures) for name, *figures in rows}

    def is_closed(self, attempt_id: str) -> bool:
        """Whether the attempt is known to have ended."""
        return attempt_id in self._closed

    @cached_property
    def _last_failures(self) -> dict[bytes, tuple[str, str]]:
        rows = self._failures.filter(pc.is_in(self._failures["key"], self._failed_keys)).to_pylist()
        return {row["key"]: (row["error_kind"] or "unknown", row["error_message"] or "") for row in rows}

    @cached_property
    def _request_ids(self) -> dict[bytes, frozenset[str]]:
        found: dict[bytes, set[str]] = {}
        for row in self._calls.to_pylist():
            found.setdefault(row["key"], set()).add(row["request_id"])
        return {key: frozenset(ids) for key, ids in found.items()}

    @cached_property
    def _closed(self) -> frozenset[str]:
        closed = self._attempts.filter(pc.greater_equal(self._attempts["rank_max"], RANK["failed"]))
        return frozenset(closed["attempt_id"].to_pylist())


def fold(tables: Iterable[pa.Table]) -> LedgerView:
    """The view of all events of some tables."""
    found = list(tables)
    return LedgerView(pa.concat_tables([EVENT_SCHEMA.empty_table(), *found]).cast(EVENT_SCHEMA))


def _distinct(keys: pa.ChunkedArray) -> pa.Array:
    found = pc.unique(keys)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
