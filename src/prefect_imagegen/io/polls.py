"""The pace of polls, shared by all rows of a process: their usual latency, and what the API can bear."""

import asyncio
from collections import deque
from statistics import median

from prefect_imagegen.core.retry import next_poll

_NEWEST = 50
"""So many of the newest latencies tell what is usual."""
_FIRST_GAP_S, _LONGEST_GAP_S = 0.2, 5.0
_FORGET_S = 60.0
"""So long after the last refusal the gap between polls is halved, again and again."""
_DEFAULT_PAUSE_S = 5.0


class Polls:
    """When the next poll of a job is due.

    Polls have a budget of their own: a 429 pauses polls, and spreads them out for some minutes; calls that make images
    are not held back for it.
    """

    def __init__(self) -> None:
        self._latencies: deque[float] = deque(maxlen=_NEWEST)
        self._gap = 0.0
        self._refused_at = 0.0
        self._next = 0.0
        self.failures = 0
        """Polls in a row that got no answer that is understood."""

    async def wait(self, elapsed: float) -> None:
        """Wait until the next poll of a job that was submitted `elapsed` seconds ago is due."""
        # The median: a job that was stuck for minutes says nothing of when the next one will be done.
        pause = next_poll(elapsed, median(self._latencies) if self._latencies else None)
        # While nobody is answered, everybody asks more seldom.
        await asyncio.sleep(max(pause, min(_LONGEST_GAP_S, 0.1 * 2 ** min(self.failures, 8)) if self.failures else 0))

    async def turn(self) -> None:
        """Wait for the turn of one GET: at once, unless a 429 has spread polls out."""
        now = asyncio.get_running_loop().time()
        while self._gap and now - self._refused_at > _FORGET_S:
            self._gap = self._gap / 2 if self._gap > _FIRST_GAP_S else 0.0
            self._refused_at += _FORGET_S
        at = max(now, self._next)
        self._next = at + self._gap
        if at > now:
            await asyncio.sleep(at - now)

    def refused(self, pause: float | None) -> None:
        """A poll was answered with 429: polls pause, and come more slowly for a while."""
        now = asyncio.get_running_loop().time()
        self._gap = min(_LONGEST_GAP_S, max(_FIRST_GAP_S, 2 * self._gap))
        self._refused_at = now
        self._next = max(self._next, now + (pause or _DEFAULT_PAUSE_S))

    def failed(self) -> None:
        """A poll got no answer that is understood."""
        self.failures += 1

    def answered(self) -> None:
        """A poll was understood."""
        self.failures = 0

    def ended(self, elapsed: float) -> None:
        """Take the latency of a finished job in, in seconds."""
        self._latencies.append(elapsed)
