"""The sign of life of a run: `runs/<run_id>/heartbeat.json`, replaced by its one writer every 15 seconds."""

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from prefect_imagegen.core import layout
from prefect_imagegen.ports import Clock, ObjectStore

PERIOD_S = 15.0
DEAD_AFTER = timedelta(seconds=90)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Process:
    """Who writes: a nonce, the machine's boot, the process and its start (clock ticks since boot; None if unknown).

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
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        return cls(nonce, boot, os.getpid(), _start_of(os.getpid()))


class Heartbeat:
    """Writes one run's sign of life."""

    def __init__(self, store: ObjectStore, run_id: str, process: Process, clock: Clock) -> None:
        self._store = store
        self._path = layout.run(run_id, "heartbeat.json")
        self._process = process
        self._clock = clock

    async def beat(self, *, ended: bool = False) -> None:
        """Write it once; with `ended`, for the last time."""
        data = json.dumps(asdict(replace(self._process, ended=ended))).encode()
        await self._store.put(self._path, data, "application/json")

    async def keep_beating(self) -> None:
        """Write it every 15 seconds, until cancelled."""
        while True:
            await self._clock.sleep(PERIOD_S)
            await self.beat()


async def is_alive(store: ObjectStore, run_id: str, own_run_id: str, process: Process) -> bool:
    """Whether another run still works: by the store's own times of both heartbeats, so clocks do not matter.

    Dead at once if it has ended, or if it ran on this boot of this machine and its process is gone.
    """
    ours = await store.head(layout.run(own_run_id, "heartbeat.json"))
    return await beats_at(store, run_id, ours.modified if ours else None, process)


async def beats_at(store: ObjectStore, run_id: str, moment: datetime | None, process: Process) -> bool:
    """Whether a run works at a moment of the store's time (None: unknown, so doubt counts as life)."""
    path = layout.run(run_id, "heartbeat.json")
    theirs, data = await store.head(path), await store.get(path)
    if theirs is None or data is None:
        return False
    try:
        other = Process(**json.loads(data))
    except (ValueError, TypeError):
        return True
    if other.ended:
        return False
    if other.boot_id and other.boot_id == process.boot_id and _start_of(other.pid) != other.started:
        return False
    return moment is None or theirs.modified is None or moment - theirs.modified <= DEAD_AFTER


def _start_of(pid: int) -> int | None:
    """The start of a process in clock ticks since boot; None if it is gone, or where /proc is not."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, ValueError, IndexError):
        return None
