"""Whether another run still works: told by its process, or by the store's own clock."""

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
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.store import heartbeat as heartbeat_module
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from prefect_imagegen.store.object_store import open_object_store
from tests.store.heartbeat.conftest import DatedStore, Passing, Ticks, beat

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a process's start is told by /proc"),
]
ELSEWHERE = Process("n2", "another-boot", 1, 5)


async def life(store, run_id, process, *, beats: bool = True) -> str:
    """The state of a run as run-2 sees it, having just given its own sign of life."""
    heartbeat = Heartbeat(store, "run-2", process, Ticks())
    if beats:
        await heartbeat.beat()
    return await StoreRunLiveness(store, heartbeat, process, Ticks()).liveness_of(layout.heartbeat(run_id))


async def test_a_run_of_this_very_process_is_alive(store) -> None:
    """Two runs of one living process see one another as alive."""
    me = Process.this("n1")
    await beat(store, "run-1", me)
    assert await life(store, "run-1", me) == "alive"


async def test_a_run_of_this_process_that_is_over_is_gone(store) -> None:
    """A run that ended in this process is gone for the others in it, though the store took no last beat of it."""
    me, other = Process.this("n1"), Process.this(secrets.token_hex(4))
    await beat(store, "run-1", other)
    other.close()
    assert await life(store, "run-1", me) == "dead"


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
    assert await life(store, "run-1", me) == "alive"
    process.kill()
    process.communicate()
    assert await life(store, "run-1", me) == "dead"


async def test_a_pid_that_was_given_again_is_another_process(store) -> None:
    """A pid alone proves nothing: with another start time it is another process, and the run is dead."""
    me = Process.this("n1")
    await beat(store, "run-1", dataclasses.replace(me, nonce="n2", started=me.started - 1))
    assert await life(store, "run-1", me) == "dead"


async def test_a_pid_of_another_machine_says_nothing(store) -> None:
    """On another boot or machine only the beat counts, whatever runs here under that pid."""
    me = Process.this("n1")
    await beat(store, "run-1", ELSEWHERE)
    assert await life(store, "run-1", me) == "alive"


@pytest.mark.parametrize(
    ("behind", "alive"), [(0, True), (-30, True), (89, True), (90, True), (91, False), (9999, False)]
)
async def test_a_stale_beat_is_told_by_the_store(behind, alive) -> None:
    """A run is alive while its beat is at most 90 seconds behind ours by the store's times, never by ours."""
    store, me = DatedStore(), Process.this("n1")
    await beat(store, "run-1", ELSEWHERE)
    store.time += timedelta(seconds=behind)
    assert await life(store, "run-1", me) == ("alive" if alive else "stale")


async def test_a_run_without_heartbeat_is_dead(store) -> None:
    """A run that never gave a sign of life does not hold anybody up."""
    me = Process.this("n1")
    assert await life(store, "run-1", me) == "stale"


UNREADABLE = [
    *(b"", b"{", b"[]", b'"x"', b"{}", b'{"nonce": "x"}', b"null", b"7", b"\xff"),
    b'{"nonce": 1, "boot_id": "b", "pid": 1, "started": 1}',
    b'{"nonce": "n", "boot_id": "b", "pid": "1", "started": 1}',
    b'{"nonce": "n", "boot_id": "b", "pid": 0, "started": 1}',
    b'{"nonce": "n", "boot_id": "b", "pid": 1, "started": []}',
    b'{"nonce": "n", "boot_id": "b", "pid": 1, "started": 1, "ended": "no"}',
]


@pytest.mark.parametrize("data", UNREADABLE)
async def test_an_unreadable_heartbeat_counts_as_alive_for_a_day(data) -> None:
    """A sign of life that cannot be read is taken for one for 24 hours, then it says nothing; it never proves death."""
    store, me = DatedStore(), Process.this("n1")
    await store.put(layout.heartbeat("run-1"), data)
    for hours, expected in ((0, "alive"), (24, "alive"), (24.01, "stale"), (9_999, "stale")):
        store.time = datetime(2026, 8, 1, tzinfo=UTC) + timedelta(hours=hours)
        assert await life(store, "run-1", me) == expected


