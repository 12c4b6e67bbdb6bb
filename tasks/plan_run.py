"""The task that plans a run."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.states import Failed

from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec, prepare
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.tasks.wording import refusal_in_parameters


async def plan_run(spec: RunSpec, parent_run_id: str | None = None, order_id: str | None = None) -> PlannedRun:
    """Check and plan a run, as a task run `plan`; returns it ready for `open_session`. Raises RefusedError.

    `parent_run_id`: the run that this one goes on with; by default the last one of the order `order_id`, if any.
    """
    state: State[Any] = await _plan(spec, parent_run_id, order_id, return_state=True)  # type: ignore[misc]
    if isinstance(state.data, RefusedError):
        raise state.data
    planned_run: PlannedRun = await state.aresult()
    return planned_run


@task(name="plan", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def _plan(spec: RunSpec, parent_run_id: str | None, order_id: str | None) -> PlannedRun | State[Any]:
    """The planned run. A refusal is a Failed state with the RefusedError as data: raised, it would log a traceback."""
    try:
        return await prepare(spec, parent_run_id, order_id=order_id)
    except RefusedError as error:
        refusal = refusal_in_parameters(error)
        return Failed(message=f"refused ({refusal.kind}): {refusal}", data=refusal)
