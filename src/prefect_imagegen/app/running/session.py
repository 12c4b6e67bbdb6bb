"""The execution of one planned run in one process: its shards, and what they share."""

import asyncio
import io
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_imagegen.app.planning.prepare import PlannedRun
from prefect_imagegen.app.planning.stored_plan import StoredPlan
from prefect_imagegen.app.running.result import Earlier
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ImagegenError, StoreError
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.ledger.orders import CAP_USED, Spending, cap_is_used
from prefect_imagegen.core.results import RequestResult, results_of, results_table
from prefect_imagegen.executor import Executor, ExecutorContext
from prefect_imagegen.providers.settings import ProviderSettings

_IDLE_LOOK_S = 0.1
_MOST_SHARDS = 8
"""The most shards that may be open while their rows wait for a retry, as a multiple of the usual number."""


class SessionError(ImagegenError):
    """A session was used as it cannot be used. Nothing was called for it.

    `session_closed`; `session_elsewhere`: in another event loop than that of the plan; `shard_unknown`;
    `shard_open`: a shard that is being made already.
    """


@dataclass(slots=True)
class Stats:
    """Live figures of a run, for progress displays."""

    total: int = 0
    done: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    cost_usd: float = 0.0
    paid: int = 0
    unpriced: int = 0
    maybe_paid: int = 0

    def take(self, result: RequestResult) -> None:
        """Count one finished request."""
        self._count(result, 1)

    def replace(self, before: RequestResult, result: RequestResult) -> None:
        """Replace the counts of a request that was held for the time being (`before`) by its final result."""
        self._count(before, -1)
        self._count(result, 1)

    def _count(self, result: RequestResult, times: int) -> None:
        self.done += times
        self.statuses[result.status] += times
        if result.error_kind:
            self.kinds[result.error_kind] += times
        self.flagged += times * bool(result.image and result.image.flags)
        self.cost_usd += times * (result.cost_usd or 0.0)
        self.paid += times * result.paid
        self.unpriced += times * (result.paid > 0 and result.cost_usd is None)
        self.maybe_paid += times * result.maybe_paid


def check_loop(planned_run: PlannedRun) -> None:
    """Raise SessionError (`session_elsewhere`) in another event loop than that of the plan."""
    if asyncio.get_running_loop() is not planned_run.open_run.loop:
        raise SessionError(
            "session_elsewhere",
            "A run is planned and executed in one event loop, which its connections belong to, and this is another.",
            remedy="Await all its tasks in one async function; .submit and .map run them in other loops.",
        )


