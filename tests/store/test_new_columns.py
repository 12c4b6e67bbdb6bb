"""Ledgers that versions with fewer columns began are read, added to and compacted; what they did not tell is null."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.delivery_columns import IMAGE_COLUMNS
from prefect_imagegen.core.ledger.events import Event, ImageFacts
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, KEY_TYPE, events_table
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.files import ledger_files, to_parquet
from prefect_imagegen.store.ledger.reading import load_ledger
from prefect_imagegen.store.object_store import open_object_store

pytestmark = pytest.mark.anyio
LATER = ["queue_s", "account"]
"""Columns that came after the first ledgers were written."""


class StandingClock:
    """A clock that stands."""

    def now(self) -> datetime:
        return datetime(2026, 11, 27, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("compaction waits for nothing")


def delivered(n: int) -> Event:
    key, when = key_of(n), datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=n)
    image = ImageFacts(layout.image(key.hex(), "png"), 8, 9, "png", 5, "ab" * 32)
    return Event(
        "delivered", key, f"{key.hex()}-1", "run", when, image=image, cost_usd=0.04, queue_s=n / 10, account="acc"
    )


def key_of(n: int) -> bytes:
    return n.to_bytes(2, "big") * 8


async def test_old_and_new_segments_are_one_ledger(tmp_path) -> None:
    """Segments with and without later columns, mixed and compacted in turn, keep every event and every known fact."""
    store = open_object_store(str(tmp_path / "store"))
    for n in range(1, 9):
        table = events_table([delivered(n)])
        is_old = n % 2 == 1
        await store.create(layout.segment(f"{n:03d}"), to_parquet(table.drop_columns(LATER) if is_old else table))
        if n % 3 == 0:
            assert await compact(store, StandingClock(), more_than=0)
    for compacted in (False, True):
        if compacted:
            assert await compact(store, StandingClock(), more_than=0)
        view = await load_ledger(store)
        rows = view.facts(pa.array([key_of(n) for n in range(1, 9)], KEY_TYPE))
        told = {n: (rows[key_of(n)]["queue_s"], rows[key_of(n)]["account"]) for n in range(1, 9)}
        assert told == {n: (None, None) if n % 2 else (n / 10, "acc") for n in range(1, 9)}
        assert {row["cost_usd"] for row in rows.values()} == {0.04}
    files = await ledger_files(store)
    assert files.parts
    for info in files.parts:
        assert pq.read_schema(pa.BufferReader(await store.get(info.path))).equals(EVENT_SCHEMA)


@pytest.mark.parametrize("name", sorted({*LATER, "applied", "endpoint", "latency_s", *IMAGE_COLUMNS} - {"image_path"}))
async def test_a_segment_may_lack_any_column_of_deliveries(name, tmp_path) -> None:
    """Whatever fact of deliveries an older version did not record, the key's image counts as delivered."""
    store = open_object_store(str(tmp_path / "store"))
    await store.create(layout.segment("old"), to_parquet(events_table([delivered(1)]).drop_columns([name])))
    await store.create(layout.segment("new"), to_parquet(events_table([delivered(2)])))
    assert await compact(store, StandingClock(), more_than=0)
    view = await load_ledger(store)
    assert [view.state(key_of(n)) for n in (1, 2)] == ["delivered", "delivered"]
    assert view.facts(pa.array([key_of(1)], KEY_TYPE))[key_of(1)][name] is None
