"""The pace of polls, shared by all rows of a process: their usual latency, and the rate gate once it is needed."""

import asyncio
from collections import deque
from statistics import median

from prefect_imagegen.core.retry import next_poll
from prefect_imagegen.ports import RateLimiter

_NEWEST = 50
"""So many of the newest latencies tell what is usual."""


class Polls:
    """When the next poll of a job is due. The first 429 that any poll meets makes all later polls take rate tokens."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._limited = False
        self._latencies: deque[float] = deque(maxlen=_NEWEST)

    async def wait(self, elapsed: float) -> None:
        """Wait until the next poll of a job that was submitted `elapsed` seconds ago is due."""
        # The median: a job that was stuck for minutes says nothing of when the next one will be done.
        await asyncio.sleep(next_poll(elapsed, median(self._latencies) if self._latencies else None))

    async def turn(self) -> None:
        """Wait for the turn of one GET: at once, or for a rate token after the first 429."""
        if self._limited:
            await self._limiter.acquire()

    def refused(self, pause: float | None) -> None:
        """A poll was answered with 429: everybody pauses, and polls join the rate gate from now on."""
        self._limited = True
        self._limiter.pause(pause or 5.0)

    def ended(self, elapsed: float) -> None:
        """Take the latency of a finished job in, in seconds."""
        self._latencies.append(elapsed)