class Session:
    """A planned run that is open for execution. Get one from `open_session`; pass it to the tasks.

    No dataclass, since Prefect walks through the fields of those that are parameters of a task, at every call.
    """

    def __init__(
        self,
        planned_run: PlannedRun,
        plan: StoredPlan,
        context: ExecutorContext,
        *,
        view: LedgerView,
        settings: ProviderSettings,
        max_in_flight: int,
        left_out: Mapping[str, str],
        before: Spending,
    ) -> None:
        """`settings`: those of the provider that is used; `max_in_flight`: calls at once.

        `left_out`: GPU workers that are left out, by address, with the reason. `before`: what earlier executions of the
        same order have spent.
        """
        self.planned_run = planned_run
        self.plan = plan
        self.executor = Executor(context)
        self.control = context.control
        self.ledger = context.ledger
        self.budget = context.budget
        self.view = view
        self.settings = settings
        self.max_in_flight = max_in_flight
        self.left_out = left_out
        self.before = before
        self.stats = Stats(total=planned_run.summary.to_make)
        self.unwritten: dict[str, list[RequestResult]] = {}
        """Results that could not be stored, by path. The run has stopped for that; its figures still include them."""
        self._provider = context.provider
        self._held: dict[bytes, RequestResult] = {}
        self._opening = 0
        self._is_closed = False
        self._shards: dict[int, Counter[str] | None] = {}
        """The shards that were made, with their counts; None for those that are being made."""

    def close(self) -> None:
        """Let nobody use the session any more, since its connections are about to be closed."""
        self._is_closed = True

    def check_usable(self) -> None:
        """Raise SessionError where the session's connections do not work: they would be waited for in vain."""
        if self._is_closed:
            raise SessionError(
                "session_closed",
                f"The session of run {self.planned_run.run_id} is closed.",
                remedy="Make shards and finish the run within `async with open_session(...)`; to go on, plan anew.",
            )
        check_loop(self.planned_run)

    @property
    def endpoint(self) -> str:
        """The provider's base URL, or those of its workers."""
        return self._provider.endpoint

    @property
    def provider_name(self) -> str:
        """The provider, as the metadata names it."""
        return self._provider.name

    @property
    def earlier(self) -> Earlier | None:
        """The figures of the earlier executions of the same order; None if this is the first one."""
        if not self.before.executions:
            return None
        # Calls of theirs that this run has fetched count as its own costs, and are no longer reserved.
        return Earlier(self.before.executions, self.before.cost_usd, sum(self.budget.carried.values()))

    @property
    def not_understood(self) -> dict[str, int]:
        """Answers of the provider that were not understood: counts by what they were."""
        return dict(self._provider.not_understood)

    @property
    def blocked_by(self) -> int:
        """The number of answers awaited outside the slots, if they are so many that nothing more is sent; else 0."""
        awaited = self.executor.awaited
        return awaited if awaited >= self.max_in_flight else 0

    @property
    def open_shards(self) -> int:
        """The least number of shards to keep open, so that the last rows of one do not leave slots idle."""
        return -(-self.max_in_flight // self.planned_run.spec.options.shard_size) + 1

    async def run_shard(self, index: int, width: int | None = None) -> Counter[str]:
        """Make the requests of a shard, at most `width` at once, and store the results; returns counts by status.

        A shard that was made before is not made again: its counts are returned. Raises SessionError.
        """
        self.check_usable()
        if index not in range(self.plan.shards):
            raise SessionError("shard_unknown", f"There is no shard {index}: the run has {self.plan.shards}.")
        if index in self._shards:
            counts = self._shards[index]
            if counts is None:
                raise SessionError(
                    "shard_open", f"Shard {index} is being made already.", remedy="Make each shard once."
                )
            return counts.copy()
        self._shards[index] = None
        try:
            counts = await self._make_shard(index, width)
        except BaseException:
            del self._shards[index]
            raise
        self._shards[index] = counts
        return counts.copy()

    async def _make_shard(self, index: int, width: int | None) -> Counter[str]:
        try:
            planned = await self.plan.shard(index)
        except StoreError as error:
            self.control.stop("store", str(error))
            return Counter()
        finally:
            self._opening -= 1
        gate = asyncio.Semaphore(width or len(planned) or 1)

        async def make(position: int) -> RequestResult:
            planned_request = planned[position]
            async with gate:
                result = await self.executor.make(planned_request.request, planned_request.key)
            self.stats.take(result)
            if result.status == "held":
                self._held[result.key] = result
            return result

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(make(position)) for position in range(len(planned))]
        results = [task.result() for task in tasks]
        await self._write_results(layout.part(self.planned_run.run_id, "results", index), results)
        return Counter(result.status for result in results)

    async def _finish_deferred(self) -> None:
        """Wait for the requests that the shards deferred, and store their final results."""
        results = await self.executor.finish_deferred()
        for result in results:
            self.stats.replace(self._held[result.key], result)
        if results:
            await self._write_results(layout.late_results(self.planned_run.run_id), results)

    async def _write_results(self, path: str, results: list[RequestResult]) -> None:
        sink = io.BytesIO()
        pq.write_table(results_table(results), sink, compression="zstd")
        try:
            await self.plan.store.put(path, sink.getvalue())
        except StoreError as error:
            self.unwritten[path] = results
            self.control.stop("store", str(error))

    async def read_results(self, path: str) -> dict[bytes, RequestResult]:
        """The results at a path, by key, also those that could not be stored; empty if none. Raises StoreError."""
        if path in self.unwritten:
            return {result.key: result for result in self.unwritten[path]}
        data = await self.plan.store.get(path)
        return {} if data is None else results_of(pq.read_table(pa.BufferReader(data)))

    async def for_each_shard(self, run_one: Callable[[int], Awaitable[object]]) -> None:
        """Run all shards, as many at once as keep the slots busy, then wait for deferred requests.

        Shards with requests that an earlier run left open come first. Raises what a shard raises.
        """
        self.check_usable()
        self.control.moved()
        watching = asyncio.create_task(self.control.watch())
        try:
            await self._run_shards(run_one)
            await self._finish_deferred()
        except BaseException:
            # Cancelled by the caller, or a bug: leave no tasks of ours in the caller's event loop.
            await self.executor.abandon()
            raise
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        if self.before.executions and self.control.stop_reason == "budget" and not self.executor.calls:
            self.control.stop_message = CAP_USED

    async def _run_shards(self, run_one: Callable[[int], Awaitable[object]]) -> None:
        first = self.plan.unsettled_shards
        if not first:
            self._stop_if_cap_is_used()
        running: set[asyncio.Future[object]] = set()
        async with asyncio.TaskGroup() as group:
            for index in [*first, *sorted(set(range(self.plan.shards)) - set(first))]:
                await self._room_for_a_shard(running)
                if self.control.stopped:
                    break
                self._opening += 1
                running.add(task := group.create_task(_awaited(run_one(index))))
                task.add_done_callback(running.discard)

    def _stop_if_cap_is_used(self) -> None:
        """Stop the run before its first call if earlier executions have used up the cap."""
        to_make = self.planned_run.summary.to_make_by_class
        if self.before.executions and to_make and cap_is_used(self.budget, to_make):
            self.control.stop("budget", CAP_USED)

    async def _room_for_a_shard(self, running: "set[asyncio.Future[object]]") -> None:
        """Wait until another shard may start: too few are open, or all open ones wait and leave slots idle."""
        while len(running) >= self.open_shards and not self.control.stopped:
            await asyncio.wait(running, timeout=_IDLE_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if self.executor.idle and not self._opening and len(running) < _MOST_SHARDS * self.open_shards:
                return

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """A context in which SIGTERM or SIGINT stops the run in an orderly way; a second signal acts as usual.

        Outside the main thread this does nothing, since only the main thread can handle signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

        def stop(number: signal.Signals) -> None:
            restore()
            self.control.interrupt("signal", f"{number.name} was received")

        for number in before:
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            restore()


async def _awaited(call: Awaitable[object]) -> object:
    return await call
