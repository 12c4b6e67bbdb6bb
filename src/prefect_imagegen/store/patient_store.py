"""An object store that tries failed operations again, for as long as the run may wait."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.policy.outages import Outage, since_text
from prefect_imagegen.ports import Clock, ObjectInfo, ObjectStore

T = TypeVar("T")
FINAL_KINDS = frozenset({"store_no_create_only", "store_conflict", "store_damaged", "run_not_found"})
"""Error kinds that are raised at once, since another try cannot change them."""
_TICK_S = 0.25
_LONG = 0.5
"""The part of the deadline after which an operation without an answer is shown as trouble."""
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0
_MEANWHILE = (
    "What it did not take is kept and tried again, each time for up to %.0f s; then the run stops, and can be resumed."
)
_logger = logging.getLogger(__name__)


class PatientStore:
    """A `ports.ObjectStore` around another one, whose failed operations are tried again with full-jitter back-off.

    An operation is given up, with its last StoreError, `deadline` seconds after its own first failure, or as soon as
    `time_left` (seconds until a stopping run has to be at its end; None: no limit) has nothing left. Kinds of
    `FINAL_KINDS` are raised at once.

    `create` may return False for an object that an earlier try of the same call wrote, when that try's answer was lost.
    Callers that must know whether an object is theirs compare its content or nonce; client libraries that resend by
    themselves make that necessary anyway.
    """

    def __init__(
        self,
        store: ObjectStore,
        clock: Clock,
        *,
        deadline: float,
        time_left: Callable[[], float | None] = lambda: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.url = store.url
        self._store = store
        self._clock = clock
        self._deadline = deadline
        self._time_left = time_left
        self._jitter = jitter
        self._troubles: list[StoreError] = []
        self._outage = Outage()

    @property
    def trouble(self) -> StoreError | None:
        """The current trouble: set while an operation is being tried again, or has had no answer for long."""
        return self._troubles[0] if self._troubles else None

    async def get(self, path: str) -> bytes | None:
        """The bytes of an object; None if there is none."""
        return await self._patiently(lambda: self._store.get(path))

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        """Create-only put: True if written, False if the path exists (an earlier try of this call may have made it)."""
        return await self._patiently(lambda: self._store.create(path, data, content_type))

    async def put(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Write or replace an object, atomically."""
        await self._patiently(lambda: self._store.put(path, data, content_type))

    async def delete(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""
        await self._patiently(lambda: self._store.delete(path))

    async def head(self, path: str) -> ObjectInfo | None:
        """Size and time of an object; None if there is none."""
        return await self._patiently(lambda: self._store.head(path))

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        """All objects below a folder, sorted by path; empty if there are none."""
        return await self._patiently(lambda: self._store.list(prefix))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await self._once(call)
        except StoreError as error:
            if error.kind in FINAL_KINDS:
                raise
            return await self._again(call, error)
        self._note_success()
        return answer

    async def _once(self, call: Callable[[], Awaitable[T]]) -> T:
        """Try once. A call that hangs counts as failed after the deadline, or when the run's time is over.

        It may still succeed on the store's side, like any try whose answer was lost.
        """
        trying = asyncio.ensure_future(call())
        started = self._clock.monotonic()
        slow: StoreError | None = None
        try:
            while not trying.done():
                await asyncio.wait((trying,), timeout=_TICK_S)
                seconds = self._clock.monotonic() - started
                if not trying.done() and (seconds >= self._deadline or self._time_left() == 0):
                    raise self._no_answer(seconds)
                if slow is None and seconds >= self._deadline * _LONG:
                    slow = self._no_answer(seconds)
                    self._troubles.append(slow)
            return trying.result()
        finally:
            trying.cancel()
            if slow is not None:
                self._troubles.remove(slow)

    def _no_answer(self, seconds: float) -> StoreError:
        return StoreError(
            "store_unreachable",
            f"{self.url} has given no answer for {seconds:.0f} s.",
            remedy="Check the store, then run the same command again.",
        )

    async def _again(self, call: Callable[[], Awaitable[T]], error: StoreError) -> T:
        """Try a failed operation again, until it succeeds or its time is over; then raise its last error."""
        end = self._clock.monotonic() + self._deadline
        longest = _PAUSE_S
        first = error
        self._troubles.append(first)
        self._note_failure(first)
        succeeded = False
        try:
            while (left := self._left(end)) > 0:
                await self._clock.sleep(min(self._jitter() * longest, left))
                longest = min(2 * longest, _LONGEST_PAUSE_S)
                try:
                    answer = await self._once(call)
                except StoreError as again:
                    error = again
                    if error.kind in FINAL_KINDS:
                        break
                    self._note_failure(error)
                else:
                    succeeded = True
                    return answer
            raise error
        finally:
            self._troubles.remove(first)
            if succeeded:
                self._note_success()

    def _left(self, end: float) -> float:
        own, of_the_run = end - self._clock.monotonic(), self._time_left()
        return own if of_the_run is None else min(own, of_the_run)

    def _note_failure(self, error: StoreError) -> None:
        """Log that the store is unavailable: once per outage, not once per operation."""
        lasted = self._outage.failed(self._clock.monotonic())
        if lasted is not None:
            since, most = since_text(lasted, self._clock.now()), self._deadline
            _logger.warning("The store cannot be used %s: %s %s", since, error.message, _MEANWHILE % most)

    def _note_success(self) -> None:
        """Log that the store is back, once no operation is being tried again any more."""
        if self._troubles or not self._outage.is_on:
            return
        seconds = self._outage.worked(self._clock.monotonic())
        if seconds is not None:
            _logger.warning("The store %s works again, after %.0f s. Nothing was lost.", self.url, seconds)
