"""The sign of life of a run: `runs/<run_id>/heartbeat.json`, replaced by its one writer every 15 seconds."""

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
_BEAT_WITHIN_S = 60.0
"""A beat that takes longer has failed."""
DEADLINE_S = 600.0
DEAD_AFTER = timedelta(seconds=90)
UNCLEAR_DEAD_AFTER = timedelta(hours=24)
"""A heartbeat that nobody can read, or whose time nobody can tell, says nothing more after so long."""
_AGAIN_S = 5.0
_KNOWN_FOR_S = 5.0
_PROC = Path("/proc")
_STATE, _THREADS, _START = 0, 17, 19
"""Where the kernel's line of a process has its state, its threads and its start, counted after the name."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_closed: deque[str] = deque(maxlen=1000)
"""The nonces of the last runs of this process that are over, whether or not the store has heard of it."""


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

    def close(self) -> None:
        """Let other runs of this process know that this one is over, also where its last beat cannot be written."""
        _closed.append(self.nonce)


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life as read: who gave it, and when by the clock of its own machine, where it says."""

    process: Process
    at: datetime | None

    @classmethod
    def parse(cls, data: bytes) -> "Beat | None":
        """The sign of life in some bytes, with or without `at`, whatever else they hold; None if they are none."""
        try:
            found = json.loads(data)
            process = Process(**{one.name: found[one.name] for one in fields(Process) if one.name in found})
        except (ValueError, TypeError):
            return None
        told = (process.nonce, process.boot_id, process.pid, process.started, process.ended)
        if not all(map(isinstance, told, (str, str, int, int | None, bool))) or process.pid < 1:
            return None
        try:
            at = datetime.fromisoformat(found["at"])
        except (ValueError, TypeError, KeyError):
            return cls(process, None)
        return cls(process, at if at.tzinfo else at.replace(tzinfo=UTC))


def _unbeaten(error: StoreError | TimeoutError) -> StoreError:
    """Why a run can give no sign of life any more."""
    if isinstance(error, StoreError):
        return error
    return StoreError("store_unreachable", "The store takes no heartbeat.", remedy="Check the store.")


class Heartbeat:
    """Writes one run's sign of life, and tells the store's time by it.

    `store` is one that fails at once: trying again is done here. `deadline`: so many seconds without a good beat are
    too many.
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
        """Write it once; with `ended`, for the last time. `store`: a more patient one, for the first and the last."""
        store = store or self._store
        content = asdict(replace(self._process, ended=ended)) | {"at": self._clock.now().isoformat()}
        begun = self._clock.monotonic()
        await store.put(self._path, json.dumps(content).encode(), "application/json")
        self._begun = begun
        self._note(await store.head(self._path))

    async def ask_time(self) -> None:
        """Learn the store's time without a sign of life, for those who only look after a store."""
        await self._store.put(layout.LEDGER_TIME, b"")
        self._note(await self._store.head(layout.LEDGER_TIME))

    async def keep_beating(self) -> None:
        """Write it every 15 seconds, until cancelled; one that fails is tried again every 5 seconds.

        Raises the last StoreError once none has succeeded for `deadline` seconds.
        """
        started, pause = self._clock.monotonic(), PERIOD_S
        while True:
            await self._clock.sleep(pause)
            try:
                await asyncio.wait_for(self.beat(), _BEAT_WITHIN_S)
            except (StoreError, TimeoutError) as error:
                if min(self.age(), self._clock.monotonic() - started) >= self._deadline:
                    raise _unbeaten(error) from error
                pause = _AGAIN_S
            else:
                pause = PERIOD_S

    def age(self) -> float:
        """Seconds since the last good beat was begun, so never fewer than others see; infinite before the first."""
        return self._clock.monotonic() - self._begun

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


class Sights:
    """Which heartbeats this process has seen, and since when it has seen them as they are."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first: dict[str, tuple[bytes, float]] = {}

    def age(self, path: str, data: bytes, at: datetime | None) -> timedelta:
        """How old a heartbeat is that the store tells no time of: as it says itself, else since we first saw it so."""
        now = self._clock.now()
        if at is not None and at <= now:
            return now - at
        seen, since = self._first.get(path, (None, 0.0))
        if seen != data:
            since = self._clock.monotonic()
            self._first[path] = (data, since)
        return timedelta(seconds=self._clock.monotonic() - since)


class StoreRunLiveness:
    """`ports.RunLiveness` from the heartbeats in the store; each is read at most every 5 seconds."""

    def __init__(self, store: ObjectStore, heartbeat: Heartbeat, process: Process, clock: Clock) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._process = process
        self._clock = clock
        self._sights = Sights(clock)
        self._known: dict[str, tuple[float, Liveness]] = {}

    async def liveness_of(self, owner: str) -> Liveness:
        """Whether the owner of a heartbeat (its path) still works, by the store's times of both heartbeats."""
        now = self._clock.monotonic()
        asked, found = self._known.get(owner, (0.0, None))
        if found is None or (found != "dead" and now - asked > _KNOWN_FOR_S):
            found = await heartbeat_liveness(
                self._store, owner, self._heartbeat.store_now(), self._process, self._sights
            )
            self._known[owner] = (now, found)
        return found

    def since_beat(self) -> float:
        """Seconds since our own last good sign of life."""
        return self._heartbeat.age()

    def store_now(self) -> datetime:
        """The present time by the store's clock."""
        return self._heartbeat.store_now()


async def heartbeat_liveness(
    store: ObjectStore, owner: str, moment: datetime, process: Process, sights: Sights
) -> Liveness:
    """The state of the owner of a heartbeat (its path) at a moment of the store's time. Doubt counts as life.

    Dead at once if it has ended, or if it ran on this boot of this machine and its process is no more. A heartbeat
    that cannot be read, or that the store tells no time of, counts as alive for a day, then as stale.
    """
    info, data = await store.head(owner), await store.get(owner)
    if info is None or data is None:
        return "stale"
    theirs = Beat.parse(data)
    if theirs is not None and is_gone(theirs.process, process):
        return "dead"
    if info.modified is None:
        age, limit = sights.age(owner, data, theirs.at if theirs else None), UNCLEAR_DEAD_AFTER
    else:
        age, limit = moment - info.modified, DEAD_AFTER if theirs else UNCLEAR_DEAD_AFTER
    return "alive" if age <= limit else "stale"


def is_gone(other: Process, observer: Process) -> bool:
    """Whether a run has ended for certain: it said so, or the observer's own process or machine runs it no more."""
    if other.ended or other.nonce in _closed:
        return True
    if not other.boot_id or other.boot_id != observer.boot_id:
        return False
    found = _stat(other.pid)
    if found is None:
        # Where /proc hides the processes of other users (hidepid), the kernel still tells whether there is one.
        return not _exists(other.pid)
    if found[_STATE] in ("Z", "X") and int(found[_THREADS]) <= 1:
        return True
    return other.started is not None and int(found[_START]) != other.started


def _machine() -> str:
    """What two processes share that see each other in /proc; empty where there is no telling."""
    try:
        return f"{_BOOT_ID.read_text().strip()} {_PID_NAMESPACE.readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """The start of a process in clock ticks since boot; None if it is gone, or where /proc is not."""
    found = _stat(pid)
    return None if found is None else int(found[_START])


def _stat(pid: int) -> list[str] | None:
    """What the kernel says of a process, from its state on; None if it says nothing."""
    try:
        found = (_PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return found if len(found) > _START else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
