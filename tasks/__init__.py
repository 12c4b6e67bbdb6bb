"""The Prefect tasks: plan a run, generate a shard, finish the run; and what a flow of one's own needs besides."""

from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec
from prefect_imagegen.app.running.run_session import open_session
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.tasks.finish_run import finish_run
from prefect_imagegen.tasks.generate_shard import generate_shard
from prefect_imagegen.tasks.plan_run import plan_run

__all__ = ["PlannedRun", "RunSpec", "Session", "finish_run", "generate_shard", "open_session", "plan_run"]
