"""What flow and tasks of one process share by run_id, so that no secret and no row is ever a parameter."""

from prefect_imagegen.app.prepare import Job, Prepared
from prefect_imagegen.app.result import RunResult
from prefect_imagegen.app.session import Session

jobs: dict[str, Job] = {}
"""Jobs that wait to be planned, by a ticket of the flow run."""
prepared: dict[str, Prepared] = {}
"""Planned runs that wait to be executed, by run_id."""
sessions: dict[str, Session] = {}
"""Runs that are being executed, by run_id."""
results: dict[str, RunResult] = {}
"""What the runs executed by this process came to, by run_id."""
