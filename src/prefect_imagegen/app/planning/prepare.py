"""Prepare a run: open the store, check endpoint, key and balance, plan, and store the plan. Nothing is paid yet."""

import asyncio
import json
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TypeVar

from prefect_imagegen.app.config.options import SECRET_OPTIONS, RunOptions
from prefect_imagegen.app.config.resolve import open_provider, resolve_provider
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.plan import PlanDraft, Planner
from prefect_imagegen.app.planning.references import ReferenceChecks, reading_options, transport_of
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError, RefusedError, StoreError
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.core.policy.forecast import forecast
from prefect_imagegen.core.redact import redact
from prefect_imagegen.failpoints import hit
from prefect_imagegen.inputs.manifests.manifest import Manifest
from prefect_imagegen.ports import Balance
from prefect_imagegen.providers.entry import DEFAULT_IN_FLIGHT
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.ledger.reading import load_ledger
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store
from prefect_imagegen.store.store_kind import StoreKind, claim_kind, read_kind

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a user asks for: a manifest, a store, a provider and options. Secrets stay in the settings."""

    manifest: str
    store: StoreSettings
    provider: ProviderSettings
    options: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run that is accepted, planned and stored, and waits to be executed."""

    run_id: str
    spec: RunSpec
    kind: StoreKind
    summary: PlanSummary


async def plan_only(spec: RunSpec) -> PlanSummary:
    """Plan a run without preparing it: writes nothing, and needs no key. Raises RefusedError."""
    store = open_object_store(spec.store.url, spec.store.storage_options)
    try:
        try:
            kind: StoreKind | None = await _kind_of(spec.provider, spec.options, patience=0.0)
        except ProviderError:  # planning works without the endpoint; only the store's kind stays unchecked
            kind = None
        draft = await _draft(store, kind, spec)
        try:
            return _with_forecast(await asyncio.to_thread(draft.make, keep=False), draft, spec)
        finally:
            draft.close()
    finally:
        store.close()


async def prepare(spec: RunSpec, parent_run_id: str | None = None) -> PlannedRun:
    """Check manifest, store, endpoint, key and balance, then store the plan. Raises RefusedError.

    Raises `RowsRefusedError` if rows are invalid, or have references that cannot be examined, and `on_invalid` is
    `fail`. Nothing is written unless all checks pass.
    """
    store = open_object_store(spec.store.url, spec.store.storage_options)
    provider = resolve_provider(spec.provider, spec.options)
    entry = entry_of(provider.provider)
    try:
        if entry.needs_key and provider.api_key is None:
            raise RefusedError(
                "no_key",
                "There is no API key.",
                remedy=f"{entry.key_remedy} To try without one: --backend sandbox.",
            )
        try:
            kind = await _kind_of(spec.provider, spec.options, patience=spec.options.deadline)
        except ProviderError as error:
            raise _unreachable(error) from error
        draft = await _draft(store, kind, spec)
        try:
            summary = _with_forecast(await asyncio.to_thread(draft.make, keep=True), draft, spec)
            if (summary.counts["invalid"] or summary.counts["busy"]) and spec.options.on_invalid == "fail":
                raise RowsRefusedError(summary)
            if entry.needs_key and entry.abilities.balance:
                await _check_credentials(provider, spec.options, summary)
            await _refusing(claim_kind(store, kind))
            run_id = new_run_id()
            content = {
                "run_id": run_id,
                "parent_run_id": parent_run_id,
                "manifest": redact(spec.manifest),
                "kind": kind,
                "options": spec.options.model_dump(exclude=SECRET_OPTIONS),
                "created_at": datetime.now(UTC).isoformat(),
                "version": version("prefect-imagegen"),
            }
            data = json.dumps(content, indent=1).encode()
            await _refusing(store.put(layout.run(run_id, "run.json"), data, "application/json"))
            await _refusing(draft.upload(store, run_id))
            hit("plan")
        finally:
            draft.close()
    finally:
        store.close()
    return PlannedRun(run_id, spec, kind, summary)


