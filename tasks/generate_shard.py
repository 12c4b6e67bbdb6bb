"""The task that makes the images of one shard."""

from collections import Counter

from prefect import task
from prefect.cache_policies import NO_CACHE

from prefect_imagegen.app.running.session import Session
from prefect_imagegen.tasks.held_slots import held_slots


@task(
    name="generate-shard",
    task_run_name="shard-{index}",
    retries=0,
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def generate_shard(
    session: Session, index: int, limit_name: str | None = None, slots: int | None = None
) -> Counter[str]:
    """Make the images of one shard of an open run; returns the number of rows by status.

    With `limit_name`, `slots` of that global concurrency limit are held meanwhile, and as many rows run at once.
    Raises on bugs only: failed rows are in the metadata.
    """
    if limit_name is None:
        return await session.run_shard(index, slots)
    async with held_slots(limit_name, slots or 1, session.control):
        # If the run has stopped meanwhile, the rows end as not_run: nothing is sent.
        return await session.run_shard(index, slots)
