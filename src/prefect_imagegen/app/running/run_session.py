"""Opening everything that the execution of one prepared run needs, and winding it up at its end."""

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from os import cpu_count
from typing import Any

from prefect_imagegen.app.config.options import GenerateOptions
from prefect_imagegen.app.config.resolve import resolve_backend
from prefect_imagegen.app.planning.prepare import PlannedRun
from prefect_imagegen.app.planning.stored_plan import WrittenPlan
from prefect_imagegen.app.running import orders
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.app.running.wiring import accounts_behind, open_backend, open_references, with_gateway
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ImagegenError, StoreError
from prefect_imagegen.core.images.image import Decoded
from prefect_imagegen.core.ledger.orders import Spending
from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.executor import Executor, ExecutorContext, Policy
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.ports import ObjectStore
from prefect_imagegen.providers.limits import RateGate, SystemClock
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.ledger import StoreLedger, load_ledger, segments
from prefect_imagegen.store.object_store import open_object_store
from prefect_imagegen.store.patient_store import PatientStore


class AlreadyStartedError(ImagegenError):
    """Another execution of this run has begun: plan anew, with this run as the parent."""


@asynccontextmanager
async def open_session(prepared: PlannedRun, order_id: str | None = None) -> AsyncIterator[Session]:
    """Open everything that executing a run needs; at the end the ledger is flushed, if it can be, and all is closed.

    `order_id`: the order that this run is an execution of. Its cap holds over all of them.
    Raises AlreadyStartedError if this run was begun before, StoreError or BackendError if something is out of reach.
    """
    options, run_id = prepared.job.options, prepared.run_id
    clock = SystemClock()
    control = RunControl(clock, deadline=options.deadline, max_failure_rate=options.max_failure_rate)
    async with AsyncExitStack() as stack:
        opened = open_object_store(prepared.job.store.url, prepared.job.store.storage_options)
        stack.callback(opened.close)
        store = PatientStore(opened, clock, deadline=options.deadline, time_left=control.time_left)
        control.store_trouble = lambda: store.trouble
        process = Process.this(secrets.token_hex(8))
        stack.callback(process.close)
        started = json.dumps({"nonce": process.nonce, "at": clock.now().isoformat()}).encode()
        if not await _create_own(store, layout.run(run_id, "started.json"), started):
            raise AlreadyStartedError("already_started", f"Run {run_id} was begun before.", remedy="Plan it anew.")
        execution = await orders.enter(store, order_id, run_id) if order_id else orders.Execution(1)
        plan = await WrittenPlan.load(store, run_id)
        heartbeat = Heartbeat(opened, run_id, process, clock, deadline=options.deadline)
        await heartbeat.beat(store=store)
        seen = await segments(store)
        view = await load_ledger(store)
        ledger = StoreLedger(store, view, run_id=run_id, nonce=process.nonce, clock=clock, seen=seen)
        settings = await with_gateway(resolve_backend(prepared.job.backend, options), stack)
        gate = RateGate(settings.requests_per_minute, clock.monotonic, control.sleep)
        backend = await open_backend(prepared, settings, control, stack)
        budget, before = Budget.of(options.max_cost_usd, view.costs()), Spending()
        if not backend.free:
            before = await orders.spent_before(store, execution, queues=backend.queues)
            orders.carry(budget, before)
        most = settings.max_in_flight or backend.capacity
        context = ExecutorContext(
            references=await open_references(prepared.job, settings, backend, store, stack),
            backend=backend,
            store=store,
            ledger=ledger,
            limiter=gate,
            control=control,
            policy=_policy(options, run_id, process.nonce),
            accounts=await accounts_behind(settings, prepared, backend, store, view),
            clock=clock,
            neighbours=StoreRunLiveness(store, heartbeat, process, clock),
            jitter=random.random,
            run_decode=_decoder(stack),
            concurrency=AdaptiveLimit(most),
            budget=budget,
        )
        if settings.max_in_flight is None:
            backend.on_capacity = context.concurrency.raise_to
        session = Session(prepared, plan, Executor(context), context, view)
        session.endpoint, session.backend_name = backend.endpoint, backend.name
        session.left_out = backend.left_out
        session.max_in_flight, session.settings, session.before = most, settings, before
        background = [asyncio.create_task(work) for work in (heartbeat.keep_beating(), ledger.keep_flushing())]
        for task in background:
            task.add_done_callback(lambda done: _note_failure(control, done))
        try:
            yield session
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await _wind_up(session, store, heartbeat)


async def _wind_up(session: Session, store: ObjectStore, heartbeat: Heartbeat) -> None:
    """Make durable what is not yet, and say that the run has ended."""
    try:
        await session.ledger.flush()
        if not session.control.stopped:
            await compact(store, SystemClock())
        await heartbeat.beat(ended=True, store=store)
    except StoreError as error:
        # Claims, ids and images are in the store already: the next run finds out what the ledger lacks.
        session.control.stop("store", str(error))


def _policy(options: GenerateOptions, run_id: str, nonce: str) -> Policy:
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
    """What decodes images in threads of its own, for the time of a session."""
    threads = ThreadPoolExecutor(cpu_count() or 1, thread_name_prefix="decode")
    stack.callback(threads.shutdown, wait=False)

    async def decode(function: Callable[[bytes], Decoded], data: bytes) -> Decoded:
        return await asyncio.get_running_loop().run_in_executor(threads, function, data)

    return decode


async def _create_own(store: ObjectStore, path: str, data: bytes) -> bool:
    """Create-only put of what nobody else would write so; also true if an earlier try of our own had succeeded."""
    return await store.create(path, data, "application/json") or await store.get(path) == data


def _note_failure(control: RunControl, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        control.interrupt("store", str(error))
