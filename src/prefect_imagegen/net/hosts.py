"""How hosts of references are treated: so many requests at once, pauses that they ask for, and when to let them be."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from weakref import WeakValueDictionary

LONGEST_PAUSE_S = 60.0
"""Who asks for a longer one is left for a later run."""
_BUSY_IN_A_ROW = 3
_LET_BE_S = 60.0
_REMEMBERED = 10_000


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Timing:
    """The clocks that waiting goes by, and the dice; tests bring their own."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = _now
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random


@dataclass(slots=True)
class _Record:
    paused_until: float = 0.0
    busy_in_a_row: int = 0
    let_be_until: float = 0.0


@dataclass(frozen=True, slots=True)
class HostRecords:
    """What is known of hosts, for as long as a plan or a run lasts; it may outlive the event loop that it began in."""

    timing: Timing = field(default_factory=Timing)
    _records: dict[str, _Record] = field(default_factory=dict)

    def pause_left(self, host: str) -> float:
        """Seconds for which the host is to be left alone, by its own word."""
        return self._of(host).paused_until - self.timing.monotonic()

    def pause(self, host: str, seconds: float) -> None:
        """Nobody asks the host for so long."""
        record = self._of(host)
        record.paused_until = max(record.paused_until, self.timing.monotonic() + seconds)

    def is_let_be(self, host: str) -> bool:
        """Whether the host was busy for one reference after the other: further ones are not asked for just now."""
        return self._of(host).let_be_until > self.timing.monotonic()

    def answered(self, host: str) -> None:
        """The host gave an answer about a reference, whatever it was."""
        self._of(host).busy_in_a_row = 0

    def gave_up(self, host: str) -> None:
        """All tries for a reference found the host busy. After a time, one more reference may find out anew."""
        record = self._of(host)
        record.busy_in_a_row += 1
        if record.busy_in_a_row >= _BUSY_IN_A_ROW:
            record.let_be_until = self.timing.monotonic() + _LET_BE_S

    def _of(self, host: str) -> _Record:
        if host not in self._records:
            if len(self._records) >= _REMEMBERED:
                self._records.clear()
            self._records[host] = _Record()
        return self._records[host]


class HostTurns:
    """Turns at hosts, for one event loop: at most `at_once` requests to each, none while a host asks for a pause."""

    def __init__(self, records: HostRecords, at_once: int) -> None:
        self._records = records
        self._at_once = at_once
        self._errands: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._gates: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def errand(self, host: str) -> AsyncIterator[None]:
        """All tries for one reference of a host, with the pauses between them.

        Those that come after wait for the end of these, so that a host which stays busy is found out with a few.
        """
        async with self._gate(self._errands, host):
            yield

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Wait until the host may be asked; what is asked within counts as one request."""
        async with self._gate(self._gates, host):
            while (left := self._records.pause_left(host)) > 0 and not self._records.is_let_be(host):
                await self._records.timing.sleep(left)
            yield

    def _gate(self, gates: "WeakValueDictionary[str, asyncio.Semaphore]", host: str) -> asyncio.Semaphore:
        """The gate of a host, kept for as long as somebody waits at it."""
        gate = gates.get(host)
        if gate is None:
            gate = gates[host] = asyncio.Semaphore(self._at_once)
        return gate