@pytest.mark.parametrize("data", UNREADABLE)
async def test_an_unreadable_heartbeat_without_a_time(data) -> None:
    """Where the store tells no times either, the day begins when this process first sees the bytes as they are."""
    store, clock, me = DatedStore(), Passing(), Process.this("n1")
    store.time = None
    run_liveness = StoreRunLiveness(store, Heartbeat(store, "run-2", me, clock), me, clock)
    path = layout.heartbeat("run-1")
    await store.put(path, data)
    assert await run_liveness.liveness_of(path) == "alive"
    clock.time += 24 * 3600
    assert await run_liveness.liveness_of(path) == "alive"
    await store.put(path, data + b" changed")
    clock.time += 6
    assert await run_liveness.liveness_of(path) == "alive"
    clock.time += 24 * 3600
    assert await run_liveness.liveness_of(path) == "alive"
    clock.time += 6
    assert await run_liveness.liveness_of(path) == "stale"


async def test_before_our_own_beat_nobody_is_declared_dead() -> None:
    """Where we have not beaten yet, our own clock counts: one that is behind declares nobody dead."""
    store, me = DatedStore(), Process.this("n1")
    await beat(store, "run-1", ELSEWHERE)
    assert await life(store, "run-1", me, beats=False) == "alive"


@pytest.mark.parametrize(("ahead", "lives"), [(0, 24), (-23, 1), (5, 24)])
async def test_a_store_without_times_counts_as_alive_for_a_day(ahead, lives) -> None:
    """Where the store tells no times, a run lives for 24 hours by the time in its beat, or since we saw one to come."""
    store, clock, me = DatedStore(), Passing(), Process.this("n1")
    store.time = None
    theirs = Passing()
    theirs.time = ahead * 3600.0
    await Heartbeat(store, "run-1", ELSEWHERE, theirs).beat()
    run_liveness = StoreRunLiveness(store, Heartbeat(store, "run-2", me, clock), me, clock)
    path = layout.heartbeat("run-1")
    assert await run_liveness.liveness_of(path) == "alive"
    clock.time = lives * 3600.0
    assert await run_liveness.liveness_of(path) == "alive"
    theirs.time = clock.time
    await Heartbeat(store, "run-1", ELSEWHERE, theirs).beat()
    clock.time += 23 * 3600
    assert await run_liveness.liveness_of(path) == "alive"
    clock.time += 3601
    assert await run_liveness.liveness_of(path) == "stale"


@pytest.mark.parametrize(
    "more", [{}, {"at": None}, {"at": "?"}, {"at": "2026-08-01T00:00:00"}, {"later": [1], "at": 7}]
)
async def test_beats_of_other_versions_are_read(more) -> None:
    """A beat without its machine's time (an older version's), or with fields that we do not know, is a beat."""
    store, me = DatedStore(), Process.this("n1")
    for ended, behind, expected in ((False, 0, "alive"), (False, 91, "stale"), (True, 0, "dead")):
        store.time = datetime(2026, 8, 1, tzinfo=UTC)
        data = json.dumps(dataclasses.asdict(dataclasses.replace(ELSEWHERE, ended=ended)) | more).encode()
        await store.put(layout.heartbeat("run-1"), data)
        store.time += timedelta(seconds=behind)
        assert await life(store, "run-1", me) == expected


async def test_a_zombie_is_dead(store, child) -> None:
    """A killed process that nobody has waited for yet is dead all the same."""
    process, started = child
    me = Process.this("n1")
    await beat(store, "run-1", dataclasses.replace(me, nonce="n2", pid=process.pid, started=started))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - dead in a moment
    assert await life(store, "run-1", me) == "dead"


async def test_a_process_that_we_may_not_see(store, child, tmp_path, monkeypatch) -> None:
    """Where /proc hides the processes of other users, a living one is not taken for dead, and a dead one is."""
    process, started = child
    me = Process.this("n1")
    await beat(store, "run-1", dataclasses.replace(me, nonce="n2", pid=process.pid, started=started))
    monkeypatch.setattr(heartbeat_module, "_PROC", tmp_path)
    assert await life(store, "run-1", me) == "alive"
    process.kill()
    process.communicate()
    assert await life(store, "run-1", me) == "dead"


async def test_a_run_that_has_ended_is_gone(store) -> None:
    """The last beat of a run says so: its rows are free at once, though its process lives."""
    me = Process.this("n1")
    await Heartbeat(store, "run-1", me, Ticks()).beat(ended=True)
    assert await life(store, "run-1", me) == "dead"


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
    run_liveness = StoreRunLiveness(store, heartbeat, us, clock)
    states = [await run_liveness.liveness_of(layout.heartbeat(name)) for name in ("run2", "run3")]
    assert states == ["alive", "dead"]
    store.close()
