"""The executions of an order (a Prefect flow run and its retries), as the store counts them."""

from prefect_imagegen.core import layout
from prefect_imagegen.ports import ObjectStore
from prefect_imagegen.store.ledger.files import damaged, json_object


async def earlier_runs(store: ObjectStore, order_id: str) -> list[str]:
    """The run_ids of an order's executions so far, in their order. Raises StoreError."""
    run_ids: list[str] = []
    while True:
        path = layout.execution(order_id, len(run_ids) + 1)
        data = await store.get(path)
        if data is None:
            return run_ids
        run_ids.append(run_of_execution(path, data))


def run_of_execution(path: str, data: bytes | None) -> str:
    """The run_id that the file of an execution names. Raises StoreError for a file that names none."""
    run_id = json_object(path, data).get("run_id")
    if not isinstance(run_id, str):
        raise damaged(path)
    return run_id
