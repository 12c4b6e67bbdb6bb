"""The flows that make the images of a manifest: `generate_images` and `agenerate_images`."""

import os
import time
from functools import partial
from typing import Annotated, Any

from prefect import flow, get_client, get_run_logger
from prefect.client.schemas import State
from prefect.exceptions import ObjectNotFound
from pydantic import BeforeValidator, Field

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.run_session import AlreadyStartedError, open_session
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.blocks.resolve import resolve_provider, resolve_store
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact, traceback_of
from prefect_imagegen.flows import hand_over, states
from prefect_imagegen.flows.artifacts import publish_summary, showing_progress
from prefect_imagegen.flows.deployed_store import absolute, refuse_fleeting
from prefect_imagegen.flows.names import TAG, run_name
from prefect_imagegen.flows.parameter_secrets import refuse_secrets
from prefect_imagegen.tasks import finish_run, generate_shard, plan_run
from prefect_imagegen.tasks.outages import reporting_outages


def _path_text(value: Any) -> Any:
    """A path object as text."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _titled(title: str) -> Any:
    """The title of a parameter in the form. Prefect puts the parameter's name over a title given in any other way.

    Descriptions come from the docstring of the flow, and positions from the order of its parameters.
    """
    return Field(json_schema_extra={"title": title})


ManifestUrl = Annotated[str, BeforeValidator(_path_text), _titled("Manifest")]
Store = Annotated[str, BeforeValidator(_path_text), _titled("Store")]
Backend = Annotated[str, _titled("Backend")]
# The default of the form: with null, all options would stand behind a click.
Options = Annotated[RunOptions | None, Field(json_schema_extra={"title": "Options", "default": {}})]
FailOnRowErrors = Annotated[bool, _titled("Fail on row errors")]
FailAbove = Annotated[float, Field(ge=0.0, le=1.0), _titled("Fail above")]
ConcurrencyLimit = Annotated[str | None, _titled("Concurrency limit")]


# retries=0: PREFECT_FLOWS_DEFAULT_RETRIES is not meant for flows that pay, and would otherwise apply.
@flow(name="generate-images", flow_run_name=run_name, persist_result=False, retries=0)
def generate_images(
    manifest: ManifestUrl,
    store: Store,
    backend: Backend = "segmind",
    options: Options = None,
    fail_on_row_errors: FailOnRowErrors = False,
    fail_above: FailAbove = 0.5,
    concurrency_limit: ConcurrencyLimit = None,
) -> Any:
    """Make the image of every row of a manifest, and write images and metadata to the store.

    Ends Completed, Completed 'CompletedWithFailures', or Failed: `refused (...)` before any call, `stopped (...)`
    (resumed by running it again), or `failed (...)` where too many rows have no image. The returned figures are those
    of `RunResult.as_dict()`.

    Args:
        manifest: Parquet file, folder or glob, CSV or JSONL; any fsspec URL.
        store: A URL or path, or a block as image-store/NAME.
        backend: segmind, sandbox, pool, an installed provider, or a block as segmind/NAME.
        options: How rows are read and images made.
        fail_on_row_errors: End as Failed, not Completed, if any row has no image.
        fail_above: End as Failed if more than this share of the rows is invalid, failed or held (0.5 is half).
        concurrency_limit: Name of a global concurrency limit that caps calls across flow runs.
    """
    share = 0.0 if fail_on_row_errors else fail_above
    with reporting_outages():
        return hand_over.run(_generate(manifest, store, backend, options, share, concurrency_limit))


@flow(name="generate-images-async", flow_run_name=run_name, persist_result=False, retries=0)
async def agenerate_images(
    manifest: ManifestUrl,
    store: Store,
    backend: Backend = "segmind",
    options: Options = None,
    fail_on_row_errors: FailOnRowErrors = False,
    fail_above: FailAbove = 0.5,
    concurrency_limit: ConcurrencyLimit = None,
) -> Any:
    """`generate_images` for use in a running event loop.

    Args:
        manifest: Parquet file, folder or glob, CSV or JSONL; any fsspec URL.
        store: A URL or path, or a block as image-store/NAME.
        backend: segmind, sandbox, pool, an installed provider, or a block as segmind/NAME.
        options: How rows are read and images made.
        fail_on_row_errors: End as Failed, not Completed, if any row has no image.
        fail_above: End as Failed if more than this share of the rows is invalid, failed or held (0.5 is half).
        concurrency_limit: Name of a global concurrency limit that caps calls across flow runs.
    """
    share = 0.0 if fail_on_row_errors else fail_above
    with reporting_outages():
        return await _generate(manifest, store, backend, options, share, concurrency_limit)


async def _generate(
    manifest: str,
    store: str,
    backend: str,
    options: RunOptions | None,
    fail_above: float,
    concurrency_limit: str | None,
) -> State[Any]:
    started = time.monotonic()
    try:
        limit = await _slots_of(concurrency_limit) if concurrency_limit else None
        handed_over = hand_over.handed_over()
        if handed_over is not None:
            planned_run = handed_over.planned_run
        else:
            planned_run = await _plan(manifest, store, backend, options)
        try:
            result = await _execute(planned_run, started, concurrency_limit, limit)
        except AlreadyStartedError:
            planned_run = await _plan(manifest, store, backend, options, planned_run.run_id)
            result = await _execute(planned_run, started, concurrency_limit, limit)
    except RefusedError as error:
        return await states.end_run(states.refused(error), RunResult(None, store))
    except Exception as error:  # noqa: BLE001 - raised again, redacted
        states.emit_finished(RunResult(None, store), "Failed", error)
        # Prefect stores what is raised, with its traceback: an unexpected text may hold secrets.
        get_run_logger().error("An unexpected error:\n%s", traceback_of(error))
        raise RuntimeError(redact(f"{type(error).__name__}: {error}")) from None
    return await states.end_run(states.final_state(result, fail_above=fail_above), result)


async def _plan(
    manifest: str, store: str, backend: str, options: RunOptions | None, parent_run_id: str | None = None
) -> PlannedRun:
    options = options or RunOptions()
    refuse_secrets(manifest, store, options)
    store_settings = await resolve_store(store)
    refuse_fleeting(store_settings)
    spec = RunSpec(manifest, store_settings, await resolve_provider(backend), options)
    return await plan_run(spec, parent_run_id, states.order_id() if states.is_repeated() else None)


async def _execute(planned_run: PlannedRun, started: float, limit_name: str | None, limit: int | None) -> RunResult:
    logger = get_run_logger()
    summary = planned_run.summary
    counts = ", ".join(f"{count} {state}" for state, count in summary.counts.items() if count)
    logger.info("Run %s of %s rows: %s", planned_run.run_id, summary.rows, counts)
    logger.info("Store: %s", redact(absolute(planned_run.spec.store.url)))
    await states.tag_run(TAG, f"{TAG}-run:{planned_run.run_id}")
    for warning, rows in summary.warnings.items():
        logger.warning("%s (%s rows)", warning, rows)
    async with open_session(planned_run, states.order_id()) as session:
        handed_over = hand_over.handed_over()
        if handed_over is not None:
            handed_over.on_open(session)
        with session.stopping_on_signals():
            async with showing_progress(session):
                slots = _share(session, limit) if limit else None
                await session.for_each_shard(partial(generate_shard, session, limit_name=limit_name, slots=slots))
            result = await finish_run(session, time.monotonic() - started)
        await publish_summary(result)
        if handed_over is not None:
            handed_over.result = result
        return result


def _share(session: Session, limit: int) -> int:
    """Slots for one open shard, so that all open shards together can fill `max_in_flight`."""
    return min(limit, -(-session.max_in_flight // session.open_shards))


async def _slots_of(name: str) -> int:
    async with get_client() as client:
        try:
            limit = await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound as error:
            raise RefusedError(
                "limit_not_found",
                f"There is no global concurrency limit {name!r} on this Prefect server.",
                remedy=f"Create it: prefect gcl create {name} --limit N",
            ) from error
    if not limit.active or limit.limit < 1:
        raise RefusedError(
            "limit_inactive", f"The global concurrency limit {name!r} lets nothing through.", remedy="Activate it."
        )
    return int(limit.limit)
