"""What a person does between two runs: `resend` of rows that are held for want of a request history."""

import io
import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_imagegen.app.maintenance.resend import _resend
from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import RETRY_ASKED
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.store.ledger.reading import load_ledger

from ..played import Played
from .loop import MachineClock, run_on
from .store import RunStore

KIND = "no_history"


async def give_free(
    store: RunStore, clock: MachineClock, run: Played, requests: Sequence[GenerationRequest]
) -> list[bytes]:
    """Give the rows free that a run held for want of a history; their keys. A run that died has told of none."""
    run_on(clock)
    results = run.ended.results if run.ended else {}
    rows = [
        {
            "request_key": request.key.hex(),
            "status": result.status,
            "error_kind": result.error_kind,
            "error_message": result.error_message,
            "model": request.model,
        }
        for request in requests
        if (result := results.get(request.key)) is not None and result.status in ("held", "failed")
    ]
    if not rows:
        return []
    sink, name = io.BytesIO(), f"run-{run.number}"
    pq.write_table(pa.Table.from_pylist(rows), sink)
    await store.put(layout.run(name, "failures/part-0.parquet"), sink.getvalue())
    await store.put(layout.run(name, "report.json"), json.dumps({"run_id": name}).encode())
    asked = [bytes.fromhex(row["request_key"]) for row in rows if row["error_kind"] == KIND]
    report = await _resend(store, name, frozenset({KIND}))
    view = await load_ledger(store)
    free = [key for key in asked if view.failure(key)[0] == RETRY_ASKED]
    assert report.rows == len(free)
    return free
