"""The executions of an order: each is named in the store, and begins with what the earlier ones have spent."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.orders import Spending, SpendingFold
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.ports import ObjectStore
from prefect_imagegen.store.ledger.files import damaged, json_object
from prefect_imagegen.store.ledger.ledger import event_tables

_READERS = 16


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution of an order: its number (from 1), and the runs of those before it."""

    n: int
    earlier: tuple[str, ...] = ()


async def enter(store: ObjectStore, order_id: str, run_id: str) -> Execution:
    """Take the next free number of an order for a run. Who loses a number to another execution takes the next one."""
    earlier: list[str] = []
    data = json.dumps({"run_id": run_id}).encode()
    while True:
        n = len(earlier) + 1
        path = layout.execution(order_id, n)
        if await store.create(path, data, "application/json"):
            return Execution(n, tuple(earlier))
        other = json_object(path, await store.get(path)).get("run_id")
        if other == run_id:  # our own put, sent again by a client library
            return Execution(n, tuple(earlier))
        if not isinstance(other, str):
            raise damaged(path)
        earlier.append(other)


async def spent_before(store: ObjectStore, execution: Execution, *, queues: bool) -> Spending:
    """What the earlier executions of an order have spent. Reads the ledger; raises StoreError."""
    if not execution.earlier:
        return Spending()
    claimed = {} if await _all_ended(store, execution.earlier) else await _claims(store)
    fold = SpendingFold(execution.earlier, queues=queues, claimed=claimed)
    async for table in event_tables(store):
        await asyncio.to_thread(fold.add, table)
    ours = await _of_runs(store, {name: claimed[name] for name in fold.unheard}, execution.earlier)
    return await asyncio.to_thread(fold.spending, ours)


def carry(budget: Budget, spending: Spending) -> None:
    """Begin a budget with what earlier executions spent."""
    budget.carry(spending.cost_usd, spending.reservations(budget.worst))


async def _all_ended(store: ObjectStore, run_ids: Sequence[str]) -> bool:
    """Whether all of these runs came to their end, and so wrote down all of their events."""
    beats = await asyncio.gather(*(store.get(layout.run(run_id, "heartbeat.json")) for run_id in run_ids))
    return all(data is not None and _ended(data) for data in beats)


def _ended(heartbeat: bytes) -> bool:
    try:
        return bool(json.loads(heartbeat)["ended"])
    except (ValueError, TypeError, KeyError):
        return False


async def _claims(store: ObjectStore) -> dict[str, str]:
    """The paths of all claims, by attempt id."""
    found = {}
    for info in await store.list(layout.CLAIMS):
        key, _, name = info.path.rpartition("/")
        number = name.removesuffix(".json")
        if number.isdigit():
            found[f"{key.rpartition('/')[2]}-{number}"] = info.path
    return found


async def _of_runs(store: ObjectStore, claims: dict[str, str], run_ids: Sequence[str]) -> list[str]:
    """Those attempts that were claimed by one of these runs."""
    gate = asyncio.Semaphore(_READERS)

    async def is_ours(path: str) -> bool:
        async with gate:
            data = await store.get(path)
        # One that is gone by now was settled by somebody, and tidied away.
        return data is not None and json_object(path, data).get("run_id") in run_ids

    names = sorted(claims)
    own = await asyncio.gather(*(is_ours(claims[name]) for name in names))
    return [name for name, mine in zip(names, own, strict=True) if mine]
