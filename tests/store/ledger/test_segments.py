"""The ledger in an object store: events, segments and generations."""

import asyncio
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import ImageFacts
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, KEY_TYPE, LedgerView, events_table
from prefect_imagegen.store.ledger.ledger import FLUSH_EVENTS, StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger
from tests.store.ledger.conftest import (
    KEY,
    OTHER,
    DoublingStore,
    FailingStore,
    StillClock,
    event,
    ledger,
    segment_of,
)

pytestmark = pytest.mark.anyio


async def states(store, *keys):
    return (await load_ledger(store)).states(pa.array(keys or [KEY], KEY_TYPE)).to_pylist()


async def test_events_are_durable_after_a_flush(store) -> None:
    """What was recorded is in the store after a flush, with every fact, and can be read by another process."""
    book = ledger(store)
    image = ImageFacts("images/00/x.png", 1024, 768, "png", 5, "ab" * 32, ("blank",))
    await book.record(event())
    await book.record(event("delivered", image=image, cost_usd=0.04, request_id="id-1"))
    assert await states(store) == [None]
    await book.flush()
    assert await states(store) == ["delivered"]
    row = (await load_ledger(store)).facts(pa.array([KEY], KEY_TYPE))[KEY]
    assert (row["image_path"], row["flags"], row["cost_usd"]) == ("images/00/x.png", ["blank"], 0.04)


async def test_a_flush_without_events_writes_nothing(store) -> None:
    """Nothing to say leaves no segment, and what was said is not said again."""
    book = ledger(store)
    await book.flush()
    assert list(await store.list("ledger")) == []
    await book.record(event())
    await book.flush()
    await book.flush()
    assert len(await store.list("ledger")) == 1


async def test_segments_have_names_of_their_own(store) -> None:
    """Segments of one process and of several, written in the same instant, never share a name."""
    books = [ledger(store, nonce) for nonce in ("n1", "n2")]
    for n in range(3):
        for book in books:
            await book.record(event(attempt=f"{n}"))
            await book.flush()
    paths = [info.path for info in await store.list("ledger/segments")]
    assert len(set(paths)) == 6
    assert all(path.startswith("ledger/segments/20260801T120000") and path.endswith(".parquet") for path in paths)


async def test_flushes_at_once_lose_and_double_nothing(store) -> None:
    """Several flushes at once, with events coming in between, write every event once."""
    book = ledger(store)

    async def record_one(n: int) -> None:
        await book.record(event(attempt=f"{n}"))
        await book.flush()

    await asyncio.gather(*map(record_one, range(20)))
    await book.flush()
    tables = [pq.read_table(pa.BufferReader(await store.get(info.path))) for info in await store.list("ledger")]
    attempts = [name for table in tables for name in table["attempt_id"].to_pylist()]
    assert sorted(map(int, attempts)) == list(range(20))


async def test_a_failed_flush_keeps_its_events(store) -> None:
    """Events whose flush failed stay in memory and are written by the next."""
    book = ledger(FailingStore(store, 1))
    await book.record(event())
    with pytest.raises(StoreError):
        await book.flush()
    await book.record(event("failed"))
    await book.flush()
    assert await states(store) == ["failed"]


async def test_a_segment_sent_twice_is_written(store) -> None:
    """A segment whose put was sent again by the client library meets itself, and counts as written."""
    book = ledger(DoublingStore(store, 0))
    await book.record(event())
    await book.flush()
    assert await states(store) == ["open"]


async def test_a_full_buffer_is_flushed(store) -> None:
    """Many events do not wait in memory: a full buffer is flushed by itself."""
    book = ledger(store)
    for n in range(FLUSH_EVENTS - 1):
        await book.record(event(attempt=f"{n}"))
    assert await states(store) == [None]
    await book.record(event(attempt="last"))
    assert await states(store) == ["open"]


async def test_events_do_not_wait_for_long(store) -> None:
    """A few events are flushed after 15 seconds."""
    clock = StillClock()
    book = StoreLedger(store, LedgerView.empty(), run_id="run-1", nonce="n1", clock=clock)
    await book.record(event())
    task = asyncio.create_task(book.keep_flushing())
    await clock.enough.wait()
    task.cancel()
    assert clock.sleeps == [15.0] * 4
    assert await states(store) == ["open"]


async def test_an_attempt_that_ended_is_closed_at_once(store) -> None:
    """An attempt is closed as soon as its end was recorded, flushed or not, and also if an earlier run ended it."""
    book = ledger(store)
    await book.record(event())
    assert not book.is_closed("a1")
    await book.record(event("failed"))
    assert book.is_closed("a1")
    await book.flush()
    assert ledger(store, "n2", await load_ledger(store)).is_closed("a1")


