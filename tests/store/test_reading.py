"""A ledger that was read before is read again only if it has changed."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import Event
from prefect_imagegen.core.ledger.fold import events_table
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.files import to_parquet
from prefect_imagegen.store.ledger.reading import read_again, read_ledger
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store

pytestmark = pytest.mark.anyio


def key_of(number: int) -> bytes:
    return number.to_bytes(2, "big") * 8


async def write(store: FsspecObjectStore, number: int) -> None:
    """A segment that says of one more key that it has failed."""
    key = key_of(number)
    failed = Event("failed", key, f"{key.hex()}-1", "run", datetime(2026, 8, 1, tzinfo=UTC), error_kind="nsfw")
    assert await store.create(layout.segment(f"s{number}"), to_parquet(events_table([failed])))


async def test_what_is_unchanged_is_not_read_again(tmp_path: Path) -> None:
    """The same reading comes back, of an empty ledger too; damage of a file that was read before is not met again."""
    store = open_object_store(str(tmp_path))
    empty = await read_ledger(store)
    assert await read_again(store, empty) is empty
    await write(store, 1)
    reading = await read_again(store, empty)
    assert reading.view.state(key_of(1)) == "failed"
    await store.put(layout.segment("s1"), b"no Parquet any more")
    assert await read_again(store, reading) is reading
    store.close()


async def test_what_others_wrote_is_read(tmp_path: Path) -> None:
    """A new segment is read; so is a generation that took in segments which are gone, though none is left to list."""
    store = open_object_store(str(tmp_path))
    await write(store, 1)
    first = await read_ledger(store)
    await write(store, 2)
    second = await read_again(store, first)
    assert (first.view.state(key_of(2)), second.view.state(key_of(2))) == (None, "failed")
    await write(store, 3)
    assert await compact(store, SystemClock(), more_than=0)
    for number in (1, 2, 3):
        await store.delete(layout.segment(f"s{number}"))
    third = await read_again(store, second)
    assert [third.view.state(key_of(number)) for number in (1, 2, 3)] == ["failed"] * 3
    assert (third.generation, third.segments) == (1, frozenset())
    assert await read_again(store, third) is third
    store.close()


async def test_a_compaction_alone_is_a_change(tmp_path: Path) -> None:
    """A newer generation is read even where the same segments are still listed."""
    store = open_object_store(str(tmp_path))
    await write(store, 1)
    reading = await read_ledger(store)
    assert await compact(store, SystemClock(), more_than=0)
    again = await read_again(store, reading)
    assert (again is reading, again.segments, again.generation) == (False, reading.segments, 1)
    store.close()
