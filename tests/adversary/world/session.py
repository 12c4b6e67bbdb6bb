"""One run of the product over a simulated world, wired as `app.running.run_session.open_session` does it.

Whatever the run is told of its provider is in `Order.settings`; what the provider can do, its abilities say.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

import pyarrow as pa
from pydantic import SecretStr

from prefect_imagegen.app.config.resolve import open_provider
from prefect_imagegen.app.running.connections import _no_history
from prefect_imagegen.core import layout
from prefect_imagegen.core.choices import OnUnknown
from prefect_imagegen.core.errors import ProviderError, StoreError
from prefect_imagegen.core.images.image import Decoded
from prefect_imagegen.core.ledger.fold import KEY_TYPE, LedgerView
from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.core.policy.outcomes import is_permanent
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor import Executor, ExecutorContext, Policy
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.ports import Accounts, Clock, ObjectStore, Provider
from prefect_imagegen.providers.limits import RateGate
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from prefect_imagegen.store.ledger.accounts import open_accounts
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger, segments
from prefect_imagegen.store.patient_store import PatientStore


@dataclass(frozen=True, slots=True)
class Options:
    """What the user of all runs of a world has chosen."""

    v1: bool = False
    in_flight: int = 2
    deadline: float = 600.0
    history_lag: float = 7200.0
    on_unknown: OnUnknown = "reconcile"
    max_attempts: int = 5
    drain_seconds: float = 20.0
    with_check: bool = False


@dataclass(slots=True)
class Order:
    """What one run is to do, and where."""

    run_id: str
    requests: Sequence[GenerationRequest]
    options: Options
    settings: ProviderSettings
    process: Process
    store: ObjectStore
    clock: Clock
    rng: Random
    opened: Callable[[RunControl], None] = lambda _: None
    cap: float | None = None
    budget: Budget | None = None
    """The money of the run, in place of a fresh budget with this cap."""


@dataclass(slots=True)
class Ended:
    """The end of a run. `refused`: the reason why it ended before any call, else None."""

    results: dict[bytes, RequestResult] = field(default_factory=dict)
    stop_reason: str | None = None
    stop_message: str | None = None
    refused: str | None = None


class UploadingReferences:
    """A `ports.References` that uploads one picture for every reference, or sends it inside the call."""

    inline = False

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def addresses(self, request: GenerationRequest, *, force_upload: bool) -> Sequence[str]:
        account = self._provider.account
        if account is None or not self._provider.abilities.uploads:
            return ["data:image/png;base64,YSBwaWN0dXJl" for _ in request.references]
        return [await account.upload(b"a picture", "image/png") for _ in request.references]


async def execute(order: Order) -> Ended:
    """Plan and execute one run."""
    try:
        if order.options.with_check:
            await _check(order)
        return await _execute(order)
    except StoreError as error:
        return Ended(refused=f"{error.kind}: {error.message}")
    except ProviderError as error:
        return Ended(refused=f"{error.kind}: {error.message}")


async def read_ledger(store: ObjectStore) -> tuple[Sequence[str], LedgerView]:
    """The names of the ledger's segments, and the ledger's view; listed first, so that no segment is missed."""
    segment_names = await segments(store)
    return segment_names, await load_ledger(store)


def _plan(view: LedgerView, requests: Sequence[GenerationRequest]) -> tuple[list[GenerationRequest], Ended]:
    """What is to be done, and the results of what is done or failed for good, as `app.planning.plan` decides it."""
    states = view.states(pa.array([request.key for request in requests], KEY_TYPE)).to_pylist()
    todo, ended = [], Ended()
    for request, state in zip(requests, states, strict=True):
        kind, message = view.failure(request.key) if state == "failed" else ("", "")
        if state == "delivered":
            ended.results[request.key] = RequestResult(request.key, "reused", cost_usd=0.0)
        elif kind and is_permanent(kind):
            ended.results[request.key] = RequestResult(request.key, "failed", kind, message)
        else:
            todo.append(request)
    return todo, ended


async def _check(order: Order) -> None:
    """Prove the key before anything is spent, as `app.planning.prepare` does it."""
    provider = open_provider(order.settings, order.options.deadline)
    try:
        if provider.account is not None and provider.abilities.balance:
            await provider.account.check()
    finally:
        await provider.aclose()


def segmind_settings(options: Options, api_key: str) -> ProviderSettings:
    """What a run at Segmind is told of it."""
    return ProviderSettings(
        api_key=SecretStr(api_key),
        api_version="v1" if options.v1 else "v2",
        requests_per_minute=3000.0,
        max_in_flight=options.in_flight,
    )


async def _execute(order: Order) -> Ended:
    clock, options, run_id = order.clock, order.options, order.run_id
    control = RunControl(clock, deadline=options.deadline, max_failure_rate=0.5)
    draw = order.rng.random
    store = PatientStore(order.store, clock, deadline=options.deadline, time_left=control.time_left, jitter=draw)
    started = json.dumps({"nonce": order.process.nonce}).encode()
    await store.create(layout.run(run_id, "started.json"), started, "application/json")
    heartbeat = Heartbeat(order.store, run_id, order.process, clock, deadline=options.deadline)
    await heartbeat.beat(store=store)
    segment_names, view = await read_ledger(store)
    todo, ended = _plan(view, order.requests)
    ledger = StoreLedger(
        store, view, run_id=run_id, nonce=order.process.nonce, clock=clock, read_segments=segment_names
    )
    gate = RateGate(order.settings.requests_per_minute, clock.monotonic, control.sleep)
    provider = open_provider(order.settings, options.deadline)
    provider.expect(sandbox=False)

    async def decoder(function: Callable[[bytes], Decoded], data: bytes) -> Decoded:
        return function(data)

    context = ExecutorContext(
        references=UploadingReferences(provider),
        provider=provider,
        store=store,
        ledger=ledger,
        limiter=gate,
        control=control,
        policy=Policy(
            run_id,
            order.process.nonce,
            options.max_attempts,
            options.on_unknown,
            options.history_lag,
            options.drain_seconds,
            deadline=options.deadline,
        ),
        accounts=await _accounts(order, provider, store, view),
        clock=clock,
        run_liveness=StoreRunLiveness(store, heartbeat, order.process, clock),
        jitter=draw,
        run_decode=decoder,
        concurrency=AdaptiveLimit(options.in_flight),
        budget=order.budget or Budget.of(order.cap, view.costs()),
    )
    executor = Executor(context)
    background = [asyncio.create_task(work) for work in (heartbeat.keep_beating(), ledger.keep_flushing())]
    for task in background:
        task.add_done_callback(lambda done: _note_failure(control, done))
    order.opened(control)
    control.moved()
    watching = asyncio.create_task(control.watch())
    try:
        await _work(executor, todo, ended.results)
    finally:
        watching.cancel()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        try:
            await ledger.flush()
            await heartbeat.beat(ended=True, store=store)
        except StoreError as error:
            control.stop("store", str(error))
        await provider.aclose()
    ended.stop_reason, ended.stop_message = control.stop_reason, control.stop_message
    return ended


async def _work(executor: Executor, todo: list[GenerationRequest], results: dict[bytes, RequestResult]) -> None:
    """One shard with all rows, then the deferred requests."""

    async def make(request: GenerationRequest) -> None:
        results[request.key] = await executor.make(request, request.key)

    async with asyncio.TaskGroup() as group:
        for request in todo:
            group.create_task(make(request))
    for result in await executor.finish_deferred():
        results[result.key] = result


def _note_failure(control: RunControl, task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        control.interrupt("store", str(error))


async def _accounts(order: Order, provider: Provider, store: ObjectStore, view: LedgerView) -> Accounts:
    settings, account = order.settings, provider.account
    if account is not None and provider.abilities.balance:
        with suppress(ProviderError):
            await account.check()
    assert settings.api_key is not None
    return await open_accounts(
        store,
        view,
        api_key=settings.api_key.get_secret_value(),
        base_url=entry_of(settings.provider).url(settings),
        provider=settings.provider,
        look_up=account.record if account is not None and provider.abilities.history else _no_history,
        history_complete_until=order.clock.now() - timedelta(seconds=order.options.history_lag),
    )
