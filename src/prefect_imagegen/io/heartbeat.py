"""The sign of life of a run: `runs/<run_id>/heartbeat.json`, replaced by its one writer every 15 seconds."""

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from prefect_imagegen.core import layout
from prefect_imagegen.ports import Clock, Life, ObjectInfo, ObjectStore

PERIOD_S = 15.0
DEAD_AFTER = timedelta(seconds=90)
_KNOWN_FOR_S = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class Process:
    """Who writes: a nonce, the machine's boot, the process and its start (clock ticks since boot; None if unknown).

    `boot_id` names the namespace of process ids too: containers of one machine do not see each other's processes.
    `ended` is set by the last beat of a run that came to its end, whatever that was.
    """

    nonce: str
    boot_id: str
    pid: int
    started: int | None
    ended: bool = False

    @classmethod
    def this(cls, nonce: str) -> "Process":
        """The running process."""
        return cls(nonce, _machine(), os.getpid(), _start_of(os.getpid()))


class Heartbeat:
    """Writes one run's sign of life, and tells the store's time by it."""

    def __init__(self, store: ObjectStore, run_id: str, process: Process, clock: Clock) -> None:
        self._store = store
        self._path = layout.run(run_id, "heartbeat.json")
        self._process = process
        self._clock = clock
        self._written: tuple[datetime, float] | None = None

    async def beat(self, *, ended: bool = False) -> None:
        """Write it once; with `ended`, for the last time."""
        data = json.dumps(asdict(replace(self._process, ended=ended))).encode()
        await self._store.put(self._path, data, "application/json")
        self._note(await self._store.head(self._path))

    async def ask_time(self) -> None:
        """Learn the store's time without a sign of life, for those who only look after a store."""
        await self._store.put(layout.LEDGER_TIME, b"")
        self._note(await self._store.head(layout.LEDGER_TIME))

    async def keep_beating(self) -> None:
        """Write it every 15 seconds, until cancelled."""
        while True:
            await self._clock.sleep(PERIOD_S)
            await self.beat()

    def _note(self, found: ObjectInfo | None) -> None:
        if found is not None and found.modified is not None:
            # Taken after the put: what is told later is never ahead of the store.
            self._written = (found.modified, self._clock.monotonic())

    def store_now(self) -> datetime:
        """The present time by the store's clock; the machine's own where the store tells no times."""
        if self._written is None:
            return self._clock.now()
        moment, at = self._written
        return moment + timedelta(seconds=self._clock.monotonic() - at)


class StoreNeighbours:
    """A `ports.Neighbours`: other runs by their heartbeats, asked for at most every 5 seconds each."""

    def __init__(self, store: ObjectStore, heartbeat: Heartbeat, process: Process, clock: Clock) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._process = process
        self._clock = clock
        self._known: dict[str, tuple[float, Life]] = {}

    async def life(self, run_id: str) -> Life:
        """Whether another run still works: by the store's own times of both heartbeats, so clocks do not matter."""
        now = self._clock.monotonic()
        asked, found = self._known.get(run_id, (0.0, None))
        if found is None or (found != "gone" and now - asked > _KNOWN_FOR_S):
            found = await life_of(self._store, run_id, self._heartbeat.store_now(), self._process)
            self._known[run_id] = (now, found)
        return found

    def store_now(self) -> datetime:
        """The present time by the store's clock."""
        return self._heartbeat.store_now()


async def life_of(store: ObjectStore, run_id: str, moment: datetime, process: Process) -> Life:
    """The state of a run at a moment of the store's time. Doubt counts as life.

    Gone at once if it has ended, or if it ran on this boot of this machine and its process is no more.
    """
    path = layout.run(run_id, "heartbeat.json")
    theirs, data = await store.head(path), await store.get(path)
    if theirs is None or data is None:
        return "silent"
    try:
        other = Process(**json.loads(data))
    except (ValueError, TypeError):
        return "live"
    if other.ended:
        return "gone"
    if other.boot_id and other.boot_id == process.boot_id and _start_of(other.pid) != other.started:
        return "gone"
    return "live" if theirs.modified is None or moment - theirs.modified <= DEAD_AFTER else "silent"


def _machine() -> str:
    """What two processes share that see each other in /proc; empty where there is no telling."""
    try:
        return f"{_BOOT_ID.read_text().strip()} {_PID_NAMESPACE.readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """The start of a process in clock ticks since boot; None if it is gone, or where /proc is not."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, ValueError, IndexError):
        return None
