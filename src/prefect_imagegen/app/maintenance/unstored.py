"""Find the calls in the ledger that were billed and whose image was never stored."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, KEY_TYPE
from prefect_imagegen.ports import ObjectStore
from prefect_imagegen.store.ledger.reading import event_tables, load_ledger

PAID_KINDS = frozenset({"bad_output", "output_lost"})
"""Error kinds of attempts that were billed, and whose image may still be fetched later."""


async def paid_not_stored(store: ObjectStore) -> Mapping[bytes, Sequence[dict[str, Any]]]:
    """The failed events (rows of `EVENT_SCHEMA`) of billed calls without an image, by request key, oldest first.

    Only calls with a request_id whose image was never stored, of keys that have no image. Reads the ledger once, and
    a second time if there are any. Raises StoreError.
    """
    tables = [EVENT_SCHEMA.empty_table()]
    tables.extend([await asyncio.to_thread(_of_use, table) async for table in event_tables(store)])
    events = pa.concat_tables(tables)
    is_quarantined = pc.equal(events["type"], "quarantined")
    once_stored, events = events.filter(is_quarantined), events.filter(pc.invert(is_quarantined))
    if not len(events):
        return {}
    delivered = (await load_ledger(store)).delivered_keys.cast(KEY_TYPE)
    events = events.filter(pc.invert(pc.is_in(events["key"], delivered)))
    events = events.filter(pc.invert(pc.is_in(events["attempt_id"], once_stored["attempt_id"].combine_chunks())))
    by_key: dict[bytes, dict[str, dict[str, Any]]] = {}
    for row in events.sort_by([("time", "ascending"), ("attempt_id", "ascending")]).to_pylist():
        by_key.setdefault(row["key"], {}).setdefault(row["request_id"], row)
    return {key: list(calls.values()) for key, calls in by_key.items()}


def _of_use(events: pa.Table) -> pa.Table:
    """The failed events of billed calls, and the quarantined events."""
    is_paid = pc.and_(pc.equal(events["type"], "failed"), pc.is_in(events["error_kind"], pa.array(sorted(PAID_KINDS))))
    is_known = pc.and_(pc.is_valid(events["key"]), pc.is_valid(events["request_id"]))
    return events.filter(pc.or_(pc.and_(is_paid, is_known), pc.equal(events["type"], "quarantined")))
