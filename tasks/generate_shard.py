"""The task that makes the images of one shard."""

from collections import Counter
from contextlib import AsyncExitStack

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.asyncio import concurrency

from prefect_imagegen.app import registry


@task(
    name="generate-shard",
    task_run_name="shard-{index}",
    retries=0,
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def generate_shard(
    run_id: str, index: int, limit_name: str | None = None, slots: int | None = None
) -> Counter[str]:
    """Make the images of one shard of a run that is being executed in this process; rows by status.

    With `limit_name`, `slots` of that global concurrency limit are held meanwhile, and as many rows run at once.
    Raises on bugs only: how single rows end is in the metadata.
    """
    session = registry.sessions[run_id]
    async with AsyncExitStack() as stack:
        if limit_name is not None:
            # Strict: a limit that does not exist must not mean "no limit". A lease that cannot be renewed must not
            # kill calls that are paid already.
            held = concurrency(limit_name, occupy=slots or 1, strict=True, raise_on_lease_renewal_failure=False)
            await stack.enter_async_context(held)
        return await session.run_shard(index, slots)
