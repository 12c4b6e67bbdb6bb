"""The ledger in an object store: claims, request ids, segments and generations."""

import asyncio
import io
import json
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import RETRY_ASKED, RETRY_ASKED_RANK, Claim, Event, ImageFacts
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, KEY_TYPE, LedgerView, events_table
from prefect_imagegen.store.ledger.ledger import FLUSH_EVENTS, StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
KEY, OTHER = bytes(range(16)), b"\xff" * 16


class StillClock:
    """A clock that stands still unless somebody sleeps on it."""

    def __init__(self) -> None:
        self.time = NOW
        self.sleeps: list[float] = []
        self.enough = asyncio.Event()

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += timedelta(seconds=seconds)
        if len(self.sleeps) > 3:
            self.enough.set()
            await asyncio.Event().wait()


@pytest.fixture
def store():
    opened = open_object_store(f"memory://{secrets.token_hex(6)}/store")
    yield opened
    opened.close()


def ledger(store, nonce="n1", view=None) -> StoreLedger:
    return StoreLedger(store, view or LedgerView.empty(), run_id="run-1", nonce=nonce, clock=StillClock())


def claim(nonce="n1", attempt="a1") -> Claim:
    return Claim("run-1", nonce, attempt, NOW, {"prompt": "Käse 🧀", "seed": 7, "image_urls": ["ab" * 32]})


def named(n: int, key: bytes = KEY) -> str:
    return f"{key.hex()}-{n}"


def event(kind="claimed", key=KEY, attempt="a1", **facts) -> Event:
    return Event(kind, key, attempt, "run-1", NOW, **facts)


async def states(store, *keys):
    return (await load_ledger(store)).states(pa.array(keys or [KEY], KEY_TYPE)).to_pylist()


def segment_of(*events) -> bytes:
    sink = io.BytesIO()
    pq.write_table(events_table(events), sink)
    return sink.getvalue()


class FailingStore:
    """A store whose next creates fail, as a store out of reach does; all else goes to the store beneath."""

    def __init__(self, store: FsspecObjectStore, failures: int) -> None:
        self._store = store
        self.failures = failures

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        if self.failures:
            self.failures -= 1
            raise StoreError("store_unreachable", "gone")
        return await self._store.create(path, data, content_type)


class DoublingStore(FailingStore):
    """A store whose client library sends a create again after its answer was lost: the second try meets the first."""

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        await self._store.create(path, data, content_type)
        return await self._store.create(path, data, content_type)


# Claims


async def test_a_claim_is_won_once(store) -> None:
    """Who creates a claim first has it; another process, or another attempt of the same one, loses."""
    assert await ledger(store).claim(KEY, 1, claim()) is True
    assert await ledger(store, "n2").claim(KEY, 1, claim("n2", "a2")) is False
    assert await ledger(store).claim(KEY, 1, claim("n1", "a3")) is False
    assert await ledger(store, "n2").claim(KEY, 1, claim("n2", "a1")) is False
    (record,) = await ledger(store).claims(KEY)
    assert (record.claim.nonce, record.claim.attempt_id) == ("n1", "a1")


async def test_an_own_claim_sent_twice_is_won(store) -> None:
    """A claim whose put was sent again by the client library meets itself, and is won."""
    assert await ledger(DoublingStore(store, 0)).claim(KEY, 1, claim()) is True
    assert await ledger(store).claim(KEY, 1, claim()) is True


async def test_twelve_processes_claim_one_key(store) -> None:
    """Of twelve processes that claim one key at once, one wins."""
    ledgers = [ledger(store, f"n{n}") for n in range(12)]
    results = await asyncio.gather(
        *(process_ledger.claim(KEY, 1, claim(f"n{n}", f"a{n}")) for n, process_ledger in enumerate(ledgers))
    )
    assert sum(results) == 1


async def test_claims_come_back_as_made(store) -> None:
    """Every claim of a key comes back by number with all that it said, and with its request_id where it has one."""
    book = ledger(store)
    for n in (1, 2, 10):
        await book.claim(KEY, n, claim(attempt=f"a{n}"))
    await book.record_request_id(KEY, 2, "id-2")
    await book.claim(OTHER, 1, claim(attempt="other"))
    records = await book.claims(KEY)
    assert [(record.claim_no, record.request_id) for record in records] == [(1, None), (2, "id-2"), (10, None)]
    assert records[0].claim == claim()
    assert await book.claims(bytes(16)) == []