class RowsRefusedError(RefusedError):
    """The manifest has invalid rows, or rows whose references are out of reach, and the user did not say to skip them.

    Kind `invalid_rows`, or `references_busy` if the only trouble is that hosts of references are busy. `summary` is the
    plan's, with the errors.
    """

    def __init__(self, summary: PlanSummary) -> None:
        shown = "\n".join(f"  {error}" for error in summary.errors)
        count, more = summary.counts["invalid"], sum(summary.reasons.values()) - len(summary.errors)
        tail = f"\n  … and {more} more errors: {dict(summary.reasons.most_common(5))}" if more > 0 else ""
        busy = summary.counts["busy"]
        waiting = f"{busy} of {summary.rows} rows have references whose host is busy or out of reach for now"
        if count:
            problem = f"{count} of {summary.rows} rows are invalid{f', and {waiting}' if busy else ''}"
            kind, remedy = "invalid_rows", "Correct the rows, or run with --on-invalid skip."
        else:
            problem, kind = waiting, "references_busy"
            remedy = "Run the same command again later, or make the others now with --on-invalid skip."
        super().__init__(kind, f"{problem}; nothing was called.\n{shown}{tail}\n", remedy=remedy)
        self.summary = summary


def new_run_id() -> str:
    """A new run_id: unique, and sortable by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


async def _draft(store: FsspecObjectStore, kind: StoreKind | None, spec: RunSpec) -> PlanDraft:
    if kind is not None:
        await _refusing(read_kind(store, kind))
    ledger = await _refusing(load_ledger(store))
    provider = resolve_provider(spec.provider, spec.options)
    manifest = await asyncio.to_thread(Manifest, spec.manifest, spec.options.manifest_storage_options)
    planner = Planner(
        manifest,
        replace(
            spec.options.manifest_options(provider.model, provider.profile, provider.weights),
            key_scope=entry_of(provider.provider).abilities.key_scope,
        ),
        ledger,
        shard_size=spec.options.shard_size,
        limit=spec.options.limit,
        references=ReferenceChecks(
            reading_options(spec.options, provider, spec.manifest, spec.store),
            spec.options.check_references,
            transport_of(provider, spec.options),
        ),
    )
    return PlanDraft(planner)


def _with_forecast(summary: PlanSummary, draft: PlanDraft, spec: RunSpec) -> PlanSummary:
    provider = resolve_provider(spec.provider, spec.options)
    summary.forecast = forecast(
        summary.to_make_by_class,
        # Free images carry no price information.
        {name: stats for name, stats in draft.costs().items() if stats.high},
        in_flight=provider.max_in_flight or DEFAULT_IN_FLIGHT,
        per_minute=provider.requests_per_minute,
        free=not entry_of(provider.provider).abilities.claims,
    )
    return summary


async def _kind_of(settings: ProviderSettings, options: RunOptions, patience: float) -> StoreKind:
    """The kind of store the provider fills, by the engine that its endpoint names.

    `patience`: seconds to wait for the first healthy worker of a pool. Raises ProviderError if it is out of reach.
    """
    resolved = resolve_provider(settings, options)
    entry = entry_of(resolved.provider)
    if not entry.names_engine(resolved):
        return entry.kind(None)
    provider = open_provider(resolved, patience)
    try:
        await provider.open()
        return entry.kind(await provider.engine())
    finally:
        await provider.aclose()


async def _check_credentials(settings: ProviderSettings, options: RunOptions, summary: PlanSummary) -> None:
    provider = open_provider(settings, options.deadline)
    try:
        balance = await provider.account.check() if provider.account is not None else Balance(None)
    except ProviderError as error:
        if error.kind == "auth":
            raise RefusedError(
                "wrong_key",
                f"{provider.endpoint} rejects the API key: {error.message}.",
                remedy=entry_of(settings.provider).key_remedy,
            ) from error
        raise _unreachable(error) from error
    finally:
        await provider.aclose()
    # Unfetched images of earlier calls can be fetched without credits, so such a run may begin.
    only_new = summary.counts["new"] and not summary.counts["unsettled"]
    if balance.credits_usd is not None and balance.credits_usd <= 0 and only_new:
        raise RefusedError("credits", "The balance is 0 USD.", remedy="Top up, then run the same command again.")


def _unreachable(error: ProviderError) -> RefusedError:
    return RefusedError(
        "endpoint_unreachable" if error.kind == "unsent" else error.kind,
        f"The endpoint cannot be used: {error.message}.",
        remedy="Start the workers, or correct --endpoint."
        if error.kind == "no_worker"
        else "Check --base-url and the network.",
    )


async def _refusing(call: Awaitable[T]) -> T:
    """Await a store operation; turn its StoreError into a RefusedError, since nothing was called yet."""
    try:
        return await call
    except StoreError as error:
        raise RefusedError(error.kind, error.message, remedy=error.remedy) from error
