"""Compaction: segments become a generation, whoever reads, writes, dies or compacts at the same time."""

import asyncio
import json
import os
import secrets
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import RANK, RETRY_ASKED, Claim, Event, ImageFacts
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, KEY_TYPE, LedgerView, events_table
from prefect_imagegen.store.ledger import compaction
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.files import ledger_files, to_parquet
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import event_tables, load_ledger
from prefect_imagegen.store.object_store import open_object_store
from tests.support import warm_python

pytestmark = pytest.mark.anyio
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
    return Event(kind, key, attempt, "run-1", datetime(2026, 8, 1, tzinfo=UTC) + timedelta(seconds=n), **facts)


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


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=pytest.mark.s3)])
def any_store(request, tmp_path):
    options = {}
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        url, options = s3.url(), s3.options
    else:
        url = str(tmp_path / "store") if request.param == "file" else f"memory://{secrets.token_hex(6)}/store"
    store = open_object_store(url, options)
    yield store
    store.close()


# What it does


async def test_nothing_is_lost_and_nothing_is_doubled(any_store) -> None:
    """The ledger says the same before and after a compaction, event by event, on every kind of store."""
    await fill(any_store, 12)
    events, before = await all_events(any_store), await said(any_store)
    assert await compact(any_store, CLOCK, more_than=11) is True
    assert (await ledger_files(any_store)).open_segments == []
    assert await all_events(any_store) == events
    assert await said(any_store) == before
    await fill(any_store, 3, start=12)
    events, before = await all_events(any_store), await said(any_store)
    assert await compact(any_store, CLOCK, more_than=2) is True
    assert await all_events(any_store) == events
    assert await said(any_store) == before


async def test_few_segments_stay_as_they_are(timed_store) -> None:
    """Nothing is written unless more segments are open than asked; absorbed ones do not count."""
    await fill(timed_store, 5)
    before = dict(timed_store.objects)
    assert await compact(timed_store, CLOCK, more_than=5) is False
    assert timed_store.objects == before
    assert await compact(timed_store, CLOCK, more_than=4) is True
    assert await compact(timed_store, CLOCK, more_than=4) is False
    assert "ledger/generations/2.json" not in timed_store.objects


async def test_files_are_sorted_by_key(timed_store, monkeypatch) -> None:
    """A generation is many files of about the same size, one range of keys after the other, each sorted by key."""
    monkeypatch.setattr(compaction, "_FILE_ROWS", 50)
    monkeypatch.setattr(compaction, "_RUN_ROWS", 64)
    await fill(timed_store, 40)
    events = await all_events(timed_store)
    await compact(timed_store, CLOCK, more_than=1)
    manifest = json.loads(timed_store.objects["ledger/generations/1.json"][0])
    tables = [pq.read_table(pa.BufferReader(timed_store.objects[path][0])) for path in manifest["files"]]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    assert len(tables) == round(len(events) / 50)
    assert max(map(len, tables)) < 150
    assert keys == sorted(keys)
    assert manifest["files"] == sorted(manifest["files"])
    assert manifest["absorbed"] == [f"s{n:04d}.parquet" for n in range(40)]
    assert await all_events(timed_store) == events


async def test_events_without_a_key_or_of_the_future_survive(timed_store) -> None:
    """What this version does not understand is carried along."""
    odd = events_table([event("claimed", key_of(1)), event("delivered", key_of(2))])
    odd = odd.set_column(0, "type", pa.array(["reviewed", "delivered"]))
    odd = odd.set_column(1, "key", pa.array([None, key_of(2)], KEY_TYPE))
    await timed_store.create(layout.segment("odd"), to_parquet(odd))
    await compact(timed_store, CLOCK, more_than=0)
    (table,) = [table async for table in event_tables(timed_store)]
    assert table["type"].to_pylist() == ["delivered", "reviewed"]


# Others at the same time


async def test_one_of_many_compactors_wins(timed_store) -> None:
    """Of compactors at once one wins; the others take their files away again and say so."""
    await fill(timed_store, 6)
    before = await said(timed_store)

    async def meanwhile(call: str, path: str) -> None:
        await asyncio.sleep(0)

    timed_store.before = meanwhile
    results = await asyncio.gather(*(compact(timed_store, CLOCK, more_than=1) for _ in range(4)))
    assert sum(results) == 1
    manifest = json.loads(timed_store.objects["ledger/generations/1.json"][0])
    assert paths(timed_store, "ledger/generations/1") == manifest["files"]
    assert await said(timed_store) == before