async def test_claims_lie_where_the_layout_says(store) -> None:
    """A claim and its request_id are one object each, under the key's own folder."""
    await ledger(store).claim(KEY, 1, claim())
    await ledger(store).record_request_id(KEY, 1, "id-1")
    base = f"ledger/claims/00/{KEY.hex()}"
    assert [info.path for info in await store.list("ledger/claims")] == [f"{base}/1.id.json", f"{base}/1.json"]
    assert json.loads(await store.get(f"{base}/1.id.json")) == {"request_id": "id-1"}
    body = json.loads(await store.get(f"{base}/1.json"))
    assert (body["nonce"], body["attempt_id"], body["body"]["prompt"]) == ("n1", "a1", "Käse 🧀")


async def test_a_claim_keeps_all_that_it_says(store) -> None:
    """Account, fingerprint, endpoint, owner and the times by three clocks come back as they were written."""
    made = Claim(
        *("run-1", "n1", "a1", NOW, {"seed": 7}, "acc", "fp", "https://api", "runs/run-1/heartbeat.json"),
        store_time=NOW + timedelta(seconds=1),
        api_time=NOW + timedelta(hours=5, microseconds=3),
    )
    await ledger(store).claim(KEY, 1, made)
    (record,) = await ledger(store).claims(KEY)
    assert record.claim == made
    (info,) = await store.list("ledger/claims")
    assert record.stored == info.modified


async def test_a_claim_of_an_older_store_is_read(store) -> None:
    """A claim of version 0.1 names no account, key, endpoint, owner or further times: they are null, not an error."""
    old = {"run_id": "run-0", "nonce": "n0", "attempt_id": named(1), "time": NOW.isoformat(), "body": {"seed": 7}}
    await store.put(layout.claim(KEY.hex(), 1), json.dumps(old).encode())
    await store.put(layout.claim_id(KEY.hex(), 1), b'{"request_id": "id-1"}')
    (known,) = await ledger(store).known(KEY)
    assert known.record.claim == Claim("run-0", "n0", named(1), NOW, {"seed": 7})
    assert (known.account, known.endpoint, known.request_id, known.run_id) == (None, None, "id-1", "run-0")
    assert known.record.claim.owner is known.record.claim.api_time is known.record.claim.store_time is None


async def test_a_claim_of_a_later_store_is_read(store) -> None:
    """A claim with fields that this version does not know is read without them."""
    await ledger(store).claim(KEY, 1, claim())
    path = layout.claim(KEY.hex(), 1)
    await store.put(path, json.dumps(json.loads(await store.get(path)) | {"part": 7}).encode())
    assert (await ledger(store).claims(KEY))[0].claim == claim()


# What is known of an attempt


class LaggingStore(FailingStore):
    """A store whose listings show nothing yet; what is asked for by name is there."""

    async def list(self, prefix: str):
        return [] if prefix.startswith("ledger/claims") else await self._store.list(prefix)


async def test_claim_id_and_events_are_one(store) -> None:
    """Of each attempt claim, id object and events are told together, whichever of them a crash has left."""
    book = ledger(store)
    await book.claim(KEY, 1, replace(claim(attempt=named(1)), account="acc", endpoint="https://api"))
    await book.claim(KEY, 3, claim(attempt=named(3)))
    await book.record_request_id(KEY, 3, "id-3")
    # The id of the first reached a segment, its id object was never written.
    await book.record(event("submitted", attempt=named(1), request_id="id-1", account="acc"))
    await book.record(event("failed", attempt=named(2), request_id="id-2", error_kind="unsent", error_message="dns"))
    await book.record(event("submitted", OTHER, named(1, OTHER), request_id="id-9"))

    def facts_of(known):
        return [
            (attempt.claim_no, attempt.rank, attempt.request_id, attempt.error_kind, attempt.record is not None)
            for attempt in known
        ]

    expected = [(1, 1, "id-1", None, True), (2, 2, "id-2", "unsent", False), (3, -1, "id-3", None, True)]
    before = await book.known(KEY)
    assert facts_of(before) == expected
    await book.flush()
    other = ledger(store, "n2")
    await other.refresh(at_once=True)
    for known in (await book.known(KEY), await other.known(KEY)):
        assert known == before
    later = await ledger(store, "n3", await load_ledger(store)).known(KEY)
    assert later == before
    assert [(attempt.account, attempt.endpoint, attempt.is_closed) for attempt in later] == [
        ("acc", "https://api", False),
        (None, None, True),
        (None, None, False),
    ]


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("first", [0, 1])
async def test_a_persons_word_gives_an_attempt_free(store, flushed, first) -> None:
    """`retry_asked` closes an attempt above its failure, is told as asked, and leaves the reason as it was."""
    book = ledger(store)
    steps = [event("failed", attempt=named(1), error_kind=kind) for kind in ("content_policy", RETRY_ASKED)]
    for step in (steps[first], steps[1 - first]):
        await book.record(step)
    if flushed:
        await book.flush()
    (known,) = await book.known(KEY)
    assert (known.rank, known.is_asked, known.error_kind) == (RETRY_ASKED_RANK, True, "content_policy")
    assert (known.is_closed, known.is_delivered) == (True, False)


