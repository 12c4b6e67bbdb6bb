"""Generate images from Python without Prefect: `generate` and `agenerate`."""

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Any

from prefect_imagegen.app.config.options import GenerateOptions
from prefect_imagegen.app.config.settings import ProviderSettings, StoreSettings
from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec, prepare
from prefect_imagegen.app.running import registry
from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.run_session import open_session
from prefect_imagegen.core.errors import RefusedError


async def agenerate(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> RunResult:
    """Make the image of every row of a manifest, in the running event loop.

    `manifest` and `store` are paths or fsspec URLs; `backend` is `segmind` or `sandbox`, or settings; `options` are
    the fields of `GenerateOptions`. Raises RefusedError before any call; everything later is in the result.
    """
    job = RunSpec(
        os.fspath(manifest),
        store if isinstance(store, StoreSettings) else StoreSettings(os.fspath(store), storage_options or {}),
        backend if isinstance(backend, ProviderSettings) else ProviderSettings(backend),
        GenerateOptions(**options),
    )
    return await execute(await prepare(job))


def generate(
    manifest: str | os.PathLike[str],
    store: str | os.PathLike[str] | StoreSettings,
    *,
    backend: str | ProviderSettings = "segmind",
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> RunResult:
    """Make the image of every row of a manifest; see `agenerate`. Raises RefusedError inside a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RefusedError(
            "running_loop",
            "generate() cannot run where an event loop is running already, as in a notebook.",
            remedy="Write `await prefect_imagegen.agenerate(...)` with the same arguments.",
        )
    return asyncio.run(agenerate(manifest, store, backend=backend, storage_options=storage_options, **options))


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
