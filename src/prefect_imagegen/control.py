"""How a run stops: shared by all its shards, and by whatever listens to signals."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from prefect_imagegen.core.breaker import Breaker
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.ports import Clock


class RunControl:
    """How a run stops, shared by all its shards: first reason wins; an interruption also lets go of what was sent."""

    def __init__(self, clock: Clock, *, deadline: float, max_failure_rate: float) -> None:
        self.stop_reason: str | None = None
        self.stop_message: str | None = None
        self.dead_models: dict[str, str] = {}
        self.interrupted = asyncio.Event()
        self._stopped = asyncio.Event()
        self._clock = clock
        self._deadline = deadline
        self._breaker = Breaker(max_failure_rate)
        self._progress = clock.monotonic()

    @property
    def stopped(self) -> bool:
        """Whether no new call may be sent."""
        return self._stopped.is_set()

    def stop(self, reason: str, message: str) -> None:
        """Send nothing more; what was sent is still fetched."""
        if self.stop_reason is None:
            self.stop_reason, self.stop_message = reason, message
        self._stopped.set()

    def interrupt(self, reason: str, message: str) -> None:
        """Stop, and leave what was sent as held: its request ids are durable, the next run fetches it."""
        self.stop(reason, message)
        self.interrupted.set()

    async def sleep(self, seconds: float) -> None:
        """Wait, but not longer than until the run stops."""
        await self.unless_stopped(self._clock.sleep(seconds))

    async def unless_stopped(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Wait for something, but not longer than until the run stops."""
        both = (asyncio.ensure_future(waiting), asyncio.ensure_future(self._stopped.wait()))
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()

    def progressed(self) -> None:
        """Note that a call was accepted or an image came."""
        self._progress = self._clock.monotonic()

    def check_progress(self, why: str) -> None:
        """Stop if nothing has moved for so long as the deadline allows."""
        if self._clock.monotonic() - self._progress > self._deadline:
            self.stop("deadline", f"no progress for {self._deadline:.0f} s: {why}")

    def finished(self, result: RequestResult) -> None:
        """Take a finished request into the circuit breaker's account; one that waits for others says nothing."""
        telling = result.status in ("generated", "failed", "held") and result.error_kind != "other_run"
        if telling and self._breaker.record(failed=result.status != "generated"):
            self.stop("too_many_failures", f"too many rows failed, the last with: {result.error_message}")