async def test_an_own_manifest_sent_twice_is_won(timed_store) -> None:
    """A manifest whose put was sent again by the client library meets itself, and counts as written."""
    await fill(timed_store, 2)
    create = timed_store.create

    async def twice(path: str, data: bytes, content_type: str = "") -> bool:
        await create(path, data)
        return await create(path, data)

    timed_store.create = twice
    assert await compact(timed_store, CLOCK, more_than=1) is True
    assert len(paths(timed_store, "ledger/generations/1")) == 1


async def test_a_writer_meanwhile_loses_nothing(timed_store) -> None:
    """A segment that is written while others are being absorbed counts, before and after."""
    await fill(timed_store, 3)

    async def meanwhile(call: str, path: str) -> None:
        if call == "create" and path == "ledger/generations/1.json":
            timed_store.before = nothing
            await write(timed_store, "late", event("delivered", key_of(4_000)))

    async def nothing(call: str, path: str) -> None:
        """Nothing more happens."""

    timed_store.before = meanwhile
    await compact(timed_store, CLOCK, more_than=1)
    files = await ledger_files(timed_store)
    assert (files.number, files.open_segments) == (1, [layout.segment("late")])
    assert (await load_ledger(timed_store)).states(pa.array([key_of(4_000)], KEY_TYPE)).to_pylist() == ["delivered"]


@pytest.mark.parametrize("nth", range(7))
async def test_a_reader_sees_every_event_through_a_compaction(timed_store, nth) -> None:
    """A reader that sleeps for days between any two of its calls, and finds its files gone, still sees every event."""
    await fill(timed_store, 3)
    await compact(timed_store, CLOCK, more_than=1)
    await fill(timed_store, 3, start=3)
    expected, calls = await said(timed_store), 0

    async def nothing(call: str, path: str) -> None:
        """The compactors' calls go through."""

    async def sleeping(call: str, path: str) -> None:
        nonlocal calls
        calls += 1
        if calls == nth + 1:
            timed_store.before = nothing
            await compact(timed_store, CLOCK, more_than=1)
            timed_store.later(25)
            await compact(timed_store, CLOCK, more_than=1)
            assert paths(timed_store, layout.SEGMENTS) == []
            assert list((await ledger_files(timed_store)).manifests) == [2]

    timed_store.before = sleeping
    assert await said(timed_store) == expected
    assert calls > nth


@pytest.mark.parametrize("lost", ["generation file", "segment"])
async def test_what_is_really_missing_is_named(timed_store, lost) -> None:
    """A file that no compaction took away is missing: an error that names it, not a smaller ledger."""
    await fill(timed_store, 3)
    await compact(timed_store, CLOCK, more_than=1)
    await fill(timed_store, 1, start=3)
    path = paths(timed_store, "ledger/generations/1")[0] if lost == "generation file" else layout.segment("s0003")

    get = timed_store.get

    async def blind(name: str) -> bytes | None:
        return None if name == path else await get(name)

    timed_store.get = blind
    for look in (load_ledger(timed_store), compact(timed_store, CLOCK, more_than=0)):
        with pytest.raises(StoreError, match=path) as raised:
            await look
        assert raised.value.kind == "store_damaged"
        assert raised.value.remedy


# Crashes


async def test_a_crash_before_the_manifest_changes_nothing(timed_store, monkeypatch) -> None:
    """Who dies between writing the files and the manifest leaves the ledger as it was, and files that go a day later.

    The next compaction makes the same generation.
    """
    await fill(timed_store, 4)
    before = await said(timed_store)

    class DeadError(BaseException):
        pass

    def die(point: str) -> None:
        raise DeadError(point)

    with monkeypatch.context() as patched:
        patched.setattr(compaction, "hit", die)
        with pytest.raises(DeadError, match="compaction"):
            await compact(timed_store, CLOCK, more_than=1)
    (orphan,) = paths(timed_store, layout.GENERATIONS)
    assert await said(timed_store) == before
    assert await compact(timed_store, CLOCK, more_than=1) is True
    await fill(timed_store, 2, start=4)
    assert await compact(timed_store, CLOCK, more_than=1) is True
    assert orphan in timed_store.objects
    timed_store.later(25)
    await compact(timed_store, CLOCK)
    assert orphan not in timed_store.objects


