"""A run's heartbeat, `runs/<run_id>/heartbeat.json`: written by the run every 15 seconds, read by other runs.

The last-modified times of heartbeats also tell every run the store's clock, which all runs share.
"""

import asyncio
import json
import os
from collections import deque
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.ports import Clock, Liveness, ObjectInfo, ObjectStore

PERIOD_S = 15.0
_BEAT_TIMEOUT_S = 60.0
"""A heartbeat whose write takes longer counts as failed."""
DEADLINE_S = 600.0
DEAD_AFTER = timedelta(seconds=90)
UNCLEAR_DEAD_AFTER = timedelta(hours=24)
"""How long a heartbeat counts that cannot be parsed, or whose time is not known."""
_RETRY_S = 5.0
_STATE_VALID_S = 5.0
_PROC = Path("/proc")
_STATE, _THREADS, _START = 0, 17, 19
"""Positions of state, number of threads and start time in /proc/<pid>/stat, counted after the name."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_closed: deque[str] = deque(maxlen=1000)
"""Nonces of the last runs of this process that have ended, even if their last heartbeat could not be written."""


@dataclass(frozen=True, slots=True)
class Process:
    """The process that writes a heartbeat: a nonce, the machine's boot id, the process id and the process's start.

    `started`: clock ticks since boot, None if unknown. `boot_id` also holds the namespace of process ids, since
    containers of one machine do not see each other's processes. `ended` is set in the last heartbeat of a run.
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

    def close(self) -> None:
        """Mark the run as ended for other runs of this process, even if its last heartbeat cannot be written."""
        _closed.append(self.nonce)


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat as read: the process that wrote it, and its own machine's time (None if the file has none)."""

    process: Process
    at: datetime | None

    @classmethod
    def parse(cls, data: bytes) -> "Beat | None":
        """Parse a heartbeat file; unknown fields are ignored, `at` may be missing. None if it is no heartbeat."""
        try:
            content = json.loads(data)
            process = Process(
                **{
                    process_field.name: content[process_field.name]
                    for process_field in fields(Process)
                    if process_field.name in content
                }
            )
        except (ValueError, TypeError):
            return None
        values = (process.nonce, process.boot_id, process.pid, process.started, process.ended)
        if not all(map(isinstance, values, (str, str, int, int | None, bool))) or process.pid < 1:
            return None
        try:
            at = datetime.fromisoformat(content["at"])
        except (ValueError, TypeError, KeyError):
            return cls(process, None)
        return cls(process, at if at.tzinfo else at.replace(tzinfo=UTC))


def _beat_error(error: StoreError | TimeoutError) -> StoreError:
    """The StoreError for a heartbeat that could not be written."""
    if isinstance(error, StoreError):
        return error
    return StoreError("store_unreachable", "The store takes no heartbeat.", remedy="Check the store.")


class Heartbeat:
    """Writes one run's heartbeat, and knows the store's time from it.

    `store` must fail at once, since `keep_beating` does the retries. `deadline`: seconds without a successful
    heartbeat after which `keep_beating` gives up.
    """

    def __init__(
        self, store: ObjectStore, run_id: str, process: Process, clock: Clock, *, deadline: float = DEADLINE_S
    ) -> None:
        self._store = store
        self._path = layout.heartbeat(run_id)
        self._process = process
        self._clock = clock
        self._deadline = deadline
        self._begun = float("-inf")
        self._written: tuple[datetime, float] | None = None

    async def beat(self, *, ended: bool = False, store: ObjectStore | None = None) -> None:
        """Write the heartbeat once; `ended` marks the last one. `store`: another client, for the first and the last.

        Raises StoreError.
        """
        store = store or self._store
        content = asdict(replace(self._process, ended=ended)) | {"at": self._clock.now().isoformat()}
        begun = self._clock.monotonic()
        await store.put(self._path, json.dumps(content).encode(), "application/json")
        self._begun = begun
        self._note(await store.head(self._path))

    async def ask_time(self) -> None:
        """Learn the store's time without writing a heartbeat, for maintenance commands. Raises StoreError."""
        await self._store.put(layout.LEDGER_TIME, b"")
        self._note(await self._store.head(layout.LEDGER_TIME))

    async def keep_beating(self) -> None:
        """Write the heartbeat every 15 seconds until cancelled; after a failure, try again every 5 seconds.

        Raises the last StoreError once none has succeeded for `deadline` seconds.
        """
        started, pause = self._clock.monotonic(), PERIOD_S
        while True:
            await self._clock.sleep(pause)
            try:
                await asyncio.wait_for(self.beat(), _BEAT_TIMEOUT_S)
            except (StoreError, TimeoutError) as error:
                if min(self.age(), self._clock.monotonic() - started) >= self._deadline:
                    raise _beat_error(error) from error
                pause = _RETRY_S
            else:
                pause = PERIOD_S

    def age(self) -> float:
        """Seconds since the last successful heartbeat was begun; infinite before the first.

        Never less than the age that other runs see.
        """
        return self._clock.monotonic() - self._begun

    def _note(self, info: ObjectInfo | None) -> None:
        if info is not None and info.modified is not None:
            # The local time is taken after the put, so `store_now` is never ahead of the store.
            self._written = (info.modified, self._clock.monotonic())

    def store_now(self) -> datetime:
        """The present time by the store's clock; this machine's time where the store reports no times."""
        if self._written is None:
            return self._clock.now()
        moment, at = self._written
        return moment + timedelta(seconds=self._clock.monotonic() - at)


