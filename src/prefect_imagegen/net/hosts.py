"""Limits per host of references: requests at once, pauses that a host asks for, and when to skip a busy host."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from weakref import WeakValueDictionary

LONGEST_PAUSE_S = 60.0
"""A host that asks for a longer pause is left to a later run."""
_BUSY_IN_A_ROW = 3
_SKIP_S = 60.0
_REMEMBERED = 10_000


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Timing:
    """Clock, sleep and jitter (0 to 1), in one place so that tests can bring their own."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = _now
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random


@dataclass(slots=True)
class _Record:
    paused_until: float = 0.0
    busy_in_a_row: int = 0
    skipped_until: float = 0.0


@dataclass(frozen=True, slots=True)
class HostRecords:
    """What was learned about hosts during a plan or a run; may be used in several event loops in turn."""

    timing: Timing = field(default_factory=Timing)
    _records: dict[str, _Record] = field(default_factory=dict)

    def pause_left(self, host: str) -> float:
        """Seconds left of the pause that the host asked for; zero or less if there is none."""
        return self._of(host).paused_until - self.timing.monotonic()

    def pause(self, host: str, seconds: float) -> None:
        """Send the host no requests for so many seconds."""
        record = self._of(host)
        record.paused_until = max(record.paused_until, self.timing.monotonic() + seconds)

    def is_skipped(self, host: str) -> bool:
        """Whether the host was busy for several references in a row, and is skipped for a while."""
        return self._of(host).skipped_until > self.timing.monotonic()

    def answered(self, host: str) -> None:
        """Note that the host answered a request for a reference, whatever the answer."""
        self._of(host).busy_in_a_row = 0

    def found_busy(self, host: str) -> None:
        """Note that all tries for a reference found the host busy; after three in a row it is skipped for a minute."""
        record = self._of(host)
        record.busy_in_a_row += 1
        if record.busy_in_a_row >= _BUSY_IN_A_ROW:
            record.skipped_until = self.timing.monotonic() + _SKIP_S

    def _of(self, host: str) -> _Record:
        if host not in self._records:
            if len(self._records) >= _REMEMBERED:
                self._records.clear()
            self._records[host] = _Record()
        return self._records[host]


class HostTurns:
    """Limits requests to each host, for one event loop: `at_once` at a time, none while the host asks for a pause."""

    def __init__(self, records: HostRecords, at_once: int) -> None:
        self._records = records
        self._at_once = at_once
        self._reference_gates: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._request_gates: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def reference_turn(self, host: str) -> AsyncIterator[None]:
        """Hold one of the host's `at_once` places for all tries for a reference, pauses included.

        So other references wait, and a host that stays busy is noticed after a few.
        """
        async with self._gate(self._reference_gates, host):
            yield

    @asynccontextmanager
    async def request_turn(self, host: str) -> AsyncIterator[None]:
        """Wait until a request to the host may be sent; the context counts as that request."""
        async with self._gate(self._request_gates, host):
            while (left := self._records.pause_left(host)) > 0 and not self._records.is_skipped(host):
                await self._records.timing.sleep(left)
            yield

    def _gate(self, gates: "WeakValueDictionary[str, asyncio.Semaphore]", host: str) -> asyncio.Semaphore:
        """The host's semaphore, which exists for as long as somebody uses it."""
        gate = gates.get(host)
        if gate is None:
            gate = gates[host] = asyncio.Semaphore(self._at_once)
        return gate
