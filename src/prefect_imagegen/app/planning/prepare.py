"""Prepare a run: open the store, check endpoint, key and balance, plan, and store the plan. Nothing is paid yet."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, TypeVar

from prefect_imagegen.app.config.option_table import SECRET_OPTIONS
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import resolve_provider
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.earlier_runs import warn_of_other_ids
from prefect_imagegen.app.planning.open_run import OpenRun
from prefect_imagegen.app.planning.plan import PlanDraft, Planner
from prefect_imagegen.app.planning.references import ReferenceChecks, reading_options, transport_of
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError, RefusedError, StoreError
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.core.policy.abilities import COSTS_UNNAMED
from prefect_imagegen.core.policy.forecast import forecast
from prefect_imagegen.core.redact import redact
from prefect_imagegen.failpoints import hit
from prefect_imagegen.inputs.manifests.manifest import Manifest
from prefect_imagegen.providers.entry import DEFAULT_IN_FLIGHT
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.executions import earlier_runs
from prefect_imagegen.store.store_kind import StoreKind, claim_kind, read_kind

T = TypeVar("T")


@dataclass(frozen=True, slots=True, repr=False)
class RunSpec:
    """What a user asks for: a manifest, a store, a provider and options. Secrets stay in the settings.

    Making one resolves the provider's settings, once for the whole run: the options, what was given, the environment,
    the defaults. Raises RefusedError for settings that contradict each other or name an unknown provider.
    """

    manifest: str
    store: StoreSettings
    provider: ProviderSettings
    options: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        """Resolve the provider's settings."""
        object.__setattr__(self, "provider", resolve_provider(self.provider, self.options))

    def __repr__(self) -> str:
        """Manifest and store without what may be a secret."""
        return f"RunSpec({redact(self.manifest)!r}, {redact(self.store.url)!r})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PlannedRun:
    """A run that is accepted, planned and stored, and waits to be executed.

    `plan` is the content of its `plan.json`. `open_run` is what planning has opened; the execution goes on with it and
    closes it. Who does not execute the run closes it with `aclose`.
    """

    run_id: str
    spec: RunSpec
    kind: StoreKind
    summary: PlanSummary
    plan: Mapping[str, Any]
    open_run: OpenRun

    def __repr__(self) -> str:
        """Its run_id alone."""
        return f"PlannedRun({self.run_id!r})"

    async def aclose(self) -> None:
        """Close what planning has opened; closing again does nothing."""
        await self.open_run.aclose()


async def plan_only(spec: RunSpec) -> PlanSummary:
    """Plan a run without preparing it: writes nothing, and needs no key. Raises RefusedError."""
    open_run = OpenRun(spec.store, patience=0.0)
    try:
        try:
            kind: StoreKind | None = await _kind_of(spec.provider, open_run)
        except ProviderError:  # planning works without the endpoint; only the store's kind stays unchecked
            kind = None
        draft = await _draft(open_run, kind, spec)
        try:
            summary = _with_forecast(await asyncio.to_thread(draft.make, keep=False), draft, spec, kind)
            await warn_of_other_ids(open_run.store, spec.manifest, spec.options.id_column, summary)
            return summary
        finally:
            draft.close()
    finally:
        await open_run.aclose()


