"""One unit of work each: the Prefect tasks."""