def test_a_killed_compactor_changes_nothing(tmp_path) -> None:
    """A process that is killed at the crash point `compaction` has written files, and no manifest."""
    store = open_object_store(str(tmp_path))
    asyncio.run(fill(store, 4))
    before = asyncio.run(said(store))
    script = (
        "import asyncio, sys\n"
        "from datetime import UTC, datetime\n"
        "from types import SimpleNamespace\n"
        "from prefect_imagegen.store.ledger.compaction import compact\n"
        "from prefect_imagegen.store.object_store import open_object_store\n"
        "clock = SimpleNamespace(now=lambda: datetime.now(UTC))\n"
        "asyncio.run(compact(open_object_store(sys.argv[1]), clock, more_than=1))\n"
    )
    deadly = os.environ | {"PREFECT_IMAGEGEN_CRASH_AT": "compaction"}
    killed = warm_python.run("-c", script, tmp_path, env=deadly)
    assert killed.returncode == -9
    assert len(list(tmp_path.glob("ledger/generations/1/*.parquet"))) == 1
    assert not list(tmp_path.glob("ledger/generations/*.json"))
    assert asyncio.run(said(store)) == before
    assert warm_python.run("-c", script, tmp_path).returncode == 0
    assert list(tmp_path.glob("ledger/generations/*.json"))
    assert asyncio.run(said(store)) == before
    store.close()


# What goes, and when


async def test_what_was_replaced_goes_after_a_day_of_the_stores_time(timed_store) -> None:
    """Absorbed segments and older generations stay for 24 hours, by the store's clock and no other, and then go."""
    await fill(timed_store, 4)
    await compact(timed_store, CLOCK, more_than=1)
    timed_store.later(20)
    await fill(timed_store, 2, start=4)
    await compact(timed_store, CLOCK, more_than=1)
    expected = await said(timed_store)
    assert len(paths(timed_store, layout.SEGMENTS)) == 6
    timed_store.later(3.9)
    await compact(timed_store, CLOCK)
    assert len(paths(timed_store, layout.SEGMENTS)) == 6
    timed_store.later(0.2)
    await compact(timed_store, CLOCK)
    assert paths(timed_store, layout.SEGMENTS) == [layout.segment("s0004"), layout.segment("s0005")]
    assert "ledger/generations/1.json" in timed_store.objects
    timed_store.later(20)
    await compact(timed_store, CLOCK)
    assert paths(timed_store, layout.SEGMENTS) == []
    assert sorted(map(layout.generation_of, paths(timed_store, layout.GENERATIONS))) == [0, 2]
    assert await said(timed_store) == expected


async def test_a_generation_remembers_what_is_still_there(timed_store) -> None:
    """A generation names the segments of former ones that are not deleted yet, and forgets those that are."""
    await fill(timed_store, 2)
    await compact(timed_store, CLOCK, more_than=1)
    await fill(timed_store, 2, start=2)
    await compact(timed_store, CLOCK, more_than=1)
    assert len((await ledger_files(timed_store)).generation.absorbed) == 4
    timed_store.later(25)
    await compact(timed_store, CLOCK)
    await fill(timed_store, 2, start=4)
    await compact(timed_store, CLOCK, more_than=1)
    assert (await ledger_files(timed_store)).generation.absorbed == {"s0004.parquet", "s0005.parquet"}


async def test_a_store_without_times_loses_nothing(timed_store) -> None:
    """Where the store tells no times, nothing is ever deleted."""
    timed_store.tells_time = False
    await fill(timed_store, 2)
    await StoreLedger(timed_store, LedgerView.empty(), run_id="r", nonce="n", clock=CLOCK).claim(key_of(1), 1, CLAIM)
    for start in (2, 4):
        await compact(timed_store, CLOCK, more_than=1)
        timed_store.later(100)
        await fill(timed_store, 2, start=start)
    assert len(paths(timed_store, layout.SEGMENTS)) == 6
    assert len(paths(timed_store, layout.CLAIMS)) == 1


async def test_files_of_others_stay(timed_store) -> None:
    """What compaction did not write is left alone, also among the generations."""
    await timed_store.put("ledger/generations/notes/read.me", b"hello")
    await timed_store.put("ledger/generations/later.json", b"hello")
    for start in (0, 2):
        await fill(timed_store, 2, start=start)
        await compact(timed_store, CLOCK, more_than=1)
        timed_store.later(25)
    await compact(timed_store, CLOCK)
    assert "ledger/generations/notes/read.me" in timed_store.objects
    assert "ledger/generations/later.json" in timed_store.objects


