"""The task that plans a run."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec, prepare
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.tasks.wording import refusal_in_parameters


@task(name="plan", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def plan_run(spec: RunSpec, parent_run_id: str | None = None, order_id: str | None = None) -> PlannedRun:
    """Check and plan a run; returns it ready for `open_session`. Raises RefusedError where it is called.

    `parent_run_id`: the run that this one goes on with; by default the last one of the order `order_id`, if any.
    """
    try:
        return await prepare(spec, parent_run_id, order_id=order_id)
    except RefusedError as error:
        refusal = refusal_in_parameters(error)
        # A state, since Prefect logs a traceback of what is raised here; it raises the data where the task is called.
        return Failed(message=f"refused ({refusal.kind}): {refusal}", data=refusal)  # type: ignore[return-value]
