"""The parking lot: rows that wait for something other than a slot, while their shards and the run go on."""

import asyncio
from dataclasses import dataclass

from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.pending import Defer, PendingRequest

CAPACITY = 10_000
"""More rows than this are held at once, so that memory stays bounded; the next run settles them."""
_LOOK_GRACE_S = 2.0
"""The look that is due just when the straggler limit is reached is still made."""
_TICK_S = 0.25


@dataclass(slots=True)
class Parked:
    """A row in the lot, since a time of the monotonic clock."""

    row: PendingRequest
    step: Defer
    since: float
    task: "asyncio.Task[RequestResult]"


class DeferredRequests:
    """Parked rows of one run, by request key."""

    def __init__(self, context: ExecutorContext) -> None:
        self._context = context
        self._rows: dict[bytes, Parked] = {}

    @property
    def full(self) -> bool:
        """Whether no further row can be parked."""
        return len(self._rows) >= CAPACITY

    def add(self, row: PendingRequest, step: Defer, task: "asyncio.Task[RequestResult]") -> None:
        """Park a row, which `task` brings to its end."""
        since = self._context.clock.monotonic() if row.sent_at is None else row.sent_at
        self._rows[row.key] = Parked(row, step, since, task)

    def again(self, row: PendingRequest, step: Defer) -> None:
        """The row goes on waiting, for something else."""
        self._rows[row.key].step = step

    async def empty(self) -> list[tuple[PendingRequest, RequestResult]]:
        """Wait until only stragglers are left, give those up as held, and say what became of all rows."""
        while waiting := [one for one in self._rows.values() if not one.task.done()]:
            if self._context.control.interrupted.is_set() or all(self._is_straggler(one) for one in waiting):
                break
            await asyncio.wait([one.task for one in waiting], timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        left = list(self._rows.values())
        await self._drained(left)
        for one in left:
            one.task.cancel()
        ends = await asyncio.gather(*(one.task for one in left), return_exceptions=True)
        self._rows.clear()
        found = []
        for one, end in zip(left, ends, strict=True):
            if isinstance(end, Exception):
                raise end
            found.append((one.row, one.step.drop() if isinstance(end, BaseException) else end))
        return found

    async def abandon(self) -> None:
        """Let go of all rows at once, for the caller of the run has cancelled it: their claims hold them."""
        left = list(self._rows.values())
        self._rows.clear()
        for parked in left:
            parked.task.cancel()
            parked.step.drop()
        tasks = [task for parked in left for task in (parked.task, parked.step.work) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drained(self, left: list[Parked]) -> None:
        """Let calls that are under way come to their end, for as long as the stop clock of an interruption runs."""
        while busy := [one.task for one in left if (one.row.in_use or one.row.is_posting) and not one.task.done()]:
            if self._context.control.time_left() == 0:
                return
            await asyncio.wait(busy, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)

    def _is_straggler(self, one: Parked) -> bool:
        if one.row.waits:
            return True
        if one.row.is_posting:
            return False  # it ends by its answer, by its connection, or after --deadline
        limit = self._context.straggler_limit
        age = self._context.clock.monotonic() - one.since
        return not one.row.in_use and age > limit + _LOOK_GRACE_S
