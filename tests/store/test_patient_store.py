"""The store that is tried again: what passes is waited for, what cannot pass is said at once."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.store.object_store import FsspecObjectStore
from prefect_imagegen.store.patient_store import FINAL_KINDS, PatientStore

pytestmark = pytest.mark.anyio
OPERATIONS = ("get", "create", "put", "delete", "head", "list")


class FakeClock:
    """Time passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0
        self.sleeps: list[float] = []
        self.then: Callable[[], object] = lambda: None
        """Called after every sleep."""

    def now(self) -> datetime:
        return datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=self.time)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds
        self.then()
        await asyncio.sleep(0)


class Hiccups(FsspecObjectStore):
    """A local store whose operations fail so many times; with `late`, after they were done."""

    failures: Counter[str]
    calls: Counter[str]
    kind = "store_unreachable"
    late = False

    async def _run(self, path: str, call, *, writing: bool = False):
        self.calls[path] += 1
        if self.failures[path] <= 0:
            return await super()._run(path, call, writing=writing)
        self.failures[path] -= 1
        if self.late:
            await super()._run(path, call, writing=writing)
        raise StoreError(self.kind, f"{path}: failure {self.failures[path]}.")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def shaky(tmp_path):
    store = Hiccups(*fsspec.core.url_to_fs(str(tmp_path)), str(tmp_path))
    store.failures, store.calls = Counter(), Counter()
    yield store
    store.close()


def patient(store, clock, **more) -> PatientStore:
    return PatientStore(store, clock, **{"deadline": 60.0, "jitter": lambda: 1.0} | more)


def call_of(store, operation: str, path: str) -> Callable[[], Awaitable[object]]:
    data = (b"data",) if operation in ("create", "put") else ()
    return lambda: getattr(store, operation)(path, *data)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_hiccups_pass(shaky, clock, operation) -> None:
    """Every operation that fails a few times is tried again, with pauses that double, and answers as if nothing was."""
    for path in ("a/1", "b/1"):
        if operation != "create":
            await shaky.put(path, b"old!")
    expected = await call_of(shaky, operation, "a/1")()
    shaky.failures["b/1"] = 6
    answer = await call_of(patient(shaky, clock), operation, "b/1")()
    assert str(answer).replace("b/1", "a/1")[:60] == str(expected)[:60]
    assert shaky.failures["b/1"] == 0
    assert clock.sleeps == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert await shaky.get("b/1") == await shaky.get("a/1")


async def test_answers_come_through(shaky, clock) -> None:
    """What the store says is what is told: absence, existence, bytes, sizes and listings; and its address."""
    store = patient(shaky, clock)
    assert store.url == shaky.url
    assert (await store.get("a/x"), await store.head("a/x"), list(await store.list("a"))) == (None, None, [])
    assert (await store.create("a/x", b"1", "text/plain"), await store.create("a/x", b"2")) == (True, False)
    await store.put("a/y", b"22", "text/plain")
    assert [(info.path, info.size) for info in await store.list("a")] == [("a/x", 1), ("a/y", 2)]
    assert (await store.get("a/x"), (await store.head("a/y")).size) == (b"1", 2)
    await store.delete("a/x")
    assert await store.get("a/x") is None
    assert clock.sleeps == []


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_it_gives_up_after_the_deadline(shaky, clock, operation) -> None:
    """What fails for `deadline` seconds since its first failure raises the last error; the last try is at the end."""
    shaky.failures["a/1"] = 1_000
    with pytest.raises(StoreError) as raised:
        await call_of(patient(shaky, clock, deadline=40.0), operation, "a/1")()
    assert clock.time == 40.0
    assert raised.value.message == f"a/1: failure {shaky.failures['a/1']}."
    assert shaky.calls["a/1"] == 1 + len(clock.sleeps)


async def test_every_operation_has_a_deadline_of_its_own(shaky, clock) -> None:
    """An operation that begins late in an outage is waited for as long as one that began early."""
    store = patient(shaky, clock, deadline=40.0)
    shaky.failures |= {"a": 1_000, "b": 4}
    with pytest.raises(StoreError):
        await store.get("a")
    assert await store.create("b", b"1")
    assert clock.time == 40.0 + 1 + 2 + 4 + 8


async def test_a_stopping_run_waits_no_longer_than_it_has(shaky, clock) -> None:
    """Once the run's stop clock ticks, nothing is tried beyond its end, however long the deadline is."""
    stop_at: list[float] = []
    store = patient(shaky, clock, deadline=600.0, time_left=lambda: stop_at[0] - clock.time if stop_at else None)
    shaky.failures["a"] = 1_000
    clock.then = lambda: stop_at.append(clock.time + 25) if clock.time >= 100 else None
    with pytest.raises(StoreError):
        await store.put("a", b"1")
    assert clock.time == stop_at[0]
    before = shaky.calls["a"]
    with pytest.raises(StoreError):
        await store.put("a", b"1")
    assert shaky.calls["a"] == before + 1


@pytest.mark.parametrize("kind", sorted(FINAL_KINDS))
async def test_what_cannot_pass_is_raised_at_once(shaky, clock, kind, caplog) -> None:
    """A store that takes no create-only puts, holds other content or is damaged is not asked twice."""
    shaky.failures["a"], shaky.kind = 5, kind
    with pytest.raises(StoreError):
        await patient(shaky, clock).create("a", b"1")
    assert (shaky.calls["a"], clock.sleeps, caplog.records) == (1, [], [])


