"""The executions of an order (a Prefect flow run and its retries), which share one budget.

Each execution takes a number in the store, and begins its budget with what the earlier ones have spent.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.orders import Spending, SpendingFold
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.ports import ObjectStore
from prefect_imagegen.store.executions import run_of_execution
from prefect_imagegen.store.ledger.files import json_object
from prefect_imagegen.store.ledger.reading import event_tables

_READERS = 16


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution of an order: its number (from 1), and the run_ids of those before it."""

    number: int
    earlier: tuple[str, ...] = ()


async def enter(store: ObjectStore, order_id: str, run_id: str) -> Execution:
    """Take the next free number of an order for a run; the earlier numbers tell the earlier runs. Raises StoreError."""
    earlier: list[str] = []
    data = json.dumps({"run_id": run_id}).encode()
    while True:
        number = len(earlier) + 1
        path = layout.execution(order_id, number)
        if await store.create(path, data, "application/json"):
            return Execution(number, tuple(earlier))
        other = run_of_execution(path, await store.get(path))
        if other == run_id:  # our own put: a client library sent it twice
            return Execution(number, tuple(earlier))
        earlier.append(other)


async def spent_before(store: ObjectStore, execution: Execution, *, queues: bool) -> Spending:
    """What the earlier executions of an order have spent, from the ledger. Raises StoreError.

    `queues`: whether the provider queues calls, as its abilities say.
    """
    if not execution.earlier:
        return Spending()
    claimed = {} if await _all_ended(store, execution.earlier) else await _claims(store)
    fold = SpendingFold(execution.earlier, queues=queues, claimed=claimed)
    async for table in event_tables(store):
        await asyncio.to_thread(fold.add, table)
    ours = await _claimed_by(store, {name: claimed[name] for name in fold.unheard}, execution.earlier)
    return await asyncio.to_thread(fold.spending, ours)


def carry(budget: Budget, spending: Spending) -> None:
    """Add to a budget what earlier executions spent, and what is reserved for their open calls."""
    budget.carry(spending.cost_usd, spending.reservations(budget.worst))


async def _all_ended(store: ObjectStore, run_ids: Sequence[str]) -> bool:
    """Whether all of these runs have ended in an orderly way, and so have stored all of their events."""
    beats = await asyncio.gather(*(store.get(layout.run(run_id, "heartbeat.json")) for run_id in run_ids))
    return all(data is not None and _ended(data) for data in beats)


def _ended(heartbeat: bytes) -> bool:
    try:
        return bool(json.loads(heartbeat)["ended"])
    except (ValueError, TypeError, KeyError):
        return False


async def _claims(store: ObjectStore) -> dict[str, str]:
    """The paths of all claims, by attempt id."""
    paths = {}
    for info in await store.list(layout.CLAIMS):
        key, _, name = info.path.rpartition("/")
        number = name.removesuffix(".json")
        if number.isdigit():
            paths[f"{key.rpartition('/')[2]}-{number}"] = info.path
    return paths


async def _claimed_by(store: ObjectStore, claims: dict[str, str], run_ids: Sequence[str]) -> list[str]:
    """Those attempt ids of `claims` (attempt id to path) that one of these runs claimed, sorted."""
    gate = asyncio.Semaphore(_READERS)

    async def is_ours(path: str) -> bool:
        async with gate:
            data = await store.get(path)
        # A claim that is gone by now belongs to a key that is done, and was removed.
        return data is not None and json_object(path, data).get("run_id") in run_ids

    names = sorted(claims)
    own = await asyncio.gather(*(is_ours(claims[name]) for name in names))
    return [name for name, mine in zip(names, own, strict=True) if mine]
