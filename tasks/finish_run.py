"""The task that finishes a run."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_imagegen.app.running import registry
from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.app.running.result import RunResult


@task(name="finish", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def finish_run(run_id: str, seconds: float) -> RunResult:
    """Write the metadata, the failures and the report of a run; returns its figures."""
    return await finish(registry.sessions[run_id], seconds)
