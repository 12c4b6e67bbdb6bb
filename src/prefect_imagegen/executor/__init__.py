"""Drives requests: slot -> claim -> attempt -> verify -> put -> record. Knows core and ports only.

`Executor` gives out the slots. `Claims` makes claims and goes on with those of earlier runs. `AttemptRunner` makes one
attempt. `Lookups` finds out what became of calls without an answer. `FailureHandler` decides about every retry, by the
table in `core.policy.outcomes`. `DeferredRequests` holds the requests that wait without a slot.

A paid call always has a claim of its own and is never sent twice on a guess; the result of a call that was sent is
fetched, never bought again.
"""

from prefect_imagegen.executor.context import ExecutorContext, Policy
from prefect_imagegen.executor.executor import Executor

__all__ = ["Executor", "ExecutorContext", "Policy"]
