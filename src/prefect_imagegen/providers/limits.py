"""The system clock, and the rate limiter that all calls of a process share."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime


class SystemClock:
    """A `ports.Clock` that reads the machine's clocks."""

    def now(self) -> datetime:
        """The present time, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""
        await asyncio.sleep(seconds)


class RateGate:
    """A `ports.RateLimiter`: spaces calls evenly, and pauses all of them. `per_minute` None or 0 means no limit.

    `sleep` is how the gate waits; it may return early when a run stops.
    """

    def __init__(
        self, per_minute: float | None, monotonic: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._monotonic = monotonic
        self._sleep = sleep
        self._next = 0.0
        self._paused_until = 0.0

    async def acquire(self) -> None:
        """Wait until one call may be sent (or the sleep ends early because the run stops)."""
        now = self._monotonic()
        at = max(now, self._next)
        self._next = at + self._interval
        if at > now:
            await self._sleep(at - now)
        while (wait := self._paused_until - self._monotonic()) > 0:
            paused_until = self._paused_until
            await self._sleep(wait)
            if paused_until == self._paused_until and self._monotonic() < paused_until:
                return

    def pause(self, seconds: float) -> None:
        """Hold all calls back for so many seconds."""
        self._paused_until = max(self._paused_until, self._monotonic() + seconds)
