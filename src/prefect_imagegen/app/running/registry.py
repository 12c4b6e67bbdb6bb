"""What flow and tasks of one process share by run_id, so that no secret and no row is ever a parameter."""

from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.session import Session

jobs: dict[str, RunSpec] = {}
"""Jobs that wait to be planned, by a ticket of the flow run."""
prepared: dict[str, PlannedRun] = {}
"""Planned runs that wait to be executed, by run_id."""
sessions: dict[str, Session] = {}
"""Runs that are being executed, by run_id."""
results: dict[str, RunResult] = {}
"""What the runs executed by this process came to, by run_id."""