async def test_what_turns_out_not_to_pass_is_raised_then(shaky, clock) -> None:
    """A try that fails for good ends the patience with earlier failures."""
    shaky.failures["a"] = 5
    clock.then = lambda: setattr(shaky, "kind", "store_damaged")
    with pytest.raises(StoreError) as raised:
        await patient(shaky, clock).create("a", b"1")
    assert (raised.value.kind, shaky.calls["a"]) == ("store_damaged", 2)


async def test_other_errors_are_no_hiccups(shaky, clock) -> None:
    """An error that is none of the store's is a bug, and is not tried again."""

    async def broken(path: str) -> bytes:
        raise RuntimeError(path)

    shaky.get = broken
    with pytest.raises(RuntimeError):
        await patient(shaky, clock).get("a")
    assert clock.sleeps == []


@pytest.mark.parametrize("operation", ["create", "put", "delete"])
async def test_writes_whose_answer_was_lost(shaky, clock, operation) -> None:
    """A write that was done although it raised leaves what was written; a create then says that it exists."""
    await shaky.put("b", b"old") if operation == "put" else None
    shaky.failures["b"], shaky.late = 2, True
    answer = await call_of(patient(shaky, clock), operation, "b")()
    assert answer is (False if operation == "create" else None)
    assert await shaky.get("b") == (None if operation == "delete" else b"data")


async def test_trouble_is_said_once(shaky, clock, caplog) -> None:
    """One warning when trouble begins, however many operations and tries it meets, and one line when all is well."""
    caplog.set_level(logging.INFO)
    store = patient(shaky, clock, deadline=600.0)
    shaky.failures |= {str(n): 3 + n for n in range(5)}
    assert all(await asyncio.gather(*(store.create(str(n), b"1") for n in range(5))))
    warning, over = caplog.records
    assert (warning.levelname, over.levelname) == ("WARNING", "WARNING")
    assert "cannot be used since 00:00:00 UTC: 0: failure 2." in warning.getMessage()
    assert "tried again, each time for up to 600 s" in warning.getMessage()
    assert f"works again, after {clock.time:.0f} s" in over.getMessage()


async def test_a_store_that_hiccups_is_no_flood(shaky, clock, caplog) -> None:
    """A store that fails now and then is told of once; a long outage soon after is told of all the same."""
    store = patient(shaky, clock, deadline=600.0)
    for number in range(50):
        shaky.failures["a"] = 1
        await store.get("a")
        assert len(caplog.records) == 2, number
    shaky.failures["a"] = 8
    await store.get("a")
    assert len(caplog.records) == 4


async def test_a_store_that_came_back_unseen(shaky, clock, caplog) -> None:
    """After an operation was given up, the end of the outage is told by the next one that succeeds."""
    store = patient(shaky, clock, deadline=40.0)
    shaky.failures["a"] = 1_000
    for _ in range(3):
        with pytest.raises(StoreError):
            await store.get("a")
    assert len(caplog.records) == 1
    shaky.failures["a"] = 0
    await store.get("a")
    assert f"works again, after {clock.time:.0f} s" in caplog.records[-1].getMessage()


async def test_giving_up_is_not_said_to_be_well(shaky, clock, caplog) -> None:
    """Who gives up raises; the log does not say that the store works again."""
    caplog.set_level(logging.INFO)
    shaky.failures["a"] = 1_000
    with pytest.raises(StoreError):
        await patient(shaky, clock).get("a")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.1, 900))
def test_pauses_are_bounded(draws, deadline) -> None:
    """Whatever is drawn, no pause is over 15 s and nothing is tried later than the deadline."""
    clock, values = FakeClock(), iter(draws)

    class Dead:
        url = "dead"

        async def get(self, path: str) -> bytes:
            raise StoreError("store_unreachable", "dead")

    store = PatientStore(Dead(), clock, deadline=deadline, jitter=lambda: next(values, 1.0))
    with pytest.raises(StoreError):
        asyncio.run(store.get("a"))
    assert max(clock.sleeps) <= 15
    assert sum(clock.sleeps) == pytest.approx(deadline)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_operation_that_hangs_is_no_reason_to_wait(shaky, clock, monkeypatch, operation: str) -> None:
    """A call that gives no answer ends as trouble when the run's time is over: a stop waits for no stalled store."""
    left: list[float | None] = [None]
    hanging = asyncio.Event()

    async def hang(*_: object) -> None:
        hanging.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(shaky, operation, hang)
    store = patient(shaky, clock, time_left=lambda: left[0])
    working = asyncio.create_task(call_of(store, operation, "a/b")())
    await hanging.wait()
    assert not working.done()
    left[0] = 0.0
    with pytest.raises(StoreError, match="no answer"):
        await asyncio.wait_for(working, 10)


async def test_what_is_wrong_now_can_be_asked(shaky, clock) -> None:
    """While an operation is tried again, `trouble` says what it failed with; before and after there is none."""
    store = patient(shaky, clock, deadline=600.0)
    asked: list[str] = []
    clock.then = lambda: asked.append(str(store.trouble))
    assert store.trouble is None
    shaky.failures["a"] = 2
    await store.get("a")
    assert len(asked) == 2
    assert all("a: failure 1." in text for text in asked)
    assert store.trouble is None


async def test_an_operation_without_an_answer_is_a_trouble_too(shaky, clock, monkeypatch) -> None:
    """One that hangs for half the deadline is a trouble before the deadline is over: then nobody need race."""

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(shaky, "get", hang)
    store = patient(shaky, clock, deadline=100.0)
    working = asyncio.create_task(store.get("a"))
    await asyncio.sleep(0)
    assert store.trouble is None
    clock.time = 50.0
    for _ in range(1_000):
        if store.trouble is None:
            await asyncio.sleep(0.01)
    assert store.trouble is not None
    assert "no answer for 50 s" in store.trouble.message
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert store.trouble is None