async def test_an_empty_store_has_an_empty_ledger(store) -> None:
    """A new store's ledger knows nothing, and reading it writes nothing."""
    assert await states(store) == [None]
    assert list(await store.list("")) == []


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "other table"])
async def test_a_damaged_segment_is_named(store, damage) -> None:
    """A segment that cannot be read is an error that names it: a ledger read in part would buy images again."""
    whole = segment_of(event())
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": ["not sixteen bytes"]}), sink)
    data = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"hello", "other table": sink.getvalue()}
    await store.put("ledger/segments/good.parquet", whole)
    await store.put("ledger/segments/bad.parquet", data[damage])
    with pytest.raises(StoreError) as raised:
        await load_ledger(store)
    assert raised.value.kind == "store_damaged"
    assert "ledger/segments/bad.parquet" in raised.value.message
    assert "Restore" in raised.value.remedy


async def test_a_segment_of_an_older_version_is_read(store) -> None:
    """A segment without the columns that came later, or with more of them, is read."""
    table = events_table([event("failed")]).drop_columns(["applied", "endpoint"])
    table = table.append_column("later", pa.array(["x"]))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    await store.put("ledger/segments/old.parquet", sink.getvalue())
    assert await states(store) == ["failed"]


async def test_other_files_are_not_segments(store) -> None:
    """What is no Parquet file among the segments is left alone."""
    await store.put("ledger/segments/notes.txt", b"hello")
    assert await states(store) == [None]


async def generation(store, g, files, absorbed=()) -> None:
    for name, data in files.items():
        await store.put(f"{layout.GENERATIONS}/{g}/{name}", data)
    manifest = {"files": [f"{layout.GENERATIONS}/{g}/{name}" for name in files], "absorbed": list(absorbed)}
    await store.put(f"{layout.GENERATIONS}/{g}.json", json.dumps(manifest).encode())


async def test_the_newest_generation_is_read(store) -> None:
    """Readers take the newest generation, by number and not by name, and every segment that it has not absorbed."""
    await generation(store, 9, {"part-0.parquet": segment_of(event("failed"))})
    await generation(store, 10, {"part-0.parquet": segment_of(event("failed", OTHER))}, ["s1.parquet"])
    await store.put("ledger/segments/s2.parquet", segment_of(event("claimed")))
    assert await states(store, KEY, OTHER) == ["open", "failed"]


async def test_absorbed_segments_are_left_out(store) -> None:
    """A segment that the generation absorbed is not read again, not even where it is damaged or gone."""
    await generation(
        store, 1, {"a.parquet": segment_of(event("delivered", image=None))}, ["s1.parquet", "gone.parquet"]
    )
    await store.put("ledger/segments/s1.parquet", b"damaged")
    assert await states(store) == ["delivered"]


async def test_a_missing_generation_file_is_named(store) -> None:
    """A generation that names a file which is not there is an error, not a smaller ledger."""
    await generation(store, 1, {"a.parquet": segment_of(event())})
    manifest = {"files": ["ledger/generations/1/lost.parquet"], "absorbed": []}
    await store.put("ledger/generations/1.json", json.dumps(manifest).encode())
    with pytest.raises(StoreError) as raised:
        await load_ledger(store)
    assert "ledger/generations/1/lost.parquet" in raised.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"files": 5, "absorbed": []}'])
async def test_a_damaged_generation_is_named(store, data) -> None:
    """A generation manifest that cannot be read is an error that names it."""
    await store.put("ledger/generations/3.json", data)
    with pytest.raises(StoreError) as raised:
        await load_ledger(store)
    assert raised.value.kind == "store_damaged"
    assert "ledger/generations/3.json" in raised.value.message


async def test_many_segments_are_read(store) -> None:
    """Hundreds of segments fold to one view."""
    for n in range(300):
        await store.put(f"ledger/segments/{n:04d}.parquet", segment_of(event("failed", n.to_bytes(16, "big"))))
    view = await load_ledger(store)
    keys = pa.array([n.to_bytes(16, "big") for n in range(301)], KEY_TYPE)
    assert view.states(keys).to_pylist() == ["failed"] * 300 + [None]


async def test_segments_hold_the_schema(store) -> None:
    """A segment has exactly the columns and types of the schema."""
    book = ledger(store)
    await book.record(event())
    await book.flush()
    (info,) = await store.list("ledger/segments")
    assert pq.read_schema(pa.BufferReader(await store.get(info.path))).equals(EVENT_SCHEMA)
