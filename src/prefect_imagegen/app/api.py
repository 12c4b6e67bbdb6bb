"""Plan a manifest, or make its images, from Python and without Prefect: `plan`, `generate` and their async twins."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from pydantic import ValidationError

from prefect_imagegen.app.config.option_table import OPTIONS, OptionTable
from prefect_imagegen.app.config.options import RunOptions, did_you_mean
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec, plan_only, prepare
from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.run_session import open_session
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.providers.settings import ProviderSettings

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class RunArguments(OptionTable):
    """What `generate`, `plan` and their async twins take."""

    manifest: str | os.PathLike[str] = field(kw_only=False)
    store: str | os.PathLike[str] | StoreSettings = field(kw_only=False)
    backend: str | ProviderSettings = "segmind"
    storage_options: Mapping[str, Any] | None = None


def _typed_as(arguments: Callable[P, object]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Let editors and type checkers know a function by the arguments of another, such as all options by name."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        parameters = [
            parameter.replace(annotation=OPTIONS[name].type if name in OPTIONS else parameter.annotation)
            for name, parameter in signature(arguments).parameters.items()
        ]
        written = signature(function).replace(parameters=parameters)
        function.__signature__ = written  # type: ignore[attr-defined]
        return function

    return decorate


@_typed_as(RunArguments)
async def agenerate(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: object,
) -> RunResult:
    """Make the image of every row of a manifest, in the running event loop, and write images and metadata to a store.

    `manifest` and `store` are paths or fsspec URLs; `backend` is `segmind`, `sandbox` or `pool`, or settings;
    `storage_options` are those of the store's file system; `options` are the fields of `RunOptions`. Raises
    RefusedError before any call; what goes wrong later is in the result.
    """
    return await _make(_run_spec(manifest, store, backend, storage_options, options))


@_typed_as(RunArguments)
def generate(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: object,
) -> RunResult:
    """Make the image of every row of a manifest; see `agenerate`. Raises RefusedError inside a running event loop."""
    _refuse_running_loop("generate")
    return asyncio.run(_make(_run_spec(manifest, store, backend, storage_options, options)))


@_typed_as(RunArguments)
async def aplan(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: object,
) -> PlanSummary:
    """Work out what `agenerate` would do with the same arguments: rows by state, row errors, and the expected price.

    Calls no paid endpoint, writes nothing and needs no API key. Invalid rows are in the result's `errors` and
    `counts`. Raises RefusedError where the manifest, the store or an option cannot be used at all.
    """
    return await plan_only(_run_spec(manifest, store, backend, storage_options, options))


@_typed_as(RunArguments)
def plan(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: object,
) -> PlanSummary:
    """Work out what `generate` would do; see `aplan`. Raises RefusedError inside a running event loop."""
    _refuse_running_loop("plan")
    return asyncio.run(plan_only(_run_spec(manifest, store, backend, storage_options, options)))


async def execute(planned_run: PlannedRun, on_open: Callable[[Session], None] = lambda _: None) -> RunResult:
    """Execute a planned run in this process, without Prefect. `on_open` gets the session once it is open."""
    started = time.monotonic()
    async with open_session(planned_run) as session:
        on_open(session)
        with session.stopping_on_signals():
            await session.for_each_shard(session.run_shard)
        return await finish(session, time.monotonic() - started)


async def _make(spec: RunSpec) -> RunResult:
    return await execute(await prepare(spec))


def _run_spec(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    backend: str | ProviderSettings,
    storage_options: Mapping[str, Any] | None,
    options: Mapping[str, object],
) -> RunSpec:
    return RunSpec(
        os.fspath(manifest),
        store if isinstance(store, StoreSettings) else StoreSettings(os.fspath(store), storage_options or {}),
        backend if isinstance(backend, ProviderSettings) else ProviderSettings(backend),
        _run_options(options),
    )


def _run_options(options: Mapping[str, object]) -> RunOptions:
    """The options as given. Raises RefusedError (`bad_option`) that names the first wrong one."""
    for name in options:
        if name not in OPTIONS:
            raise RefusedError("bad_option", f"There is no option {name!r}.", remedy=did_you_mean(name))
    try:
        return RunOptions.model_validate(options)
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
