"""The task that finishes a run."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.session import Session


@task(name="finish", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def finish_run(session: Session, seconds: float) -> RunResult:
    """Write the metadata, the failures and the report of a run; returns its figures.

    `seconds`: how long the run has taken, for the report.
    """
    return await finish(session, seconds)
