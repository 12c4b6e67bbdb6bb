"""Open everything that the execution of a planned run needs, and close it at the end."""

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from os import cpu_count
from typing import Any

from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import open_provider, resolve_provider
from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec
from prefect_imagegen.app.planning.references import account_of, is_local, reading_options, transport_of
from prefect_imagegen.app.planning.stored_plan import StoredPlan
from prefect_imagegen.app.running import orders
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ImagegenError, ProviderError, StoreError
from prefect_imagegen.core.images.image import Decoded
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.ledger.orders import Spending
from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.executor import Executor, ExecutorContext, Policy
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.inputs.references.cache import ReferenceCache
from prefect_imagegen.inputs.references.reader import ReferenceReader
from prefect_imagegen.inputs.references.routes import ReferenceRoutes, RouteOptions
from prefect_imagegen.ports import Accounts, HistoryRecord, ObjectStore, Provider
from prefect_imagegen.providers.entry import DEFAULT_IN_FLIGHT
from prefect_imagegen.providers.limits import RateGate, SystemClock
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from prefect_imagegen.store.ledger.accounts import NoAccounts, open_accounts
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger, segments
from prefect_imagegen.store.object_store import open_object_store
from prefect_imagegen.store.patient_store import PatientStore

_CHECK_TIMEOUT_S = 30.0
_NO_GATEWAY = "http://127.0.0.1:0"
"""The endpoint of a sandbox run that has nothing to ask for: nobody listens there."""


class AlreadyStartedError(ImagegenError):
    """Another execution of this run has begun before; plan a new run, with this one as its parent."""


@asynccontextmanager
async def open_session(planned_run: PlannedRun, order_id: str | None = None) -> AsyncIterator[Session]:
    """Open everything that executing a run needs; at the end flush the ledger, if possible, and close everything.

    `order_id`: the order that this run executes, whose budget cap holds over all its executions.
    Raises AlreadyStartedError if this run was begun before, StoreError or ProviderError if something is out of reach.
    """
    options, run_id = planned_run.spec.options, planned_run.run_id
    clock = SystemClock()
    control = RunControl(clock, deadline=options.deadline, max_failure_rate=options.max_failure_rate)
    async with AsyncExitStack() as stack:
        object_store = open_object_store(planned_run.spec.store.url, planned_run.spec.store.storage_options)
        stack.callback(object_store.close)
        store = PatientStore(object_store, clock, deadline=options.deadline, time_left=control.time_left)
        control.store_trouble = lambda: store.trouble
        process = Process.this(secrets.token_hex(8))
        stack.callback(process.close)
        started = json.dumps({"nonce": process.nonce, "at": clock.now().isoformat()}).encode()
        if not await _create_own(store, layout.run(run_id, "started.json"), started):
            raise AlreadyStartedError("already_started", f"Run {run_id} was begun before.", remedy="Plan it anew.")
        execution = await orders.enter(store, order_id, run_id) if order_id else orders.Execution(1)
        plan = await StoredPlan.load(store, run_id)
        heartbeat = Heartbeat(object_store, run_id, process, clock, deadline=options.deadline)
        await heartbeat.beat(store=store)
        read_segments = await segments(store)
        view = await load_ledger(store)
        ledger = StoreLedger(store, view, run_id=run_id, nonce=process.nonce, clock=clock, read_segments=read_segments)
        settings = resolve_provider(planned_run.spec.provider, options)
        embedded = entry_of(settings.provider).is_embedded(settings)
        if embedded:
            url = await _gateway_url(stack) if planned_run.summary.to_make else _NO_GATEWAY
            settings = replace(settings, base_url=url, history_url=None, api_key=SecretStr("sandbox"))
        gate = RateGate(settings.requests_per_minute, clock.monotonic, control.sleep)
        provider = await _open_provider(planned_run, settings, control, stack)
        budget, before = Budget.of(options.max_cost_usd, view.costs()), Spending()
        if provider.abilities.claims:
            before = await orders.spent_before(store, execution, queues=provider.abilities.queue)
            orders.carry(budget, before)
        most = settings.max_in_flight or provider.capacity or DEFAULT_IN_FLIGHT
        context = ExecutorContext(
            references=await _open_references(planned_run.spec, settings, provider, store, stack),
            provider=provider,
            store=store,
            ledger=ledger,
            limiter=gate,
            control=control,
            policy=_policy(options, run_id, process.nonce),
            accounts=await _accounts_behind(settings, options, provider, store, view, embedded=embedded),
            clock=clock,
            run_liveness=StoreRunLiveness(store, heartbeat, process, clock),
            jitter=random.random,
            run_decode=_decoder(stack),
            concurrency=AdaptiveLimit(most),
            budget=budget,
        )
        if settings.max_in_flight is None:
            provider.on_capacity = context.concurrency.raise_to
        session = Session(planned_run, plan, Executor(context), context, view)
        session.endpoint, session.provider_name = provider.endpoint, provider.name
        session.left_out = provider.left_out
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
            await _close(session, store, heartbeat)


