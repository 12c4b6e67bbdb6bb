"""The execution of one prepared run in one process: what all its shards share, and its shards."""

import asyncio
import io
import json
import random
import secrets
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from os import cpu_count

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_imagegen.app import orders
from prefect_imagegen.app.adapters import resolve_backend
from prefect_imagegen.app.prepare import Prepared
from prefect_imagegen.app.result import Earlier
from prefect_imagegen.app.wiring import open_backend, open_references, with_gateway
from prefect_imagegen.app.written_plan import WrittenPlan
from prefect_imagegen.control import RunControl
from prefect_imagegen.core import layout
from prefect_imagegen.core.budget import Budget
from prefect_imagegen.core.concurrency import AdaptiveLimit
from prefect_imagegen.core.errors import ImagegenError, StoreError
from prefect_imagegen.core.image import Decoded
from prefect_imagegen.core.ledger import LedgerView
from prefect_imagegen.core.orders import CAP_USED, Spending, cap_is_used
from prefect_imagegen.core.results import RequestResult, results_of, results_table
from prefect_imagegen.executor import Executor, Kit, Policy
from prefect_imagegen.io.compaction import compact
from prefect_imagegen.io.heartbeat import Heartbeat, Process, StoreNeighbours
from prefect_imagegen.io.ledger import StoreLedger, load_ledger, segments
from prefect_imagegen.io.limits import RateGate, SystemClock
from prefect_imagegen.io.object_store import open_object_store

_IDLE_LOOK_S = 0.1
_MOST_SHARDS = 8
"""So many times the usual number of shards may be open while their rows wait to be tried again."""


class AlreadyStartedError(ImagegenError):
    """Another execution of this run has begun: plan anew, with this run as the parent."""


@dataclass(slots=True)
class Stats:
    """Live figures of a run, for whoever shows progress."""

    total: int = 0
    done: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    cost_usd: float = 0.0

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


class Session:
    """One prepared run, open for execution. Get one from `open_session`."""

    def __init__(self, prepared: Prepared, plan: WrittenPlan, executor: Executor, kit: Kit, view: LedgerView) -> None:
        self.prepared = prepared
        self.plan = plan
        self.executor = executor
        self.control = kit.control
        self.ledger = kit.ledger
        self.budget = kit.budget
        self.view = view
        self.stats = Stats(total=prepared.summary.to_make)
        self.endpoint = ""
        self.backend_name = "segmind"
        self.max_in_flight = 1
        self.settings = prepared.job.backend
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
        """Wait for what the shards left parked, and write down what became of it."""
        results = await self.executor.settle()
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
        """Run all shards, so many at once as keep the pipe full, then wait for parked rows. Raises what a shard raises.

        Shards with rows that an earlier run left unsettled come first.
        """
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
        await self._settle()
        if self.before.executions and self.control.stop_reason == "budget" and not self.executor.calls:
            self.control.stop_message = CAP_USED

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


@asynccontextmanager
async def open_session(prepared: Prepared, order_id: str | None = None) -> AsyncIterator[Session]:
    """Open everything that executing a run needs; at the end the ledger is flushed, if it can be, and all is closed.

    `order_id`: the order that this run is an execution of. Its cap holds over all of them.
    Raises AlreadyStartedError if this run was begun before, StoreError or BackendError if something is out of reach.
    """
    options, run_id = prepared.job.options, prepared.run_id
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        store = open_object_store(prepared.job.store.url, prepared.job.store.storage_options)
        stack.callback(store.close)
        process = Process.this(secrets.token_hex(8))
        started = json.dumps({"nonce": process.nonce, "at": clock.now().isoformat()}).encode()
        if not await store.create(layout.run(run_id, "started.json"), started, "application/json"):
            raise AlreadyStartedError("already_started", f"Run {run_id} was begun before.", remedy="Plan it anew.")
        execution = await orders.enter(store, order_id, run_id) if order_id else orders.Execution(1)
        plan = await WrittenPlan.load(store, run_id)
        heartbeat = Heartbeat(store, run_id, process, clock)
        await heartbeat.beat()
        seen = await segments(store)
        view = await load_ledger(store)
        ledger = StoreLedger(store, view, run_id=run_id, nonce=process.nonce, clock=clock, seen=seen)
        settings = await with_gateway(resolve_backend(prepared.job.backend, options), stack)
        control = RunControl(clock, deadline=options.deadline, max_failure_rate=options.max_failure_rate)
        gate = RateGate(settings.requests_per_minute, clock.monotonic, control.sleep)
        backend = await open_backend(prepared, settings, gate, control, stack)
        most = settings.max_in_flight or backend.capacity
        threads = ThreadPoolExecutor(cpu_count() or 1, thread_name_prefix="decode")
        stack.callback(threads.shutdown, wait=False)

        async def decoder(function: Callable[[bytes], Decoded], data: bytes) -> Decoded:
            return await asyncio.get_running_loop().run_in_executor(threads, function, data)

        budget, before = Budget.of(options.max_cost_usd, view.costs()), Spending()
        if not backend.free:
            before = await orders.spent_before(store, execution, queues=backend.queues)
            orders.carry(budget, before)

        kit = Kit(
            references=await open_references(prepared.job, settings, backend, store, stack),
            backend=backend,
            store=store,
            ledger=ledger,
            limiter=gate,
            control=control,
            policy=Policy(
                run_id,
                process.nonce,
                options.max_attempts,
                options.on_unknown,
                options.history_lag,
                options.drain_seconds,
            ),
            clock=clock,
            neighbours=StoreNeighbours(store, heartbeat, process, clock),
            draw=random.random,
            decoder=decoder,
            concurrency=AdaptiveLimit(most),
            budget=budget,
        )
        if settings.max_in_flight is None:
            backend.on_capacity = kit.concurrency.raise_to
        session = Session(prepared, plan, Executor(kit), kit, view)
        session.endpoint, session.backend_name = backend.endpoint, backend.name
        session.max_in_flight, session.settings, session.before = most, settings, before
        background = [asyncio.create_task(heartbeat.keep_beating()), asyncio.create_task(ledger.keep_flushing())]
        for task in background:
            task.add_done_callback(lambda done: _note_failure(control, done))
        try:
            yield session
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            try:
                await ledger.flush()
                if not control.stopped:
                    await compact(store, clock)
                await heartbeat.beat(ended=True)
            except StoreError as error:
                # Claims, ids and images are in the store already: the next run finds out what the ledger lacks.
                control.stop("store", str(error))


async def _awaited(call: Awaitable[object]) -> object:
    return await call


def _note_failure(control: RunControl, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        control.stop("store", str(error))
