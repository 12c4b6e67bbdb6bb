"""The flow of the main job: a manifest in, images and metadata in object storage out."""

import asyncio
import time
import uuid
from functools import partial
from typing import Annotated, Any

from prefect import flow, get_client, get_run_logger
from prefect.client.schemas import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed
from pydantic import Field

from prefect_imagegen.app import registry
from prefect_imagegen.app.options import GenerateOptions
from prefect_imagegen.app.prepare import Job, Prepared
from prefect_imagegen.app.result import STOP_REASONS, RunResult
from prefect_imagegen.app.session import AlreadyStartedError, Session, open_session
from prefect_imagegen.blocks.resolve import resolve_backend, resolve_store
from prefect_imagegen.core.errors import ImagegenError, RefusedError
from prefect_imagegen.flows.artifacts import publish_summary, showing_progress
from prefect_imagegen.tasks import finish_run, generate_shard, plan_run

ManifestUrl = Annotated[
    str, Field(title="Manifest", description="Parquet file, folder or glob, CSV or JSONL; any fsspec URL.")
]
Store = Annotated[str, Field(title="Store", description="A URL or path, or a block as image-store/NAME.")]
Backend = Annotated[str, Field(title="Backend", description="segmind, sandbox, or a block as segmind/NAME.")]
Options = Annotated[GenerateOptions | None, Field(title="Options", description="How rows are read and images made.")]
FailOnRowErrors = Annotated[
    bool, Field(title="Fail on row errors", description="End as Failed, not Completed, if any row has no image.")
]
ConcurrencyLimit = Annotated[
    str | None,
    Field(
        title="Concurrency limit", description="Name of a global concurrency limit that caps calls across flow runs."
    ),
]
RunId = Annotated[
    str | None, Field(title="Run id", description="A run planned by this process; leave empty to plan a new one.")
]


@flow(name="generate-images", persist_result=False)
def generate_images(
    manifest: ManifestUrl,
    store: Store,
    backend: Backend = "segmind",
    options: Options = None,
    fail_on_row_errors: FailOnRowErrors = False,
    concurrency_limit: ConcurrencyLimit = None,
    run_id: RunId = None,
) -> Any:
    """Make the image of every row of a manifest, and write images and metadata to the store.

    Ends Completed, Completed 'CompletedWithFailures', Failed 'Refused' (before any call) or Failed 'Stopped'
    (resumed by running it again). The returned figures are those of `RunResult.as_dict()`.
    """
    return asyncio.run(_generate(manifest, store, backend, options, fail_on_row_errors, concurrency_limit, run_id))


@flow(name="generate-images-async", persist_result=False)
async def agenerate_images(
    manifest: ManifestUrl,
    store: Store,
    backend: Backend = "segmind",
    options: Options = None,
    fail_on_row_errors: FailOnRowErrors = False,
    concurrency_limit: ConcurrencyLimit = None,
    run_id: RunId = None,
) -> Any:
    """`generate_images` for use in a running event loop."""
    return await _generate(manifest, store, backend, options, fail_on_row_errors, concurrency_limit, run_id)


async def _generate(
    manifest: str,
    store: str,
    backend: str,
    options: GenerateOptions | None,
    fail_on_row_errors: bool,
    concurrency_limit: str | None,
    run_id: str | None,
) -> State[Any]:
    started = time.monotonic()
    try:
        limit = await _slots_of(concurrency_limit) if concurrency_limit else None
        prepared = registry.prepared.pop(run_id, None) if run_id else None
        if prepared is None:
            # Also the flow run that is retried in the UI: its run_id belongs to a process that is gone.
            prepared = await _plan(manifest, store, backend, options, run_id)
        try:
            result = await _execute(prepared, started, concurrency_limit, limit)
        except AlreadyStartedError:
            prepared = await _plan(manifest, store, backend, options, prepared.run_id)
            result = await _execute(prepared, started, concurrency_limit, limit)
    except RefusedError as error:
        return Failed(name="Refused", message=str(error), data=error)
    return final_state(result, fail_on_row_errors=fail_on_row_errors)


async def _plan(
    manifest: str, store: str, backend: str, options: GenerateOptions | None, parent_run_id: str | None
) -> Prepared:
    ticket = uuid.uuid4().hex
    registry.jobs[ticket] = Job(
        manifest, await resolve_store(store), await resolve_backend(backend), options or GenerateOptions()
    )
    run_id = await plan_run(ticket, parent_run_id)
    return registry.prepared.pop(run_id)


async def _execute(prepared: Prepared, started: float, limit_name: str | None, limit: int | None) -> RunResult:
    logger = get_run_logger()
    summary = prepared.summary
    counts = ", ".join(f"{count} {state}" for state, count in summary.counts.items() if count)
    logger.info("Run %s of %s rows: %s", prepared.run_id, summary.rows, counts)
    for warning, rows in summary.warnings.items():
        logger.warning("%s (%s rows)", warning, rows)
    async with open_session(prepared) as session:
        registry.sessions[prepared.run_id] = session
        try:
            with session.stopping_on_signals():
                async with showing_progress(session):
                    slots = _share(session, limit) if limit else None
                    shard = partial(generate_shard, prepared.run_id, limit_name=limit_name, slots=slots)
                    await session.for_each_shard(shard)
                result = await finish_run(prepared.run_id, time.monotonic() - started)
            await publish_summary(result)
            registry.results[prepared.run_id] = result
            return result
        finally:
            del registry.sessions[prepared.run_id]


def _share(session: Session, limit: int) -> int:
    """Slots for one open shard, so that all open shards together fill what is in flight, and none asks too much."""
    return min(limit, -(-session.max_in_flight // session.open_shards))


async def _slots_of(name: str) -> int:
    async with get_client() as client:
        try:
            found = await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound as error:
            raise RefusedError(
                "limit_not_found",
                f"There is no global concurrency limit {name!r} on this Prefect server.",
                remedy=f"Create it: prefect gcl create {name} --limit N",
            ) from error
    if not found.active or found.limit < 1:
        raise RefusedError(
            "limit_inactive", f"The global concurrency limit {name!r} lets nothing through.", remedy="Activate it."
        )
    return int(found.limit)


def final_state(result: RunResult, *, fail_on_row_errors: bool) -> State[Any]:
    """The Prefect state that a run's figures amount to."""
    figures = result.as_dict()
    said = f"{result.generated} generated, {result.reused} reused, {result.invalid} invalid, {result.failed} failed,"
    said += f" {result.held} held, {result.not_run} not run; {result.cost_usd:.4f} USD"
    if result.stop_reason is not None:
        why = STOP_REASONS.get(result.stop_reason, result.stop_reason)
        error = ImagegenError(result.stop_reason, f"Stopped: {why} ({result.stop_message}). {said}")
        return Failed(name="Stopped", message=str(error), data=error)
    if result.exit_code == 0:
        return Completed(message=said, data=figures)
    if fail_on_row_errors:
        return Failed(name="CompletedWithFailures", message=said, data=ImagegenError("row_errors", said))
    return Completed(name="CompletedWithFailures", message=said, data=figures)
