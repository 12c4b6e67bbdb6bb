"""A store with many segments, a clock that is years off, and what the ledger says."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import RANK, Claim, Event, ImageFacts
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, KEY_TYPE, events_table
from prefect_imagegen.store.ledger.files import to_parquet
from prefect_imagegen.store.ledger.reading import event_tables, load_ledger
from tests.support.builders.ledger import START, event_of

TYPES = list(RANK)


class WrongClock:
    """The clock of a machine that is years off."""

    def now(self) -> datetime:
        return datetime(1999, 12, 31, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("compaction waits for nothing")


CLOCK = WrongClock()


def key_of(n: int) -> bytes:
    return n.to_bytes(2, "big") * 8


def event(kind: str, key: bytes, n: int = 1, **facts) -> Event:
    attempt = f"{key.hex()}-{n}"
    if kind == "delivered":
        facts.setdefault("image", ImageFacts(f"images/{attempt}.png", 8, 9, "png", 5, "ab" * 32, ("blank",)))
    return event_of(kind, key, attempt, time=START + timedelta(seconds=n), **facts)


async def write(store, name: str, *events: Event) -> None:
    assert await store.create(layout.segment(name), to_parquet(events_table(events)))


async def fill(store, segments: int, start: int = 0) -> None:
    """Segments with keys from all over the range, each in another state."""
    for n in range(start, start + segments):
        keys = [key_of(163 * (10 * n + offset)) for offset in range(10)]
        steps = [event(kind, key) for key in keys for kind in TYPES[: 1 + key[1] % len(TYPES)]]
        await write(store, f"s{n:04d}", *steps)


async def all_events(store) -> list[dict]:
    tables = [table async for table in event_tables(store)]
    rows = pa.concat_tables([EVENT_SCHEMA.empty_table(), *tables]).to_pylist()
    return sorted(rows, key=lambda row: (row["key"], row["attempt_id"], row["type"]))


async def said(store) -> tuple:
    """All that a ledger says."""
    view = await load_ledger(store)
    keys = pa.array([key_of(163 * n) for n in range(400)], KEY_TYPE)
    closed = [(view.rank_of(f"{key.as_py().hex()}-1") >= RANK["failed"]) for key in keys]
    return view.states(keys).to_pylist(), view.facts(keys), closed


def paths(store, folder: str) -> list[str]:
    return sorted(path for path in store.objects if path.startswith(f"{folder}/"))


CLAIM = Claim("run-1", "n1", "a", datetime(2026, 8, 1, tzinfo=UTC), {})
