"""When GETs and polls may be sent, shared by all rows of a process: after 429s, and by the usual time of jobs."""

import asyncio
from collections import deque
from contextlib import suppress
from statistics import median

from prefect_imagegen.core.policy.backoff import next_poll
from prefect_imagegen.core.policy.pace import Pace

_NEWEST = 50
"""The usual latency is the median of this many of the newest ones."""
_MAX_GAP_S = 5.0
_INSTANT_S = 1e-4
"""The clock of an event loop need not move during a shorter sleep."""


class Turns:
    """Paces the GETs to one host, first come, first served. A 429 to a GET holds no POST back."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._turn = asyncio.Lock()
        self._moved = asyncio.Event()

    async def take(self) -> float:
        """Wait until one GET may be sent (at once, unless there were 429s); returns the loop time of sending."""
        clock = asyncio.get_running_loop()
        if self._pace.is_free and self._pace.due(clock.time()) <= clock.time():
            self._pace.sent(clock.time())
            return clock.time()
        async with self._turn:  # first come, first served
            while (wait := self._pace.due(clock.time()) - clock.time()) > _INSTANT_S:
                self._moved.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._moved.wait(), wait)
            self._pace.sent(clock.time())
            return clock.time()

    def refused(self, sent: float, pause: float | None) -> None:
        """Note that a GET sent at loop time `sent` was answered with 429; `pause` is the seconds it asks for."""
        self._pace.refused(sent=sent, at=asyncio.get_running_loop().time(), pause=pause)

    def answered(self, sent: float) -> None:
        """Note that a GET sent at loop time `sent` was answered with anything but 429."""
        self._pace.answered(sent=sent, at=asyncio.get_running_loop().time())
        self._moved.set()


class Polls(Turns):
    """Paces the polls of jobs: as `Turns`, and by how long jobs usually take."""

    def __init__(self) -> None:
        super().__init__()
        self._latencies: deque[float] = deque(maxlen=_NEWEST)
        self.failures = 0
        """Polls in a row without an answer that is understood."""

    async def wait(self, elapsed: float) -> None:
        """Wait until the next poll of a job that was submitted `elapsed` seconds ago is due."""
        # The median: a job that was stuck for minutes says nothing about the next one.
        pause = next_poll(elapsed, median(self._latencies) if self._latencies else None)
        # While no poll is answered, all callers ask less often.
        await asyncio.sleep(max(pause, min(_MAX_GAP_S, 0.1 * 2 ** min(self.failures, 8)) if self.failures else 0))

    def note_failure(self) -> None:
        """Note a poll without an answer that is understood."""
        self.failures += 1

    def note_success(self) -> None:
        """Note a poll whose answer was understood."""
        self.failures = 0

    def note_latency(self, elapsed: float) -> None:
        """Note the latency of a finished job, in seconds."""
        self._latencies.append(elapsed)
