"""Deferred requests: they wait for something other than a slot, while their shards and the run go on."""

import asyncio
from dataclasses import dataclass

from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.pending import Defer, PendingRequest

CAPACITY = 10_000
"""The most deferred requests, so that memory stays bounded; further ones end as held, for the next run."""
_LOOK_GRACE_S = 2.0
"""Extra seconds, so that a lookup that is due just when the straggler limit is reached is still made."""
_TICK_S = 0.25


@dataclass(slots=True)
class DeferredRequest:
    """A request that waits, since when (monotonic clock), and the task that brings it to its end."""

    row: PendingRequest
    step: Defer
    since: float
    task: "asyncio.Task[RequestResult]"


class DeferredRequests:
    """The deferred requests of one run, by request key."""

    def __init__(self, context: ExecutorContext) -> None:
        self._context = context
        self._requests: dict[bytes, DeferredRequest] = {}

    @property
    def full(self) -> bool:
        """Whether no further request can be deferred."""
        return len(self._requests) >= CAPACITY

    def add(self, row: PendingRequest, step: Defer, task: "asyncio.Task[RequestResult]") -> None:
        """Defer a request, which `task` brings to its end."""
        since = self._context.clock.monotonic() if row.sent_at is None else row.sent_at
        self._requests[row.key] = DeferredRequest(row, step, since, task)

    def update(self, row: PendingRequest, step: Defer) -> None:
        """Note that a deferred request now waits for something else."""
        self._requests[row.key].step = step

    async def finish(self) -> list[tuple[PendingRequest, RequestResult]]:
        """Wait until only stragglers are left, give those up as held, and return the results of all requests."""
        while waiting := [request for request in self._requests.values() if not request.task.done()]:
            if self._context.control.interrupted.is_set() or all(map(self._is_straggler, waiting)):
                break
            tasks = [request.task for request in waiting]
            await asyncio.wait(tasks, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        left = list(self._requests.values())
        await self._drain(left)
        for request in left:
            request.task.cancel()
        ends = await asyncio.gather(*(request.task for request in left), return_exceptions=True)
        self._requests.clear()
        results = []
        for request, end in zip(left, ends, strict=True):
            if isinstance(end, Exception):
                raise end
            results.append((request.row, request.step.drop() if isinstance(end, BaseException) else end))
        return results

    async def abandon(self) -> None:
        """Cancel all requests at once, since the run's caller has cancelled it; their claims keep them as held."""
        left = list(self._requests.values())
        self._requests.clear()
        for request in left:
            request.task.cancel()
            request.step.drop()
        tasks = [task for request in left for task in (request.task, request.step.work) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, left: list[DeferredRequest]) -> None:
        """Let requests that are being worked on come to their end, as long as an interruption leaves time."""
        while tasks := [request.task for request in left if self._is_at_work(request)]:
            if self._context.control.time_left() == 0:
                return
            await asyncio.wait(tasks, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)

    @staticmethod
    def _is_at_work(request: DeferredRequest) -> bool:
        return (request.row.in_use or request.row.is_posting) and not request.task.done()

    def _is_straggler(self, request: DeferredRequest) -> bool:
        if request.row.is_waiting:
            return True
        if request.row.is_posting:
            return False  # it ends by its answer, by its connection, or after --deadline
        limit = self._context.straggler_limit
        age = self._context.clock.monotonic() - request.since
        return not request.row.in_use and age > limit + _LOOK_GRACE_S
