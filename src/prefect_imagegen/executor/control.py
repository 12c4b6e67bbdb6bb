"""How a run stops: shared by all its shards, and by whatever listens to signals."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.policy.breaker import Breaker
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.ports import Clock

STOP_CLOCK_S = 25.0
"""What an interrupted run has left for draining, for what is not stored yet, and for its results: Prefect kills a
cancelled run after 30 s."""
_WATCH_S = 1.0


class RunControl:
    """How a run stops, shared by all its shards: first reason wins; an interruption also lets go of what was sent."""

    def __init__(self, clock: Clock, *, deadline: float, max_failure_rate: float) -> None:
        self.stop_reason: str | None = None
        self.stop_message: str | None = None
        self.dead_models: dict[str, str] = {}
        self.interrupted = asyncio.Event()
        self.store_trouble: Callable[[], StoreError | None] = lambda: None
        """What is wrong with the store, where something is: then that is why nothing moves."""
        self._stopped = asyncio.Event()
        self._clock = clock
        self._deadline = deadline
        self._breaker = Breaker(max_failure_rate)
        self._progress = self._moved = clock.monotonic()
        self._interrupted_at: float | None = None

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
        if self._interrupted_at is None:
            self._interrupted_at = self._clock.monotonic()
        self.interrupted.set()

    def time_left(self, within: float = STOP_CLOCK_S) -> float | None:
        """Seconds left on the stop clock, which all that still waits shares; None while the run goes on.

        `within`: those left of an earlier end, so many seconds after the interruption.
        """
        if self._interrupted_at is None:
            return None
        return max(0.0, self._interrupted_at + min(within, STOP_CLOCK_S) - self._clock.monotonic())

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

    def moved(self) -> None:
        """Note that some row has gone a step further, whatever that was."""
        self._moved = self._clock.monotonic()

    async def watch(self) -> None:
        """Until cancelled: interrupt the run when no row has moved for so long as the deadline allows."""
        while True:
            await self._clock.sleep(_WATCH_S)
            if self._interrupted_at is None and self._clock.monotonic() - self._moved >= self._deadline:
                trouble = self.store_trouble()
                if trouble is not None:
                    self.interrupt("store", str(trouble))
                else:
                    self.interrupt("deadline", f"nothing moved for {self._deadline:.0f} s")

    def progressed(self) -> None:
        """Note that a call was accepted or an image came."""
        self._progress = self._clock.monotonic()
        self.moved()

    def check_progress(self, why: str) -> None:
        """Stop if nothing has moved for so long as the deadline allows."""
        if self._clock.monotonic() - self._progress >= self._deadline:
            self.stop("deadline", f"no progress for {self._deadline:.0f} s: {why}")

    def finished(self, result: RequestResult) -> None:
        """Take a finished request into the circuit breaker's account; one that waits for others says nothing."""
        telling = result.status in ("generated", "failed", "held") and result.error_kind != "other_run"
        if telling and self._breaker.record(failed=result.status != "generated"):
            self.stop("too_many_failures", f"too many rows failed, the last with: {result.error_message}")