async def test_a_word_alone_is_no_failure(store) -> None:
    """An open attempt that a person gave free is closed by that alone."""
    book = ledger(store)
    await book.claim(KEY, 1, claim(attempt=named(1)))
    await book.record(event("failed", attempt=named(1), error_kind=RETRY_ASKED))
    (known,) = await book.known(KEY)
    assert (known.error_kind, known.is_asked, known.is_closed) == (RETRY_ASKED, True, True)


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_listing_that_lags_hides_no_claim(store, lost) -> None:
    """Claims that are known to exist are read by name, with their ids, while the listing is empty."""
    await ledger(store).claim(KEY, 1, claim(attempt=named(1)))
    await ledger(store).record_request_id(KEY, 1, "id-1")
    await ledger(store).claim(KEY, 2, claim(attempt=named(2)))
    book = ledger(LaggingStore(store, 0))
    assert await book.known(KEY) == await book.claims(KEY) == []
    assert [record.request_id for record in await book.known(KEY, lost=lost)] == ["id-1", None][:lost]
    assert [record.claim_no for record in await book.claims(KEY, lost=lost)] == [1, 2][:lost]
    await book.record(event(attempt=named(1)))
    assert [record.record is not None for record in await book.known(KEY)] == [True]


async def test_a_lost_claim_that_is_not_there_is_none(store) -> None:
    """A claim that is asked for by name and does not exist is left out; one that is listed and gone is an error."""
    assert await ledger(store).claims(KEY, lost=2) == []
    await ledger(store).claim(KEY, 1, claim())

    class Gone(FailingStore):
        async def get(self, path: str) -> bytes | None:
            return None

    with pytest.raises(StoreError, match=r"1\.json"):
        await ledger(Gone(store, 0)).claims(KEY)


async def test_known_ids_are_those_of_any_run(store) -> None:
    """The ids of calls are known from what is buffered, flushed, read since, and read at the start."""
    await store.put("ledger/segments/a.parquet", segment_of(event("delivered", request_id="id-0", image=None)))
    book = ledger(store, view=await load_ledger(store))
    await book.record(event("submitted", OTHER, "b", request_id="id-1"))
    await book.flush()
    await book.record(event("submitted", OTHER, "c", request_id="id-2"))
    await store.put("ledger/segments/z.parquet", segment_of(event("failed", b"\x07" * 16, "d", request_id="id-3")))
    asked = ["id-0", "id-1", "id-2", "id-3", "strange"]
    assert await book.known_ids(asked) == {"id-0", "id-1", "id-2"}
    await book.refresh(at_once=True)
    assert await book.known_ids(asked) == set(asked) - {"strange"}
    assert await book.known_ids([]) == frozenset()


async def test_a_request_id_is_told_once(store) -> None:
    """The same request_id may be told again; another one for the same claim is an error, and the first stays."""
    book = ledger(store)
    await book.claim(KEY, 1, claim())
    await book.record_request_id(KEY, 1, "id-1")
    await book.record_request_id(KEY, 1, "id-1")
    await ledger(DoublingStore(store, 0)).record_request_id(KEY, 2, "id-2")
    with pytest.raises(StoreError) as raised:
        await ledger(store, "n2").record_request_id(KEY, 1, "id-9")
    assert raised.value.kind == "store_conflict"
    assert layout.claim_id(KEY.hex(), 1) in raised.value.message
    assert (await book.claims(KEY))[0].request_id == "id-1"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"{}", b'{"time": 5}', b'{"run_id": "r"}'])
async def test_a_damaged_claim_is_named(store, data) -> None:
    """A claim that cannot be read is an error that names its file; it is never taken for ours or for none."""
    path = layout.claim(KEY.hex(), 1)
    await store.put(path, data)
    book = ledger(store)
    for look in (lambda: book.claims(KEY), lambda: book.claim(KEY, 1, claim())):
        with pytest.raises(StoreError) as raised:
            await look()
        assert raised.value.kind == "store_damaged"
        assert path in raised.value.message
        assert raised.value.remedy


@pytest.mark.parametrize("data", [b"", b"{}", b"[]"])
async def test_a_damaged_request_id_is_named(store, data) -> None:
    """A request_id that cannot be read is an error that names its file: the call was made and must not be lost."""
    await ledger(store).claim(KEY, 1, claim())
    await store.put(layout.claim_id(KEY.hex(), 1), data)
    with pytest.raises(StoreError) as raised:
        await ledger(store).claims(KEY)
    assert layout.claim_id(KEY.hex(), 1) in raised.value.message


# Segments


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


# Reading


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
