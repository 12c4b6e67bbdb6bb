"""Stopping a run: one object that all its shards and the signal handlers share."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.policy.breaker import Breaker
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.ports import Clock

STOP_CLOCK_S = 25.0
"""Seconds that an interrupted run has to drain its calls and to store its results: Prefect kills a cancelled run
after 30 s."""
_WATCH_S = 1.0


class RunControl:
    """Stops a run; shared by all its shards. The first reason is kept.

    `stop` ends the sending: calls that were sent are still fetched. `interrupt` also gives up waiting for them.
    """

    def __init__(self, clock: Clock, *, deadline: float, max_failure_rate: float) -> None:
        self.stop_reason: str | None = None
        self.stop_message: str | None = None
        self.dead_models: dict[str, str] = {}
        self.interrupted = asyncio.Event()
        self.store_trouble: Callable[[], StoreError | None] = lambda: None
        """The store's present error, if any; set by the app. A run that does not move then stops for that reason."""
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
        """Send nothing more; results of calls that were sent are still fetched."""
        if self.stop_reason is None:
            self.stop_reason, self.stop_message = reason, message
        self._stopped.set()

    def interrupt(self, reason: str, message: str) -> None:
        """Stop, and leave calls that were sent as held: their request ids are durable, so the next run fetches them."""
        self.stop(reason, message)
        if self._interrupted_at is None:
            self._interrupted_at = self._clock.monotonic()
        self.interrupted.set()

    def time_left(self, within: float = STOP_CLOCK_S) -> float | None:
        """Seconds left until everything has to have ended; None while the run is not interrupted.

        `within`: seconds after the interruption, where something has to end before `STOP_CLOCK_S`.
        """
        if self._interrupted_at is None:
            return None
        return max(0.0, self._interrupted_at + min(within, STOP_CLOCK_S) - self._clock.monotonic())

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds, or until the run stops."""
        await self.unless_stopped(self._clock.sleep(seconds))

    async def unless_stopped(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Await something, or until the run stops; it is cancelled then."""
        tasks = (asyncio.ensure_future(waiting), asyncio.ensure_future(self._stopped.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def moved(self) -> None:
        """Note that some row took a step, of any kind."""
        self._moved = self._clock.monotonic()

    async def watch(self) -> None:
        """Interrupt the run once no row has taken a step for the length of the deadline. Runs until it is cancelled."""
        while True:
            await self._clock.sleep(_WATCH_S)
            if self._interrupted_at is None and self._clock.monotonic() - self._moved >= self._deadline:
                trouble = self.store_trouble()
                if trouble is not None:
                    self.interrupt("store", str(trouble))
                else:
                    self.interrupt("deadline", f"nothing moved for {self._deadline:.0f} s")

    def progressed(self) -> None:
        """Note that a call was accepted or an image arrived."""
        self._progress = self._clock.monotonic()
        self.moved()

    def check_progress(self, why: str) -> None:
        """Stop the run if no call was accepted and no image arrived for the length of the deadline."""
        if self._clock.monotonic() - self._progress >= self._deadline:
            self.stop("deadline", f"no progress for {self._deadline:.0f} s: {why}")

    def finished(self, result: RequestResult) -> None:
        """Report a finished request to the circuit breaker; one that waits for another run does not count."""
        counts = result.status in ("generated", "failed", "held") and result.error_kind != "other_run"
        if counts and self._breaker.record(failed=result.status != "generated"):
            self.stop("too_many_failures", f"too many rows failed, the last with: {result.error_message}")
