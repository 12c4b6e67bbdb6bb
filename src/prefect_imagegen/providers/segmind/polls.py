"""The pace of GETs, shared by all rows of a process: what the API can bear, and how long its jobs usually take."""

import asyncio
from collections import deque
from contextlib import suppress
from statistics import median

from prefect_imagegen.core.policy.backoff import next_poll
from prefect_imagegen.core.policy.pace import Pace

_NEWEST = 50
"""So many of the newest latencies tell what is usual."""
_LONGEST_GAP_S = 5.0
_INSTANT_S = 1e-4
"""Sleeping for less is no sleep: the clock of a loop need not move."""


class Turns:
    """Whose turn it is to send a GET to one host. It has a budget of its own: a 429 here holds no POST back."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._turn = asyncio.Lock()
        self._moved = asyncio.Event()

    async def take(self) -> float:
        """Wait until one GET may go out: at once, unless a 429 has said otherwise. The time of sending."""
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
        """A GET that was sent at a time was answered with 429; `pause` is what it asks for."""
        self._pace.refused(sent=sent, at=asyncio.get_running_loop().time(), pause=pause)

    def answered(self, sent: float) -> None:
        """A GET that was sent at a time was answered with anything else."""
        self._pace.answered(sent=sent, at=asyncio.get_running_loop().time())
        self._moved.set()


class Polls(Turns):
    """When the next poll of a job is due."""

    def __init__(self) -> None:
        super().__init__()
        self._latencies: deque[float] = deque(maxlen=_NEWEST)
        self.failures = 0
        """Polls in a row that got no answer that is understood."""

    async def wait(self, elapsed: float) -> None:
        """Wait until the next poll of a job that was submitted `elapsed` seconds ago is due."""
        # The median: a job that was stuck for minutes says nothing of when the next one will be done.
        pause = next_poll(elapsed, median(self._latencies) if self._latencies else None)
        # While nobody is answered, everybody asks more seldom.
        await asyncio.sleep(max(pause, min(_LONGEST_GAP_S, 0.1 * 2 ** min(self.failures, 8)) if self.failures else 0))

    def failed(self) -> None:
        """A poll got no answer that is understood."""
        self.failures += 1

    def understood(self) -> None:
        """A poll was understood."""
        self.failures = 0

    def ended(self, elapsed: float) -> None:
        """Take the latency of a finished job in, in seconds."""
        self._latencies.append(elapsed)