# Claims

CLAIM = Claim("run-1", "n1", "a", datetime(2026, 8, 1, tzinfo=UTC), {})


@pytest.mark.parametrize(
    ("claims", "steps", "open_steps", "hours", "stays"),
    [
        pytest.param([1], ["1 delivered"], [], 25, False, id="delivered"),
        pytest.param([1, 2], ["1 failed", "2 delivered"], [], 25, False, id="delivered at last"),
        pytest.param([1], ["1 delivered"], [], 23, True, id="young"),
        pytest.param([1], ["1 submitted"], [], 25, True, id="open"),
        pytest.param([1, 2], ["1 submitted", "2 delivered"], [], 25, True, id="an open attempt beside"),
        pytest.param([2], ["1 submitted", "2 delivered"], [], 25, True, id="an open attempt whose claim is not listed"),
        pytest.param([1, 2], ["1 delivered"], [], 25, True, id="a claim that the ledger does not know"),
        pytest.param([1], ["1 failed"], [], 25, True, id="failed: will be asked for again"),
        pytest.param([1], ["1 delivered", "1 quarantined"], [], 25, True, id="quarantined: will be asked for again"),
        pytest.param([1], [], [], 25, True, id="unknown"),
        pytest.param([1], ["1 claimed"], ["1 delivered"], 25, True, id="closed outside the generation only"),
    ],
)
async def test_claims_go_when_nobody_can_need_them(timed_store, claims, steps, open_steps, hours, stays) -> None:
    """Claims go a day later, once the generation knows the key to be delivered and all its attempts to have ended."""
    key = key_of(500)
    book = StoreLedger(timed_store, LedgerView.empty(), run_id="r", nonce="n", clock=CLOCK)
    for n in claims:
        await book.claim(key, n, CLAIM)
        await book.record_request_id(key, n, f"id-{n}")
    timed_store.later(hours)
    for n, text in enumerate(steps):
        await write(timed_store, f"a{n}", event(text.split()[1], key, int(text[0])))
    await fill(timed_store, 1)

    async def meanwhile(call: str, path: str) -> None:
        if open_steps and path == "ledger/generations/1.json":
            await write(timed_store, "b", event(open_steps.pop().split()[1], key, 1))

    timed_store.before = meanwhile
    await compact(timed_store, CLOCK, more_than=0)
    assert len(paths(timed_store, layout.CLAIMS)) == (2 * len(claims) if stays else 0)


def test_exactly_the_needless_claims_go(timed_store) -> None:
    """A key's claims go, all or none, if it is delivered, all its attempts have ended, and all objects are old."""
    numbers = st.integers(1, 3)
    ends = st.dictionaries(st.one_of(numbers, st.sampled_from(["x", "0", "007"])), st.sampled_from(TYPES), max_size=4)
    hours = st.sampled_from([1, 23, 25, 99])
    claims = st.dictionaries(numbers, st.tuples(hours, st.none() | hours), max_size=3)

    async def run(keys: list[tuple[dict, dict]]) -> None:
        store, expected = type(timed_store)(), []
        now = store.now
        for position, (attempts, claimed) in enumerate(keys):
            key = key_of(500 + 7 * position)
            objects = []
            for n, (age, id_age) in claimed.items():
                for path, hours_ago in ((layout.claim(key.hex(), n), age), (layout.claim_id(key.hex(), n), id_age)):
                    if hours_ago is not None:
                        store.now = now - timedelta(hours=hours_ago)
                        await store.create(path, b"{}")
                        objects.append((path, hours_ago))
            store.now = now
            events = [replace(event(kind, key), attempt_id=f"{key.hex()}-{n}") for n, kind in attempts.items()]
            await write(store, f"s{position}", *events)
            is_over = "delivered" in attempts.values() and not {"claimed", "submitted"} & set(attempts.values())
            if not (is_over and set(claimed) <= set(attempts) and all(age > 24 for _, age in objects)):
                expected += [path for path, _ in objects]
        await compact(store, CLOCK, more_than=0)
        assert paths(store, layout.CLAIMS) == sorted(expected)

    @given(st.lists(st.tuples(ends, claims), min_size=1, max_size=4))
    @example([({}, {})])
    @example([({1: "failed"}, {1: (25, 25)})])
    @example([({1: "delivered", "x": "claimed"}, {1: (25, 25)})])
    @example([({1: "delivered", 2: "failed"}, {1: (25, 25), 2: (25, None)})])
    def check(keys: list[tuple[dict, dict]]) -> None:
        asyncio.run(run(keys))

    check()


