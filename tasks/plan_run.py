"""The task that plans a run."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.states import Failed

from prefect_imagegen.app.planning.prepare import prepare
from prefect_imagegen.app.running import registry
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.tasks.wording import refusal_in_parameters


@task(name="plan", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def plan_run(ticket: str, parent_run_id: str | None = None) -> str | State[Any]:
    """Check and plan the run that is registered under `ticket`; returns the new run_id.

    A refusal is returned as a Failed state with the RefusedError as data, since Prefect logs a traceback of what is
    raised.
    """
    try:
        planned_run = await prepare(registry.run_specs.pop(ticket), parent_run_id)
    except RefusedError as error:
        refusal = refusal_in_parameters(error)
        return Failed(message=f"refused ({refusal.kind}): {refusal}", data=refusal)
    registry.planned_runs[planned_run.run_id] = planned_run
    return planned_run.run_id
