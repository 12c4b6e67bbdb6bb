"""Finish a run: write its metadata, its failures and its reports from plan, results and ledger."""

import asyncio
import io
import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_imagegen.app.config.option_table import SECRET_OPTIONS
from prefect_imagegen.app.running.done_before import done_before_run
from prefect_imagegen.app.running.metadata_table import WITH_IMAGE, metadata_table
from prefect_imagegen.app.running.report import report_markdown
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.money import exact
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.failpoints import hit

_READERS = 16
_ROWS_AT_ONCE = 4096
"""Rows that are converted to Python objects at once; each such slice is a row group of the file."""


async def finish(session: Session, seconds: float) -> RunResult:
    """Write `metadata/`, `failures/`, `report.json` and `report.md`; returns the run's figures.

    Works part by part, so memory is bounded. If the store cannot be written any more, the run counts as stopped
    (`store`), with the figures that this process knows. Raises SessionError.
    """
    session.check_usable()
    try:
        await session.ledger.flush()
        hit("finish")
        return await _write(session, seconds)
    except StoreError as error:
        session.control.stop("store", str(error))
        return _unwritten(session, seconds)


def _unwritten(session: Session, seconds: float) -> RunResult:
    counts, done = session.planned_run.summary.counts, session.stats.statuses
    result = RunResult(session.planned_run.run_id, session.plan.store.url, rows=session.plan.rows, seconds=seconds)
    result.stop_reason, result.stop_message = session.control.stop_reason, session.control.stop_message
    result.generated, result.held, result.reused = done["generated"], done["held"], counts["done"]
    result.failed, result.invalid = done["failed"] + counts["failed"] + counts["busy"], counts["invalid"]
    settled = result.generated + result.held + result.reused + result.failed + result.invalid
    result.not_run = result.rows - settled
    result.calls, result.cost_usd, result.flagged = (
        session.executor.calls,
        session.stats.cost_usd,
        session.stats.flagged,
    )
    result.paid, result.maybe_paid = session.stats.paid, session.stats.maybe_paid
    result.unpriced = session.stats.unpriced
    result.failures, result.earlier = dict(session.stats.kinds), session.earlier
    result.assumed_price, result.not_understood = session.budget.assumed, dict(session.not_understood)
    result.left_out = dict(session.left_out)
    result.sandbox = session.planned_run.kind == "sandbox"
    return result


async def _write(session: Session, seconds: float) -> RunResult:
    run_id = session.planned_run.run_id
    result = RunResult(run_id, session.plan.store.url, seconds=seconds)
    result.stop_reason, result.stop_message = session.control.stop_reason, session.control.stop_message
    result.calls, result.overshoot_usd = session.executor.calls, session.budget.overshoot
    result.assumed_price, result.not_understood = session.budget.assumed, dict(session.not_understood)
    result.earlier, result.left_out = session.earlier, dict(session.left_out)
    result.sandbox = session.planned_run.kind == "sandbox"
    if session.settings.profile:
        result.weights_license = session.settings.weights_license
    late = await session.read_results(layout.late_results(run_id))
    done_before = await done_before_run(session)
    async for index, part in session.plan.parts():
        metadata, failures = _PartFile(), _PartFile()
        done = await asyncio.to_thread(done_before.of, index, part)
        for start in range(0, len(part), _ROWS_AT_ONCE):
            rows = part.slice(start, _ROWS_AT_ONCE)
            results = await _results(session, rows, late)
            table = await asyncio.to_thread(metadata_table, session, rows, results, done, result)
            await asyncio.to_thread(metadata.write, table)
            lacking = table.filter(pc.invert(pc.is_in(table["status"], pa.array(sorted(WITH_IMAGE)))))
            await asyncio.to_thread(failures.write, lacking)
        await metadata.put(session, layout.part(run_id, "metadata", index))
        if failures.rows:
            await failures.put(session, layout.part(run_id, "failures", index))
    report = result.as_dict() | {
        "failures": result.failures,
        "examples": result.examples,
        "stop_message": result.stop_message,
        "plan": session.planned_run.summary.as_dict(),
        "options": session.planned_run.spec.options.model_dump(exclude=SECRET_OPTIONS),
        "held_rows": result.held_rows,
        "paid": result.paid,
        "unpriced": result.unpriced,
        "overshoot_usd": exact(result.overshoot_usd),
        "assumed_price": result.assumed_price,
        "not_understood": result.not_understood,
        "left_out": result.left_out,
        "order": result.order,
        "unhonoured": result.unhonoured,
        "weights_license": session.settings.weights_license,
        "endpoint": session.endpoint,
        "kind": session.planned_run.kind,
    }
    data = json.dumps(report, indent=1, ensure_ascii=False).encode()
    await session.plan.store.put(layout.run(run_id, "report.json"), data, "application/json")
    text = report_markdown(result).encode()
    await session.plan.store.put(layout.run(run_id, "report.md"), text, "text/markdown; charset=utf-8")
    return result


async def _results(session: Session, rows: pa.Table, late: Mapping[bytes, RequestResult]) -> dict[bytes, RequestResult]:
    """The results, by key, of all shards that these rows belong to; `late` results replace those of the same key."""
    shards = [shard for shard in pc.unique(rows["shard"]).to_pylist() if shard is not None]
    gate = asyncio.Semaphore(_READERS)

    async def read(shard: int) -> dict[bytes, RequestResult]:
        async with gate:
            return await session.read_results(layout.part(session.planned_run.run_id, "results", shard))

    merged: dict[bytes, RequestResult] = {}
    for results in await asyncio.gather(*map(read, shards)):
        merged |= results
    return merged | {key: late[key] for key in merged.keys() & late.keys()}


class _PartFile:
    """A Parquet file that is written in memory, slice by slice, and then stored."""

    def __init__(self) -> None:
        self.rows = 0
        self._sink = io.BytesIO()
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Add some rows, as one row group."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, table.schema, compression="zstd")
        if len(table):
            self._writer.write_table(table)
        self.rows += len(table)

    async def put(self, session: Session, path: str) -> None:
        """Close the file and store it. Raises StoreError."""
        if self._writer is not None:
            self._writer.close()
        await session.plan.store.put(path, self._sink.getvalue(), "application/vnd.apache.parquet")