class HeartbeatAges:
    """The ages of heartbeats in stores that report no times: how long each has been seen unchanged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first: dict[str, tuple[bytes, float]] = {}

    def age(self, path: str, data: bytes, at: datetime | None) -> timedelta:
        """The age of the heartbeat at `path` with content `data`.

        By its own time `at`, if that is not in the future; else the time since this content was first seen.
        """
        now = self._clock.now()
        if at is not None and at <= now:
            return now - at
        known_data, since = self._first.get(path, (None, 0.0))
        if known_data != data:
            since = self._clock.monotonic()
            self._first[path] = (data, since)
        return timedelta(seconds=self._clock.monotonic() - since)


class StoreRunLiveness:
    """A `ports.RunLiveness` that reads the other runs' heartbeats, each at most every 5 seconds."""

    def __init__(self, store: ObjectStore, heartbeat: Heartbeat, process: Process, clock: Clock) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._process = process
        self._clock = clock
        self._ages = HeartbeatAges(clock)
        self._known: dict[str, tuple[float, Liveness]] = {}

    async def liveness_of(self, owner: str) -> Liveness:
        """Whether the run that owns the heartbeat at path `owner` is alive, stale or dead; see `heartbeat_liveness`."""
        now = self._clock.monotonic()
        asked_at, state = self._known.get(owner, (0.0, None))
        if state is None or (state != "dead" and now - asked_at > _STATE_VALID_S):
            state = await heartbeat_liveness(self._store, owner, self._heartbeat.store_now(), self._process, self._ages)
            self._known[owner] = (now, state)
        return state

    def since_beat(self) -> float:
        """Seconds since our own last successful heartbeat."""
        return self._heartbeat.age()

    def store_now(self) -> datetime:
        """The present time by the store's clock."""
        return self._heartbeat.store_now()


async def heartbeat_liveness(
    store: ObjectStore, owner: str, moment: datetime, process: Process, ages: HeartbeatAges
) -> Liveness:
    """Whether the run that owns the heartbeat at path `owner` is alive, stale or dead. Raises StoreError.

    `moment` is the present time by the store's clock, `process` our own process.
    Dead: it has said so, or it ran on this boot of this machine and its process no longer exists. Stale: there is no
    heartbeat, or its last one is older than 90 s; 24 h where it cannot be parsed or the store reports no times. Else
    alive: doubt counts as alive.
    """
    info, data = await store.head(owner), await store.get(owner)
    if info is None or data is None:
        return "stale"
    theirs = Beat.parse(data)
    if theirs is not None and is_dead(theirs.process, process):
        return "dead"
    if info.modified is None:
        age, limit = ages.age(owner, data, theirs.at if theirs else None), UNCLEAR_DEAD_AFTER
    else:
        age, limit = moment - info.modified, DEAD_AFTER if theirs else UNCLEAR_DEAD_AFTER
    return "alive" if age <= limit else "stale"


def is_dead(other: Process, observer: Process) -> bool:
    """Whether a run has certainly ended: it said so, or `observer`'s machine no longer runs its process."""
    if other.ended or other.nonce in _closed:
        return True
    if not other.boot_id or other.boot_id != observer.boot_id:
        return False
    stat = _stat(other.pid)
    if stat is None:
        # Where /proc hides the processes of other users (hidepid), a signal still tells whether the process exists.
        return not _exists(other.pid)
    if stat[_STATE] in ("Z", "X") and int(stat[_THREADS]) <= 1:
        return True
    return other.started is not None and int(stat[_START]) != other.started


def _machine() -> str:
    """Boot id and namespace of process ids: equal for processes that see each other in /proc. Empty if unknown."""
    try:
        return f"{_BOOT_ID.read_text().strip()} {_PID_NAMESPACE.readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """The start of a process in clock ticks since boot; None if it has ended, or without /proc."""
    stat = _stat(pid)
    return None if stat is None else int(stat[_START])


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state on; None if they cannot be read."""
    try:
        stat_fields = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return stat_fields if len(stat_fields) > _START else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
