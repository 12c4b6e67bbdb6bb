"""The execution of one prepared run in one process: what all its shards share, and its shards."""

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
from prefect_imagegen.app.planning.stored_plan import WrittenPlan
from prefect_imagegen.app.running.result import Earlier
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.ledger.orders import CAP_USED, Spending, cap_is_used
from prefect_imagegen.core.results import RequestResult, results_of, results_table
from prefect_imagegen.executor import Executor, ExecutorContext

_IDLE_LOOK_S = 0.1
_MOST_SHARDS = 8
"""So many times the usual number of shards may be open while their rows wait to be tried again."""


@dataclass(slots=True)
class Stats:
    """Live figures of a run, for whoever shows progress."""

    total: int = 0
    done: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    cost_usd: float = 0.0
    paid: int = 0
    maybe_paid: int = 0

    def take(self, result: RequestResult) -> None:
        """Count one finished request."""
        self._count(result, 1)

    def replace(self, before: RequestResult, result: RequestResult) -> None:
        """A request that was held for the time being has come to its end."""
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
        self.maybe_paid += times * result.maybe_paid


class Session:
    """One prepared run, open for execution. Get one from `open_session`."""

    def __init__(
        self,
        prepared: PlannedRun,
        plan: WrittenPlan,
        executor: Executor,
        context: ExecutorContext,
        view: LedgerView,
    ) -> None:
        self.prepared = prepared
        self.plan = plan
        self.executor = executor
        self.control = context.control
        self.ledger = context.ledger
        self.budget = context.budget
        self.view = view
        self.stats = Stats(total=prepared.summary.to_make)
        self.endpoint = ""
        self.backend_name = "segmind"
        self.left_out: Mapping[str, str] = {}
        """GPU workers that were left out so far, by address, with the reason."""
        self.max_in_flight = 1
        self.settings = prepared.job.provider
        self._provider = context.provider
        self._held: dict[bytes, RequestResult] = {}
        self._opening = 0
        self.before = Spending()
        """What the earlier executions of the same order have spent."""
        self.unwritten: dict[str, list[RequestResult]] = {}
        """Results that the store did not take; the run has stopped for that, and ends with them all the same."""

    @property
    def earlier(self) -> Earlier | None:
        """The earlier executions of the same order, in figures; None where this is the first one."""
        if not self.before.executions:
            return None
        # What this run has settled of them is among its own costs, and no longer reserved.
        return Earlier(self.before.executions, self.before.cost_usd, sum(self.budget.carried.values()))

    @property
    def not_understood(self) -> dict[str, int]:
        """Answers that were not understood, by what they were."""
        return dict(self._provider.not_understood)

    @property
    def blocked_by(self) -> int:
        """Answers that are awaited beside the slots, where they are so many that nothing is sent; else 0."""
        awaited = self.executor.awaited
        return awaited if awaited >= self.max_in_flight else 0

    @property
    def open_shards(self) -> int:
        """Shards to keep open at least, so that the tail of one does not drain the pipe."""
        return -(-self.max_in_flight // self.prepared.job.options.shard_size) + 1

    async def run_shard(self, index: int, width: int | None = None) -> Counter[str]:
        """Make the requests of one shard, at most `width` at once, and write their results; the statuses' counts."""
        try:
            planned = await self.plan.shard(index)
        except StoreError as error:
            self.control.stop("store", str(error))
            return Counter()
        finally:
            self._opening -= 1
        gate = asyncio.Semaphore(width or len(planned) or 1)

        async def make(position: int) -> RequestResult:
            one = planned[position]
            async with gate:
                result = await self.executor.make(one.request, one.key)
            self.stats.take(result)
            if result.status == "held":
                self._held[result.key] = result
            return result

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(make(position)) for position in range(len(planned))]
        results = [task.result() for task in tasks]
        await self._write_results(layout.part(self.prepared.run_id, "results", index), results)
        return Counter(result.status for result in results)

    async def _settle(self) -> None:
        """Wait for the requests that the shards left deferred, and write their results."""
        results = await self.executor.finish_deferred()
        for result in results:
            self.stats.replace(self._held[result.key], result)
        if results:
            await self._write_results(layout.late_results(self.prepared.run_id), results)

    async def _write_results(self, path: str, results: list[RequestResult]) -> None:
        sink = io.BytesIO()
        pq.write_table(results_table(results), sink, compression="zstd")
        try:
            await self.plan.store.put(path, sink.getvalue())
        except StoreError as error:
            self.unwritten[path] = results
            self.control.stop("store", str(error))

    async def read_results(self, path: str) -> dict[bytes, RequestResult]:
        """The results that were written to a path, or could not be; empty if there are none. Raises StoreError."""
        if path in self.unwritten:
            return {result.key: result for result in self.unwritten[path]}
        data = await self.plan.store.get(path)
        return {} if data is None else results_of(pq.read_table(pa.BufferReader(data)))

    async def for_each_shard(self, run_one: Callable[[int], Awaitable[object]]) -> None:
        """Run all shards, as many at once as keep the slots full, then wait for deferred rows.

        Raises what a shard raises. Shards with rows that an earlier run left unsettled come first.
        """
        self.control.moved()
        watching = asyncio.create_task(self.control.watch())
        try:
            await self._run_shards(run_one)
            await self._settle()
        except BaseException:
            # Cancelled by its caller, or a bug: whose event loop this is gets it back without tasks of ours.
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
        """Where earlier executions have used the cap, nothing is begun."""
        to_make = self.prepared.summary.to_make_by_class
        if self.before.executions and to_make and cap_is_used(self.budget, to_make):
            self.control.stop("budget", CAP_USED)

    async def _room_for_a_shard(self, running: "set[asyncio.Future[object]]") -> None:
        """Wait until another shard is wanted: too few are open, or the open ones sleep and leave slots idle."""
        while len(running) >= self.open_shards and not self.control.stopped:
            await asyncio.wait(running, timeout=_IDLE_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if self.executor.idle and not self._opening and len(running) < _MOST_SHARDS * self.open_shards:
                return

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Within: SIGTERM and SIGINT stop the run in an orderly way; a second one acts as usual.

        Only in the main thread can a process listen to signals; elsewhere nothing changes.
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
