"""Open everything that the execution of a planned run needs, and close it at the end."""

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from os import cpu_count
from typing import Any

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.planning.prepare import PlannedRun
from prefect_imagegen.app.planning.stored_plan import StoredPlan
from prefect_imagegen.app.running import orders
from prefect_imagegen.app.running.connections import accounts_behind, open_provider, open_references, reached_settings
from prefect_imagegen.app.running.session import Session, check_loop
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ImagegenError, StoreError
from prefect_imagegen.core.images.image import Decoded
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.ledger.orders import Spending
from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.executor import ExecutorContext, Policy
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.ports import Clock, ObjectStore, Provider
from prefect_imagegen.providers.entry import DEFAULT_IN_FLIGHT
from prefect_imagegen.providers.limits import RateGate, SystemClock
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.patient_store import PatientStore


class AlreadyStartedError(ImagegenError):
    """Another execution of this run has begun before; plan a new run, with this one as its parent."""

    def __init__(self, run_id: str) -> None:
        super().__init__("already_started", f"Run {run_id} was begun before.", remedy="Plan it anew.")


@asynccontextmanager
async def open_session(planned_run: PlannedRun, order_id: str | None = None) -> AsyncIterator[Session]:
    """Open everything that executing a run needs; at the end flush the ledger, if possible, and close everything.

    What planning has opened is used, and closed with the rest. `order_id`: the order that this run executes, whose
    budget cap holds over all its executions. Raises AlreadyStartedError if this run was begun before, SessionError in
    another event loop than that of the plan, StoreError or ProviderError if something is out of reach.
    """
    open_run = planned_run.open_run
    if open_run.is_closed or open_run.is_executed:
        raise AlreadyStartedError(planned_run.run_id)
    check_loop(planned_run)
    open_run.is_executed = True
    async with AsyncExitStack() as stack:
        stack.push_async_callback(planned_run.aclose)
        started = await _start(planned_run, order_id, stack)
        session = await _session(planned_run, started, stack)
        background = _in_background(started.control, (started.heartbeat.keep_beating(), started.ledger.keep_flushing()))
        try:
            yield session
        finally:
            session.close()
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await _close(session, started.store, started.heartbeat)


@dataclass(frozen=True, slots=True)
class _Started:
    """A run that is marked as begun in its store, so that nobody else begins it, and that shows that it is alive."""

    clock: Clock
    control: RunControl
    store: ObjectStore
    process: Process
    heartbeat: Heartbeat
    execution: orders.Execution
    view: LedgerView
    ledger: StoreLedger


async def _start(planned_run: PlannedRun, order_id: str | None, stack: AsyncExitStack) -> _Started:
    """Mark the run as begun, and read what was written to the ledger since it was planned.

    Raises AlreadyStartedError, StoreError.
    """
    options, run_id, object_store = planned_run.spec.options, planned_run.run_id, planned_run.open_run.store
    clock = SystemClock()
    control = RunControl(clock, deadline=options.deadline, max_failure_rate=options.max_failure_rate)
    store = PatientStore(object_store, clock, deadline=options.deadline, time_left=control.time_left)
    control.store_trouble = lambda: store.trouble
    process = Process.this(secrets.token_hex(8))
    stack.callback(process.close)
    started = json.dumps({"nonce": process.nonce, "at": clock.now().isoformat()}).encode()
    if not await _create_own(store, layout.run(run_id, "started.json"), started):
        raise AlreadyStartedError(run_id)
    execution = await orders.enter(store, order_id, run_id) if order_id else orders.Execution(1)
    heartbeat = Heartbeat(object_store, run_id, process, clock, deadline=options.deadline)
    await heartbeat.beat(store=store)
    # Another run may have written since the plan was made: what it delivered must be known before anything is sent.
    reading = await planned_run.open_run.read_ledger(store)
    ledger = StoreLedger(
        *(store, reading.view), run_id=run_id, nonce=process.nonce, clock=clock, read_segments=reading.segments
    )
    return _Started(clock, control, store, process, heartbeat, execution, reading.view, ledger)


