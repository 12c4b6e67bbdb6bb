"""Objects that the flow and the tasks of one process share by run_id, so that secrets and rows are no parameters."""

from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.session import Session

run_specs: dict[str, RunSpec] = {}
"""Runs that wait to be planned, by a ticket of the flow run."""
planned_runs: dict[str, PlannedRun] = {}
"""Planned runs that wait to be executed, by run_id."""
sessions: dict[str, Session] = {}
"""Runs that are being executed, by run_id."""
results: dict[str, RunResult] = {}
"""The figures of the runs that this process has executed, by run_id."""
