"""Whether another run still works: told by its process, or by the store's own clock."""

import asyncio
import dataclasses
import json
import os
import secrets
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.io.heartbeat import Heartbeat, Process, StoreNeighbours
from prefect_imagegen.io.limits import SystemClock
from prefect_imagegen.io.object_store import open_object_store
from prefect_imagegen.ports import ObjectInfo

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a process's start is told by /proc"),
]
ELSEWHERE = Process("n2", "another-boot", 1, 5)


class Ticks:
    """A clock whose sleeps are over at once, a few times."""

    def __init__(self) -> None:
        self.sleeps: list[float] = []
        self.enough = asyncio.Event()

    def now(self) -> datetime:
        return datetime(1999, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        if len(self.sleeps) > 3:
            self.enough.set()
            await asyncio.Event().wait()


class DatedStore:
    """A store in memory that keeps the times that a test gives it: the store's own clock."""

    url = "memory://dated"

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, datetime | None]] = {}
        self.time: datetime | None = datetime(2026, 8, 1, tzinfo=UTC)
        self.puts: list[str] = []

    async def get(self, path: str) -> bytes | None:
        return self.objects[path][0] if path in self.objects else None

    async def create(self, path: str, data: bytes, content_type: str = "") -> bool:
        if path in self.objects:
            return False
        await self.put(path, data)
        return True

    async def put(self, path: str, data: bytes, content_type: str = "") -> None:
        self.objects[path] = (data, self.time)
        self.puts.append(path)

    async def head(self, path: str) -> ObjectInfo | None:
        if path not in self.objects:
            return None
        data, modified = self.objects[path]
        return ObjectInfo(path, len(data), modified)

    async def list(self, prefix: str) -> list[ObjectInfo]:
        return [info for path in sorted(self.objects) if (info := await self.head(path))]


@pytest.fixture
def store():
    opened = open_object_store(f"memory://{secrets.token_hex(6)}/store")
    yield opened
    opened.close()


async def beat(store, run_id, process) -> None:
    await Heartbeat(store, run_id, process, Ticks()).beat()


async def life(store, run_id, process, *, beats: bool = True) -> str:
    """The state of a run as run-2 sees it, having just given its own sign of life."""
    heartbeat = Heartbeat(store, "run-2", process, Ticks())
    if beats:
        await heartbeat.beat()
    return await StoreNeighbours(store, heartbeat, process, Ticks()).life(run_id)


async def test_the_heartbeat_names_its_process(store) -> None:
    """The sign of life holds nonce, boot id, pid and the start of the process."""
    me = Process.this("n1")
    await beat(store, "run-1", me)
    assert json.loads(await store.get("runs/run-1/heartbeat.json")) == dataclasses.asdict(me)
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


async def test_a_run_of_this_very_process_is_alive(store) -> None:
    """Two runs of one living process see one another as alive."""
    me = Process.this("n1")
    await beat(store, "run-1", me)
    assert await life(store, "run-1", me) == "live"


@pytest.fixture
def child():
    """A process that waits to be killed, and its start in clock ticks since boot."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    yield process, started
    process.kill()
    process.communicate()


async def test_a_killed_process_is_dead_at_once(store, child) -> None:
    """A run on this boot of this machine whose process is gone is dead, however fresh its last beat is."""
    process, started = child
    me = Process.this("n1")
    await beat(store, "run-1", dataclasses.replace(me, nonce="n2", pid=process.pid, started=started))
    assert await life(store, "run-1", me) == "live"
    process.kill()
    process.communicate()
    assert await life(store, "run-1", me) == "gone"


async def test_a_pid_that_was_given_again_is_another_process(store) -> None:
    """A pid alone proves nothing: with another start time it is another process, and the run is dead."""
    me = Process.this("n1")
    await beat(store, "run-1", dataclasses.replace(me, nonce="n2", started=me.started - 1))
    assert await life(store, "run-1", me) == "gone"


async def test_a_pid_of_another_machine_says_nothing(store) -> None:
    """On another boot or machine only the beat counts, whatever runs here under that pid."""
    me = Process.this("n1")
    await beat(store, "run-1", ELSEWHERE)
    assert await life(store, "run-1", me) == "live"


@pytest.mark.parametrize(
    ("behind", "alive"), [(0, True), (-30, True), (89, True), (90, True), (91, False), (9999, False)]
)
async def test_a_stale_beat_is_told_by_the_store(behind, alive) -> None:
    """A run is alive while its beat is at most 90 seconds behind ours by the store's times, never by ours."""
    store, me = DatedStore(), Process.this("n1")
    await beat(store, "run-1", ELSEWHERE)
    store.time += timedelta(seconds=behind)
    assert await life(store, "run-1", me) == ("live" if alive else "silent")


async def test_a_run_without_heartbeat_is_dead(store) -> None:
    """A run that never gave a sign of life does not hold anybody up."""
    me = Process.this("n1")
    assert await life(store, "run-1", me) == "silent"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"{}", b'{"nonce": "x"}', b"null", b"7"])
async def test_an_unreadable_heartbeat_counts_as_alive(store, data) -> None:
    """A sign of life that cannot be read is taken for one: nobody submits over a claim on a guess."""
    await store.put(layout.run("run-1", "heartbeat.json"), data)
    assert await life(store, "run-1", Process.this("n1")) == "live"


async def test_a_store_without_times_counts_as_alive() -> None:
    """Where the store tells no times, or we have not beaten yet, a run is not declared dead."""
    store, me = DatedStore(), Process.this("n1")
    await beat(store, "run-1", ELSEWHERE)
    assert await life(store, "run-1", me, beats=False) == "live"
    store.time = None
    await beat(store, "run-1", ELSEWHERE)
    assert await life(store, "run-1", me) == "live"


async def test_a_run_that_has_ended_is_gone(store) -> None:
    """The last beat of a run says so: its rows are free at once, though its process lives."""
    me = Process.this("n1")
    await Heartbeat(store, "run-1", me, Ticks()).beat(ended=True)
    assert await life(store, "run-1", me) == "gone"


async def test_the_store_tells_the_time() -> None:
    """Ages are told by the store's clock: its time at our last beat, and what has passed here since."""
    store, clock = DatedStore(), Ticks()
    heartbeat = Heartbeat(store, "run-2", Process.this("n1"), clock)
    assert heartbeat.store_now() == clock.now()
    await heartbeat.beat()
    clock.monotonic = lambda: 40.0
    assert heartbeat.store_now() == store.time + timedelta(seconds=40)


async def test_containers_of_one_machine(tmp_path) -> None:
    """A process of another container shares the boot and is not seen here: only time tells that it is gone."""
    store = open_object_store(str(tmp_path))
    us, clock = Process.this("n1"), SystemClock()
    heartbeat = Heartbeat(store, "run1", us, clock)
    await heartbeat.beat()
    boot = us.boot_id.split()[0]
    there = dataclasses.replace(us, nonce="n2", boot_id=f"{boot} pid:[1]", pid=4_000_000)
    await Heartbeat(store, "run2", there, clock).beat()
    await Heartbeat(store, "run3", dataclasses.replace(there, boot_id=us.boot_id), clock).beat()
    neighbours = StoreNeighbours(store, heartbeat, us, clock)
    assert (await neighbours.life("run2"), await neighbours.life("run3")) == ("live", "gone")
    store.close()