async def _gateway_url(stack: AsyncExitStack) -> str:
    """The address of a sandbox gateway that is started for the time of the session."""
    # It loads a web framework and a server, which no other run needs.
    from prefect_imagegen.gateway.server import EmbeddedGateway  # noqa: PLC0415
    from prefect_imagegen.gateway.settings import GatewaySettings  # noqa: PLC0415

    gateway = EmbeddedGateway(GatewaySettings(allow_loopback=True, price_usd=0.0))
    starting = asyncio.ensure_future(asyncio.to_thread(gateway.start))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting  # the thread cannot be cancelled, and would serve for ever
        await asyncio.to_thread(gateway.stop)
        raise
    stack.push_async_callback(asyncio.to_thread, gateway.stop)
    return gateway.url


async def _open_provider(
    planned_run: PlannedRun, settings: ProviderSettings, control: RunControl, stack: AsyncExitStack
) -> Provider:
    """The provider, once its first worker is healthy; if none becomes healthy, the run is stopped."""
    provider = open_provider(settings, planned_run.spec.options.deadline)
    provider.expect(sandbox=planned_run.kind == "sandbox")
    stack.push_async_callback(provider.aclose)
    try:
        await provider.open()
    except ProviderError as error:
        control.stop(error.kind, error.message)
    return provider


async def _open_references(
    spec: RunSpec, settings: ProviderSettings, provider: Provider, store: ObjectStore, stack: AsyncExitStack
) -> ReferenceRoutes:
    """The routes by which the run's references reach the provider; closed with the session."""
    cache = await stack.enter_async_context(ReferenceCache())
    reading = reading_options(spec.options, settings, spec.manifest, spec.store)
    reader = await stack.enter_async_context(ReferenceReader(reading, cache))
    routes = RouteOptions(
        transport_of(settings, spec.options),
        account_of(settings),
        is_local(settings),
        bytes_only=not provider.abilities.reference_urls,
        check=spec.options.check_references,
    )
    return ReferenceRoutes(reader, provider, routes, store if spec.options.keep_references else None)


async def _accounts_behind(
    settings: ProviderSettings,
    options: RunOptions,
    provider: Provider,
    store: ObjectStore,
    view: LedgerView,
    *,
    embedded: bool,
) -> Accounts:
    """The accounts of the store, for the API key in use. Raises StoreError.

    GPU workers have no accounts, and a session's own sandbox knows nothing of earlier sessions.
    """
    if not provider.abilities.claims or settings.api_key is None:
        return NoAccounts()
    if embedded:
        return NoAccounts(forgets=True)
    account = provider.account
    if account is not None and provider.abilities.balance:
        with suppress(ProviderError, TimeoutError):
            # The answer carries the API's time, which the first claims record.
            await asyncio.wait_for(account.check(), _CHECK_TIMEOUT_S)
    return await open_accounts(
        store,
        view,
        api_key=settings.api_key.get_secret_value(),
        base_url=entry_of(settings.provider).url(settings),
        provider=settings.provider,
        look_up=account.record if account is not None and provider.abilities.history else _no_history,
        history_complete_until=datetime.now(UTC) - timedelta(seconds=options.history_lag),
    )


async def _no_history(_: str) -> HistoryRecord | None:
    """Prove nothing about a call: the provider keeps no history."""
    raise ProviderError("unknown", "the provider keeps no request history")


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
