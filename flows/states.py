"""How a flow run ends: its state, whether it may be retried, and the event that tells of it.

Every end that is not Completed has the type FAILED and the name `Failed`, so that filters and automations on `Failed`
see it; the reason stands in message and data. Only `CompletedWithFailures` (type COMPLETED) has a name of its own.
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
from prefect_imagegen.core.money import exact, usd
from prefect_imagegen.core.redact import redact
from prefect_imagegen.tasks.outages import server
from prefect_imagegen.tasks.wording import in_parameters

FINISHED = "prefect-imagegen.run.finished"
"""Emitted at the end of every run, whatever it was."""
RESUMABLE = frozenset({"deadline", "store", "no_worker", "signal"})
"""Stops that may pass by themselves: a user's `retries` resume the run. After all others a retry only costs."""
RETRIES_RETURNED_FAILURES = Version(prefect.__version__) >= Version("3.9.1")
"""Before, a flow that returned Failed where a retry was left hung in AwaitingRetry: there it has to raise."""


def order_id() -> str:
    """What all executions of the present flow run share.

    A flow that retries makes new runs of its subflows, but with the same task run as their parent.
    """
    run = _present_run()
    return str(run.parent_task_run_id or run.id)


def final_state(result: RunResult, *, fail_above: float) -> State[Any]:
    """The state that a run's figures amount to: see `fail_above` of the flow."""
    said = f"{result.generated} generated, {result.reused} reused, {result.invalid} invalid, {result.failed} failed,"
    said += f" {result.held} held, {result.not_run} not run; {usd(result.cost_usd)}{result.order_text}"
    if result.stop_reason is not None:
        why = in_parameters(STOP_REASONS.get(result.stop_reason, result.stop_reason))
        text = f"stopped ({result.stop_reason}): {why} ({result.stop_message}). {said}"
        return _failed(ImagegenError(result.stop_reason, text))
    if result.exit_code == 0:
        return Completed(message=said, data=result.as_dict())
    if result.generated + result.reused == 0:
        return _failed(ImagegenError("no_image", f"failed (no_image): no row has an image. {said}"))
    lacking = result.invalid + result.failed + result.held
    if lacking > fail_above * result.rows:
        text = f"failed (row_errors): {lacking} of {result.rows} rows have no image, more than fail_above allows"
        return _failed(ImagegenError("row_errors", f"{text} ({fail_above:g}). {said}"))
    return Completed(name="CompletedWithFailures", message=said, data=result.as_dict())


def refused(error: RefusedError) -> State[Any]:
    """The state of a run that was refused before any call."""
    return Failed(message=f"refused ({error.kind}): {error}", data=error)


async def ended(state: State[Any], result: RunResult) -> State[Any]:
    """The flow's end: told as an event, and not retried where that would help nothing.

    Raises the error of a failed state where Prefect is about to retry, and would hang if that state were returned.
    """
    run, error = await _read_run(), state.data
    cancelled = run is not None and run.state is not None and run.state.is_cancelling()
    tell(result, "Cancelled" if cancelled else state.name, error)
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
    """Whether Prefect's server makes a retry of the run's failure; its own rule."""
    running = run.state is not None and run.state.is_running()
    return running and run.run_count <= (run.empirical_policy.retries or 0)


def tell(result: RunResult, state: str | None, error: object = None) -> None:
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
    # Triggers can look at labels only, not into the payload.
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
    """Add tags to the present flow run, so that the UI can filter by them; a server that is away changes nothing."""
    try:
        async with get_client() as client:
            run = await client.read_flow_run(_present_run().id)
            await client.update_flow_run(run.id, tags=sorted({*run.tags, *tags}))
    except Exception as error:  # noqa: BLE001 - tags are for people; the images go on
        server().failed("The flow run could not be tagged", error)


async def _read_run() -> FlowRun | None:
    """The present flow run as the server has it; None if it cannot be asked: then the end is told all the same."""
    try:
        async with get_client() as client:
            return await client.read_flow_run(_present_run().id)
    except Exception as error:  # noqa: BLE001 - the server may be away; the run ends all the same
        server().failed("The flow run could not be read", error)
        return None


def _present_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("not inside of a flow run")
    return context.flow_run
