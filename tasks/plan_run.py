"""The task that plans a run."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_imagegen.app import registry
from prefect_imagegen.app.prepare import prepare


@task(name="plan", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def plan_run(ticket: str, parent_run_id: str | None = None) -> str:
    """Check and plan the job that waits under `ticket`; the new run_id. Raises RefusedError."""
    prepared = await prepare(registry.jobs.pop(ticket), parent_run_id)
    registry.prepared[prepared.run_id] = prepared
    return prepared.run_id
