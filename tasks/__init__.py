"""The Prefect tasks: plan a run, generate a shard, finish the run."""

from prefect_imagegen.tasks.finish_run import finish_run
from prefect_imagegen.tasks.generate_shard import generate_shard
from prefect_imagegen.tasks.plan_run import plan_run

__all__ = ["finish_run", "generate_shard", "plan_run"]