async def prepare(spec: RunSpec, parent_run_id: str | None = None, *, order_id: str | None = None) -> PlannedRun:
    """Check manifest, store, endpoint, key and balance, then store the plan. Raises RefusedError.

    `parent_run_id`: the run that this one goes on with; by default the last one of the order `order_id`, if any.
    Raises `RowsRefusedError` if rows are invalid, or have references that cannot be examined, and `on_invalid` is
    `fail`. Nothing is written unless all checks pass.
    """
    async with AsyncExitStack() as stack:
        open_run = OpenRun(spec.store, spec.options.deadline)
        stack.push_async_callback(open_run.aclose)
        kind = await _checked_kind(spec, open_run)
        draft = await _draft(open_run, kind, spec)
        stack.callback(draft.close)
        summary = _with_forecast(await asyncio.to_thread(draft.make, keep=True), draft, spec, kind)
        await warn_of_other_ids(open_run.store, spec.manifest, spec.options.id_column, summary)
        if (summary.counts["invalid"] or summary.counts["busy"]) and spec.options.on_invalid == "fail":
            raise RowsRefusedError(summary)
        if (entry := entry_of(spec.provider.provider)).needs_key and entry.abilities.balance:
            await _check_credentials(spec.provider, open_run, summary)
        await _refusing(claim_kind(open_run.store, kind))
        if parent_run_id is None and order_id is not None:
            parent_run_id = next(reversed(await _refusing(earlier_runs(open_run.store, order_id))), None)
        run_id = new_run_id()
        plan = await _refusing(_store_plan(run_id, parent_run_id, spec, kind, draft, open_run))
        hit("plan")
        draft.close()
        stack.pop_all()
    return PlannedRun(run_id, spec, kind, summary, plan, open_run)


async def _store_plan(
    run_id: str, parent_run_id: str | None, spec: RunSpec, kind: StoreKind, draft: PlanDraft, open_run: OpenRun
) -> Mapping[str, Any]:
    """Write `run.json` and the plan; returns the content of `plan.json`. Raises StoreError."""
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
    await open_run.store.put(layout.run(run_id, "run.json"), data, "application/json")
    return await draft.upload(open_run.store, run_id)


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
    """A new run_id: unique, and sortable by time, to the microsecond."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}-{now.microsecond:05x}{secrets.token_hex(3)}"


async def _draft(open_run: OpenRun, kind: StoreKind | None, spec: RunSpec) -> PlanDraft:
    if kind is not None:
        await _refusing(read_kind(open_run.store, kind))
    ledger = (await _refusing(open_run.read_ledger())).view
    provider = spec.provider
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


def _with_forecast(summary: PlanSummary, draft: PlanDraft, spec: RunSpec, kind: StoreKind | None) -> PlanSummary:
    provider = spec.provider
    abilities = entry_of(provider.provider).abilities
    expected = forecast(
        summary.to_make_by_class,
        {name: stats for name, stats in draft.costs().items() if stats.high},
        in_flight=provider.max_in_flight or DEFAULT_IN_FLIGHT,
        per_minute=provider.requests_per_minute,
        free=not abilities.claims,
    )
    summary.forecast = replace(expected, sandbox=kind == "sandbox")
    if spec.options.max_cost_usd is not None and summary.to_make and not abilities.cost_in_answer:
        summary.warnings[f"{COSTS_UNNAMED}: compare what the run reports with the provider's bill"] = summary.to_make
    return summary


async def _checked_kind(spec: RunSpec, open_run: OpenRun) -> StoreKind:
    """The kind of store that the run fills, once there is a key and the endpoint answers. Raises RefusedError."""
    entry = entry_of(spec.provider.provider)
    if entry.needs_key and spec.provider.api_key is None:
        remedy = f"{entry.key_remedy} To try without one: --backend sandbox."
        raise RefusedError("no_key", "There is no API key.", remedy=remedy)
    try:
        return await _kind_of(spec.provider, open_run)
    except ProviderError as error:
        raise _unreachable(error) from error


async def _kind_of(settings: ProviderSettings, open_run: OpenRun) -> StoreKind:
    """The kind of store the provider fills, by the engine that its endpoint names.

    Raises ProviderError if it is out of reach.
    """
    entry = entry_of(settings.provider)
    if not entry.names_engine(settings):
        return entry.kind(None)
    provider = await open_run.reach(settings)
    return entry.kind(await provider.engine())


async def _check_credentials(settings: ProviderSettings, open_run: OpenRun, summary: PlanSummary) -> None:
    try:
        balance = await open_run.check(settings)
    except ProviderError as error:
        if error.kind == "auth":
            endpoint = open_run.connect(settings).endpoint
            raise RefusedError(
                "wrong_key",
                f"{endpoint} rejects the API key: {error.message}.",
                remedy=entry_of(settings.provider).key_remedy,
            ) from error
        raise _unreachable(error) from error
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
