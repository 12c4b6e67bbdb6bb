"""The end of a flow run: its final state, whether Prefect may retry it, and the event `run.finished`.

Every end that is not Completed has the type FAILED and the name `Failed`, so that filters and automations on `Failed`
see it; the reason is in message and data. Only `CompletedWithFailures` (type COMPLETED) has a name of its own.
"""

from typing import Any

import prefect
from packaging.version import Version
from prefect import get_client
from prefect.client.schemas import FlowRun, State
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.states import Completed, Failed

from prefect_imagegen.app.running.result import STATES, STOP_REASONS, RunResult
from prefect_imagegen.core.errors import ImagegenError, RefusedError
from prefect_imagegen.core.money import exact
from prefect_imagegen.core.redact import redact
from prefect_imagegen.tasks.outages import server
from prefect_imagegen.tasks.wording import in_parameters

FINISHED = "prefect-imagegen.run.finished"
"""The name of the event that is emitted at the end of every run."""
RESUMABLE = frozenset({"deadline", "store", "no_worker", "signal"})
"""Stop reasons that may go away: Prefect's retries, if set, resume the run. After others they are switched off."""
RETRIES_RETURNED_FAILURES = Version(prefect.__version__) >= Version("3.9.1")
"""In older versions a flow that returns Failed with retries left hangs in AwaitingRetry: there it has to raise."""


def order_id() -> str:
    """The id that all executions of the current flow run share (retries and subflows of retried parents).

    A retried flow makes new runs of its subflows, but with the same task run as their parent.
    """
    run = _current_run()
    return str(run.parent_task_run_id or run.id)


def is_repeated() -> bool:
    """Whether the order of the current flow run may have been executed before."""
    run = _current_run()
    return run.run_count > 1 or run.parent_task_run_id is not None


def final_state(result: RunResult, *, fail_above: float) -> State[Any]:
    """The final state of a flow run from the figures of its run; `fail_above` as in the flow."""
    figures = f"{result.generated} generated, {result.reused} reused, {result.invalid} invalid, {result.failed} failed,"
    figures += f" {result.held} held, {result.not_run} not run; {result.cost_text}{result.order_text}"
    if result.stop_reason is not None:
        why = in_parameters(STOP_REASONS.get(result.stop_reason, result.stop_reason))
        text = f"stopped ({result.stop_reason}): {why} ({result.stop_message}). {figures}"
        return _failed(ImagegenError(result.stop_reason, text))
    if result.exit_code == 0:
        return Completed(message=figures, data=result.as_dict())
    if result.generated + result.reused == 0:
        return _failed(ImagegenError("no_image", f"failed (no_image): no row has an image. {figures}"))
    without_image = result.invalid + result.failed + result.held
    if without_image > fail_above * result.rows:
        text = f"failed (row_errors): {without_image} of {result.rows} rows have no image, more than fail_above allows"
        return _failed(ImagegenError("row_errors", f"{text} ({fail_above:g}). {figures}"))
    return Completed(name="CompletedWithFailures", message=figures, data=result.as_dict())


def refused(error: RefusedError) -> State[Any]:
    """The state of a run that was refused before any call."""
    return Failed(message=f"refused ({error.kind}): {error}", data=error)


async def end_run(state: State[Any], result: RunResult) -> State[Any]:
    """Emit the event of the end, switch useless retries off, and return the state.

    Raises the error of a failed state where Prefect will retry and would hang if the state were returned.
    """
    run, error = await _read_run(), state.data
    cancelled = run is not None and run.state is not None and run.state.is_cancelling()
    emit_finished(result, "Cancelled" if cancelled else state.name, error)
    if run is None or not run.empirical_policy.retries or not isinstance(error, ImagegenError):
        return state
    if isinstance(error, RefusedError) or (result.stop_reason is not None and result.stop_reason not in RESUMABLE):
        run.empirical_policy.retries = 0
        async with get_client() as client:
            await client.update_flow_run(run.id, empirical_policy=run.empirical_policy)
    elif not RETRIES_RETURNED_FAILURES and _is_retried(run):
        raise error
    return state


def _failed(error: ImagegenError) -> State[Any]:
    return Failed(message=str(error), data=error)


def _is_retried(run: FlowRun) -> bool:
    """Whether Prefect's server will retry the run if it fails (its own rule)."""
    running = run.state is not None and run.state.is_running()
    return running and run.run_count <= (run.empirical_policy.retries or 0)


def emit_finished(result: RunResult, state: str | None, error: object = None) -> None:
    """Emit the event that a run has ended: `state` is the name of the flow run's state, `error` why it failed."""
    reason = error.kind if isinstance(error, ImagegenError) else "internal" if isinstance(error, Exception) else None
    payload = {
        "run_id": result.run_id,
        "state": state,
        "stop_reason": result.stop_reason,
        "reason": reason,
        "counts": {name: getattr(result, name) for name in ("rows", *STATES)},
        "cost_usd": exact(result.cost_usd),
        "order": result.order,
    }
    store = redact(result.store)
    # Triggers can match labels only, not the payload.
    resource = {
        "prefect.resource.id": f"prefect-imagegen.store.{store}",
        "prefect.resource.name": store,
        "prefect-imagegen.state": str(payload["state"]),
        "prefect-imagegen.reason": reason or "",
    }
    try:
        emit_event(FINISHED, resource=resource, payload=payload)
    except Exception as failure:  # noqa: BLE001 - an event that cannot be sent changes nothing about the run
        server().failed(f"The event {FINISHED} could not be sent", failure)


async def tag_run(*tags: str) -> None:
    """Add tags to the current flow run, for filters in the UI; errors of the server are only logged."""
    try:
        async with get_client() as client:
            run = await client.read_flow_run(_current_run().id)
            await client.update_flow_run(run.id, tags=sorted({*run.tags, *tags}))
    except Exception as error:  # noqa: BLE001 - tags are for people; the run goes on
        server().failed("The flow run could not be tagged", error)


async def _read_run() -> FlowRun | None:
    """The current flow run as the server has it; None if the server cannot be reached."""
    try:
        async with get_client() as client:
            return await client.read_flow_run(_current_run().id)
    except Exception as error:  # noqa: BLE001 - the server may be away; the run ends all the same
        server().failed("The flow run could not be read", error)
        return None


def _current_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("not inside of a flow run")
    return context.flow_run
