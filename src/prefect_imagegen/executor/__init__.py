"""Drives requests: slot -> claim -> attempt -> verify -> put -> record. Knows core and ports only.

`Executor` has the slots; `Calls` makes one attempt; `Claims` wins and follows claims and settles unknown outcomes;
`Closing` decides about every retry, by the table of `core.outcomes`; the `Lot` holds rows that wait. A paid call is
never sent without a claim of its own, never sent twice on a guess, and what was sent is fetched, never bought again.
"""

from prefect_imagegen.executor.context import ExecutorContext, Policy
from prefect_imagegen.executor.executor import Executor

__all__ = ["Executor", "ExecutorContext", "Policy"]