class Model:
    """What has to lie in the ledger's folders: all that was written, less what a day-old generation replaced."""

    def __init__(self, store) -> None:
        self.store = store
        self.remaining: set[str] = set()
        self.made: list[tuple[datetime, set[str]]] = []
        """When each generation was made, and the segments that it absorbed."""
        self.events: list[dict] = []
        self.segments = 0

    async def write(self) -> None:
        await fill(self.store, 1, start=self.segments)
        self.remaining.add(layout.segment(f"s{self.segments:04d}"))
        self.segments += 1
        self.events = await all_events(self.store)

    async def crash(self) -> None:
        """A compactor dies between its files and its manifest."""

        def die(point: str) -> None:
            raise RuntimeError(point)

        with pytest.MonkeyPatch.context() as patched, suppress(RuntimeError):
            patched.setattr(compaction, "hit", die)
            await compact(self.store, CLOCK, more_than=0)
            # Nothing was open, so that nobody died, and what is old is gone.
            self._forget()
        files = paths(self.store, layout.GENERATIONS)
        self.remaining |= {path for path in files if layout.generation_of(path) > len(self.made)}

    async def compact(self) -> None:
        is_new = bool(segments_of(self.remaining) - set().union(*(segments for _, segments in self.made)))
        assert await compact(self.store, CLOCK, more_than=0) is is_new
        if is_new:
            self.made.append((self.store.now, segments_of(self.remaining)))
            manifest = layout.generation(len(self.made))
            self.remaining |= {manifest, *json.loads(self.store.objects[manifest][0])["files"]}
        self._forget()

    def _forget(self) -> None:
        moment = self.store.now - timedelta(hours=24)
        newest = max((n for n, (at, _) in enumerate(self.made, 1) if at < moment), default=0)
        absorbed = self.made[newest - 1][1] if newest else set()
        self.remaining = {path for path in self.remaining if path not in absorbed and not 0 < number_of(path) < newest}


def test_exactly_what_was_replaced_goes(timed_store) -> None:
    """All events stay, and what goes is what a generation of over a day ago replaced, whoever writes and dies when."""

    async def run(steps: list[tuple[str, float]]) -> None:
        store = type(timed_store)()
        model = Model(store)
        for step, hours in steps:
            if step == "wait":
                store.later(hours)
            else:
                await getattr(model, step)()
            assert {*paths(store, layout.SEGMENTS), *paths(store, layout.GENERATIONS)} == model.remaining
            assert await all_events(store) == model.events

    steps = st.tuples(st.sampled_from(["write", "compact", "wait", "crash"]), st.sampled_from([1.0, 12.5, 25.0]))

    @settings(max_examples=60)
    @given(st.lists(steps, max_size=12))
    @example([("write", 0), ("compact", 0), ("write", 0), ("compact", 0), ("wait", 25.0), ("compact", 0)])
    @example([("write", 0), ("crash", 0), ("compact", 0), ("write", 0), ("compact", 0), ("wait", 25.0), ("compact", 0)])
    def check(given_steps: list[tuple[str, float]]) -> None:
        asyncio.run(run(given_steps))

    check()


def segments_of(all_paths: set[str]) -> set[str]:
    return {path for path in all_paths if path.startswith(f"{layout.SEGMENTS}/")}


def number_of(path: str) -> int:
    """The generation that a manifest or a file belongs to; 0 for others."""
    if not path.startswith(f"{layout.GENERATIONS}/"):
        return 0
    return int(path.split("/")[2].removesuffix(".json"))


async def test_numbers_go_on_after_claims_are_gone(timed_store) -> None:
    """A key whose claims were removed is claimed with a number that none of its attempts had."""
    key = key_of(500)
    await write(timed_store, "a", event("failed", key, 1), event("delivered", key, 2))
    await compact(timed_store, CLOCK, more_than=0)
    await write(timed_store, "b", event("quarantined", key, 2))
    book = StoreLedger(timed_store, await load_ledger(timed_store), run_id="r", nonce="n", clock=CLOCK)
    assert (book.next_attempt(key), book.next_attempt(key_of(501))) == (3, 1)
    await write(timed_store, "c", event("submitted", key, 3))
    assert (await load_ledger(timed_store)).next_attempt(key) == 3


