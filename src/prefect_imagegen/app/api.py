"""Plan a manifest, or make its images, from Python and without Prefect: `plan`, `generate` and their async twins."""

import asyncio
import difflib
import os
import time
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack

from pydantic import ValidationError

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec, plan_only, prepare
from prefect_imagegen.app.running import registry
from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.run_session import open_session
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.core.policy.history_lookup import OnUnknown
from prefect_imagegen.core.request.references import CheckReferences, ReferenceTransport
from prefect_imagegen.providers.settings import ProviderSettings


class OptionArguments(TypedDict, total=False):
    """The fields of `RunOptions` as keyword arguments; what they mean and their defaults stand there."""

    base_url: str | None
    api_version: Literal["v1", "v2"] | None
    model: str | None
    endpoints: list[str]
    endpoint_limit: int | None
    profile: Literal["klein-distilled", "klein-base"] | None
    strict_parameters: bool
    weights: str | None
    weights_license: str | None
    columns: dict[str, list[str]]
    values: dict[str, Any]
    id_column: str | None
    carry: list[str]
    manifest_storage_options: dict[str, Any]
    max_in_flight: int | None
    requests_per_minute: float | None
    shard_size: int
    limit: int | None
    max_attempts: int
    deadline: float
    max_failure_rate: float
    max_cost_usd: float | None
    on_unknown: OnUnknown
    history_lag: float
    drain_seconds: float
    on_invalid: Literal["fail", "skip"]
    reference_identity: Literal["url", "content"]
    reference_transport: ReferenceTransport
    reference_storage_options: dict[str, Any]
    check_references: CheckReferences
    max_reference_megapixels: float
    allow_private_references: bool
    allow_local_references: bool
    keep_references: bool


async def agenerate(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: Unpack[OptionArguments],
) -> RunResult:
    """Make the image of every row of a manifest, in the running event loop, and write images and metadata to a store.

    `manifest` and `store` are paths or fsspec URLs; `backend` is `segmind`, `sandbox` or `pool`, or settings;
    `storage_options` are those of the store's file system; `options` are the fields of `RunOptions`. Raises
    RefusedError before any call; what goes wrong later is in the result.
    """
    spec = _run_spec(manifest, store, backend, storage_options, options)
    return await execute(await prepare(spec))


def generate(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: Unpack[OptionArguments],
) -> RunResult:
    """Make the image of every row of a manifest; see `agenerate`. Raises RefusedError inside a running event loop."""
    _refuse_running_loop("generate")
    return asyncio.run(agenerate(manifest, store, backend=backend, storage_options=storage_options, **options))


async def aplan(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: Unpack[OptionArguments],
) -> PlanSummary:
    """Work out what `agenerate` would do with the same arguments: rows by state, row errors, and the expected price.

    Calls no paid endpoint, writes nothing and needs no API key. Invalid rows are in the result's `errors` and
    `counts`. Raises RefusedError where the manifest, the store or an option cannot be used at all.
    """
    return await plan_only(_run_spec(manifest, store, backend, storage_options, options))


def plan(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: Unpack[OptionArguments],
) -> PlanSummary:
    """Work out what `generate` would do; see `aplan`. Raises RefusedError inside a running event loop."""
    _refuse_running_loop("plan")
    return asyncio.run(aplan(manifest, store, backend=backend, storage_options=storage_options, **options))


async def execute(prepared: PlannedRun) -> RunResult:
    """Execute a prepared run in this process, without Prefect."""
    started = time.monotonic()
    async with open_session(prepared) as session:
        registry.sessions[prepared.run_id] = session
        try:
            with session.stopping_on_signals():
                await session.for_each_shard(session.run_shard)
            return await finish(session, time.monotonic() - started)
        finally:
            del registry.sessions[prepared.run_id]


def _run_spec(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    backend: str | ProviderSettings,
    storage_options: Mapping[str, Any] | None,
    options: OptionArguments,
) -> RunSpec:
    return RunSpec(
        os.fspath(manifest),
        store if isinstance(store, StoreSettings) else StoreSettings(os.fspath(store), storage_options or {}),
        backend if isinstance(backend, ProviderSettings) else ProviderSettings(backend),
        _run_options(options),
    )


def _run_options(options: OptionArguments) -> RunOptions:
    """The options as given. Raises RefusedError (`bad_option`) that names the first wrong one."""
    known = RunOptions.model_fields
    for name in options.keys() - known.keys():
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
        raise RefusedError("bad_option", f"There is no option {name!r}.", remedy=remedy)
    try:
        return RunOptions(**options)
    except ValidationError as error:
        first = error.errors()[0]
        raise RefusedError("bad_option", f"{first['loc'][0]}: {first['msg']}.", remedy="Correct it.") from error


def _refuse_running_loop(function: str) -> None:
    """Refuse a blocking call inside an event loop, naming the async twin. Raises RefusedError (`running_loop`)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RefusedError(
        "running_loop",
        f"{function}() cannot run where an event loop is running already, as in a notebook.",
        remedy=f"Write `await prefect_imagegen.a{function}(...)` with the same arguments.",
    )