async def _session(planned_run: PlannedRun, started: _Started, stack: AsyncExitStack) -> Session:
    """The session of a run that was begun: provider, references, budget and accounts opened."""
    spec, options, control, store = planned_run.spec, planned_run.spec.options, started.control, started.store
    settings = await reached_settings(planned_run, stack)
    provider = await open_provider(planned_run, settings, control)
    budget, before = await _budget(options, started, provider)
    most = settings.max_in_flight or provider.capacity or DEFAULT_IN_FLIGHT
    context = ExecutorContext(
        references=await open_references(spec, settings, provider, store, stack),
        provider=provider,
        store=store,
        ledger=started.ledger,
        limiter=RateGate(settings.requests_per_minute, started.clock.monotonic, control.sleep),
        control=control,
        policy=_policy(options, planned_run.run_id, started.process.nonce),
        accounts=await accounts_behind(settings, planned_run, provider, store, started.view),
        clock=started.clock,
        run_liveness=StoreRunLiveness(store, started.heartbeat, started.process, started.clock),
        jitter=random.random,
        run_decode=_decoder(stack),
        concurrency=AdaptiveLimit(most),
        budget=budget,
    )
    if settings.max_in_flight is None:
        provider.on_capacity = context.concurrency.raise_to
    return Session(
        planned_run,
        StoredPlan(store, planned_run.plan),
        context,
        view=started.view,
        settings=settings,
        max_in_flight=most,
        left_out=provider.left_out,
        before=before,
    )


async def _budget(options: RunOptions, started: _Started, provider: Provider) -> tuple[Budget, Spending]:
    """The run's budget, and what earlier executions of its order have spent, which it begins with."""
    budget, before = Budget.of(options.max_cost_usd, started.view.costs()), Spending()
    if provider.abilities.claims:
        before = await orders.spent_before(started.store, started.execution, queues=provider.abilities.queue)
        orders.carry(budget, before)
    return budget, before


def _in_background(control: RunControl, works: Iterable[Coroutine[Any, Any, None]]) -> list[asyncio.Task[None]]:
    """Tasks that run until they are cancelled; one that fails stops the run."""
    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(lambda done: _note_failure(control, done))
    return tasks


async def _close(session: Session, store: ObjectStore, heartbeat: Heartbeat) -> None:
    """Flush the ledger, compact it unless the run was stopped, and write the last heartbeat."""
    try:
        await session.ledger.flush()
        if not session.control.stopped:
            await compact(store, SystemClock())
        await heartbeat.beat(ended=True, store=store)
    except StoreError as error:
        # Claims, ids and images are stored already: the next run finds what the ledger lacks.
        session.control.stop("store", str(error))


def _policy(options: RunOptions, run_id: str, nonce: str) -> Policy:
    return Policy(
        run_id,
        nonce,
        options.max_attempts,
        options.on_unknown,
        options.history_lag,
        options.drain_seconds,
        deadline=options.deadline,
    )


def _decoder(stack: AsyncExitStack) -> Callable[..., Coroutine[Any, Any, Decoded]]:
    """A function that decodes images in its own threads; they are shut down with the session."""
    threads = ThreadPoolExecutor(cpu_count() or 1, thread_name_prefix="decode")
    stack.callback(threads.shutdown, wait=False)

    async def decode(function: Callable[[bytes], Decoded], data: bytes) -> Decoded:
        return await asyncio.get_running_loop().run_in_executor(threads, function, data)

    return decode


async def _create_own(store: ObjectStore, path: str, data: bytes) -> bool:
    """Create-only put of unique content: True if it is ours, also if an earlier try of this put had made it."""
    return await store.create(path, data, "application/json") or await store.get(path) == data


def _note_failure(control: RunControl, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        control.interrupt("store", str(error))