def whole(view: LedgerView) -> dict:
    """All that a ledger says of two keys and of calls."""
    keys = [key_of(1), key_of(2)]
    ids = [f"id-{n}" for n in range(1, 9)]

    def course_of(row: dict) -> list[str]:
        return [str(row[name]) for name in ("attempt_id", "type", "request_id", "error_kind", "account", "endpoint")]

    return {
        "states": view.states(pa.array(keys, KEY_TYPE)).to_pylist(),
        "failures": [view.failure(key) for key in keys],
        "ranks": [dict(view.ranks(key)) for key in keys],
        "courses": [sorted(map(course_of, view.course(key))) for key in keys],
        "calls": view.newest_calls(account="acc", most=99),
        "known": view.known_ids(ids),
        "among": view.calls_among(ids, run_id="run-1"),
    }


@pytest.mark.parametrize("rows", [1, 2, 50_000])
async def test_compaction_changes_nothing_of_what_is_said(timed_store, monkeypatch, rows) -> None:
    """States, failures, courses, accounts and request ids are the same before and after, in files of any size."""
    monkeypatch.setattr(compaction, "_FILE_ROWS", rows)
    monkeypatch.setattr(compaction, "_RUN_ROWS", rows)
    first_key, second_key = key_of(1), key_of(2)
    call = {"account": "acc", "endpoint": "https://api"}
    steps = [
        event("claimed", first_key, 1, account="acc"),
        event("submitted", first_key, 1, request_id="id-1", **call),
        event("failed", first_key, 1, error_kind="content_policy", request_id="id-1", **call),
        event("failed", first_key, 1, error_kind=RETRY_ASKED),
        event("submitted", first_key, 2, request_id="id-2"),
        event("failed", second_key, 10, error_kind="unsent"),
        event("failed", second_key, 9, error_kind="server_error", request_id="id-9"),
        event("submitted", second_key, 9, request_id="id-3", **call),
    ]
    for n, step in enumerate(steps):
        await write(timed_store, f"{n}", step)
    before = whole(await load_ledger(timed_store))
    assert await compact(timed_store, CLOCK, more_than=0)
    assert whole(await load_ledger(timed_store)) == before
    assert before["states"] == ["open", "failed"]
    assert before["failures"] == [(RETRY_ASKED, ""), ("unsent", "")]
    assert before["known"] == {"id-1", "id-2", "id-3"}
    assert before["calls"][0][0] == "id-3"


async def test_a_store_from_before_accounts_is_compacted(timed_store) -> None:
    """Segments and generations without the column `account` are read and compacted; their accounts are null."""
    for n in (1, 2):
        old = events_table([event("submitted", key_of(n), 1, request_id=f"id-{n}")]).drop_columns(["account"])
        assert await timed_store.create(layout.segment(f"old-{n}"), to_parquet(old))
        assert await compact(timed_store, CLOCK, more_than=0)
    await write(timed_store, "new", event("submitted", key_of(2), 2, request_id="id-3", account="acc"))
    assert await compact(timed_store, CLOCK, more_than=0)
    view = await load_ledger(timed_store)
    assert [name for name, _ in view.newest_calls(account="acc")] == ["id-3"]
    assert view.known_ids(["id-1", "id-2", "id-3"]) == {"id-1", "id-2", "id-3"}
    assert [row["account"] for row in view.course(key_of(1))] == [None]


async def test_what_is_known_of_an_attempt_outlives_its_claims(timed_store) -> None:
    """A key that was delivered, lost its claims and then its image goes on with numbers of its own."""
    key = key_of(1)
    book = StoreLedger(timed_store, LedgerView.empty(), run_id="run-1", nonce="n1", clock=CLOCK)
    await book.claim(key, 1, Claim("run-1", "n1", f"{key.hex()}-1", CLOCK.now(), {}))
    await write(timed_store, "a", event("submitted", key, 1, request_id="id-1"), event("delivered", key, 1))
    timed_store.later(25)
    await compact(timed_store, CLOCK, more_than=0)
    assert await book.claims(key) == []
    await write(timed_store, "b", event("quarantined", key, 1))
    view = await load_ledger(timed_store)
    later = StoreLedger(timed_store, view, run_id="run-2", nonce="n2", clock=CLOCK)
    (known,) = await later.known(key)
    assert (known.claim_no, known.record, known.request_id, known.rank) == (1, None, "id-1", RANK["quarantined"])
    assert later.next_attempt(key) == 2
