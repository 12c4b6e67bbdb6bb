"""A run's own heartbeat: what it says, how often, and what happens when it fails."""

import asyncio
import dataclasses
import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.ports import ObjectInfo
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from tests.store.heartbeat.conftest import DatedStore, Passing, Ticks, beat

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a process's start is told by /proc"),
]


async def test_the_heartbeat_names_its_process(store) -> None:
    """The sign of life holds nonce, boot id, pid and the start of the process, and its machine's time."""
    me = Process.this("n1")
    await beat(store, "run-1", me)
    content = json.loads(await store.get("runs/run-1/heartbeat.json"))
    assert content == dataclasses.asdict(me) | {"at": "1999-01-01T00:00:00+00:00"}
    assert me.pid == os.getpid()
    assert me.started
    assert me.boot_id


async def test_it_beats_every_fifteen_seconds() -> None:
    """The sign of life is replaced every 15 seconds for as long as the run works."""
    store, clock = DatedStore(), Ticks()
    task = asyncio.create_task(Heartbeat(store, "run-1", Process.this("n1"), clock).keep_beating())
    await clock.enough.wait()
    task.cancel()
    assert clock.sleeps == [15.0] * 4
    assert store.puts == [layout.run("run-1", "heartbeat.json")] * 3


class Failing(DatedStore):
    """A store whose puts, or heads, fail until a moment of the clock."""

    def __init__(self, clock: Passing, until: float, operation: str = "put") -> None:
        super().__init__()
        self.clock, self.until, self.operation = clock, until, operation

    def _check(self, operation: str) -> None:
        if operation == self.operation and self.clock.time < self.until:
            raise StoreError("store_unreachable", f"down at {self.clock.time:.0f}")

    async def put(self, path: str, data: bytes, content_type: str = "") -> None:
        self._check("put")
        await super().put(path, data)

    async def head(self, path: str) -> ObjectInfo | None:
        self._check("head")
        return await super().head(path)


async def test_a_failed_beat_is_tried_again() -> None:
    """A beat that fails is tried again every 5 seconds; when one succeeds, the next comes 15 seconds later."""
    clock = Passing()
    store = Failing(clock, 0.0)
    heartbeat = Heartbeat(store, "run-1", Process.this("n1"), clock)
    await heartbeat.beat()
    store.until, clock.horizon = 500.0, 560.0
    beating = asyncio.create_task(heartbeat.keep_beating())
    await clock.enough.wait()
    beating.cancel()
    assert clock.sleeps[:2] == [15.0, 5.0]
    assert set(clock.sleeps[1:98]) == {5.0}
    assert set(clock.sleeps[98:]) == {15.0}


async def test_silence_for_too_long_ends_the_beating() -> None:
    """When no beat has succeeded for `deadline` seconds the last error is raised, and not before."""
    clock = Passing()
    store = Failing(clock, 0.0)
    heartbeat = Heartbeat(store, "run-1", Process.this("n1"), clock, deadline=120.0)
    clock.time = 100.0
    await heartbeat.beat()
    store.until = 1e9
    with pytest.raises(StoreError, match="down at 220"):
        await heartbeat.keep_beating()
    assert Heartbeat(store, "run-1", Process.this("n1"), clock)._deadline == 600.0


async def test_beating_may_begin_in_an_outage() -> None:
    """Where there was no good beat yet, the deadline counts from the start of the beating."""
    clock = Passing()
    clock.time = 1_000.0
    heartbeat = Heartbeat(Failing(clock, 1e9), "run-1", Process.this("n1"), clock, deadline=60.0)
    with pytest.raises(StoreError, match="down at 1060"):
        await heartbeat.keep_beating()


async def test_a_beat_whose_time_cannot_be_asked_is_a_beat() -> None:
    """Others see what was put: where only the store's time cannot be read, the beating goes on."""
    clock = Passing()
    heartbeat = Heartbeat(Failing(clock, 1e9, "head"), "run-1", Process.this("n1"), clock, deadline=60.0)
    clock.horizon = 300.0
    beating = asyncio.create_task(heartbeat.keep_beating())
    await clock.enough.wait()
    assert not beating.done()
    beating.cancel()
    assert heartbeat.age() <= 5


async def test_the_age_of_a_beat_counts_from_its_beginning() -> None:
    """The age is infinite before the first good beat, and counts from when that was begun, not from its answer."""
    clock = Passing()
    me = Process.this("n1")

    class Slow(DatedStore):
        async def put(self, path: str, data: bytes, content_type: str = "") -> None:
            clock.time += 20
            await super().put(path, data)

    store = Slow()
    heartbeat = Heartbeat(store, "run-1", me, clock)
    run_liveness = StoreRunLiveness(store, heartbeat, me, clock)
    assert heartbeat.age() == float("inf")
    await heartbeat.ask_time()
    assert run_liveness.since_beat() == float("inf")
    await heartbeat.beat()
    assert heartbeat.age() == 20
    clock.time += 7
    assert run_liveness.since_beat() == heartbeat.age() == 27


async def test_the_store_tells_the_time() -> None:
    """Ages are told by the store's clock: its time at our last beat, and what has passed here since."""
    store, clock = DatedStore(), Ticks()
    heartbeat = Heartbeat(store, "run-2", Process.this("n1"), clock)
    assert heartbeat.store_now() == clock.now()
    await heartbeat.beat()
    clock.monotonic = lambda: 40.0
    assert heartbeat.store_now() == store.time + timedelta(seconds=40)
