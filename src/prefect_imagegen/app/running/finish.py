"""Finish a run: its plan, its results and the ledger become the metadata, the failures and the report."""

import asyncio
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_imagegen.app.config.options import SECRET_OPTIONS
from prefect_imagegen.app.planning.stored_plan import request_from_json
from prefect_imagegen.app.running.done_before import done_before_run
from prefect_imagegen.app.running.result import STATES, STOP_REASONS, RunResult
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.fold import first_of_each_key, image_facts
from prefect_imagegen.core.metadata import METADATA_SCHEMA
from prefect_imagegen.core.money import exact, usd
from prefect_imagegen.core.plan import WORKED
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.request.references import shown
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.failpoints import hit

_READERS = 16
_MARKS = re.compile(r"[\\`\[\]|]")
"""What begins something in Markdown that a text of anybody's must not begin."""
_HELD_SHOWN = 20
_HELD_COLUMNS = ("row_index", "id", "error_kind", "request_id", "attempts")
_ROWS_AT_ONCE = 4096
"""Rows that are Python objects at the same time; each such slice is a row group of the file."""
_WITH_IMAGE = frozenset({"generated", "reused"})
_DAMAGED = {
    "status": "failed",
    "error_kind": "image_damaged",
    "error_message": "the image was there when the run was planned, and was quarantined before the run began",
}


async def finish(session: Session, seconds: float) -> RunResult:
    """Write `metadata/`, `failures/`, `report.json` and `report.md`; the run in figures.

    Streams part by part. Where the store cannot be written any more, the run counts as stopped for that reason, with
    the figures that this process knows of.
    """
    try:
        await session.ledger.flush()
        hit("finish")
        return await _write(session, seconds)
    except StoreError as error:
        session.control.stop("store", str(error))
        return _unwritten(session, seconds)


def _unwritten(session: Session, seconds: float) -> RunResult:
    counts, done = session.prepared.summary.counts, session.stats.statuses
    result = RunResult(session.prepared.run_id, session.plan.store.url, rows=session.plan.rows, seconds=seconds)
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
    result.failures, result.earlier = dict(session.stats.kinds), session.earlier
    result.assumed_price, result.not_understood = session.budget.assumed, dict(session.not_understood)
    result.left_out = dict(session.left_out)
    return result


async def _write(session: Session, seconds: float) -> RunResult:
    run_id = session.prepared.run_id
    result = RunResult(run_id, session.plan.store.url, seconds=seconds)
    result.stop_reason, result.stop_message = session.control.stop_reason, session.control.stop_message
    result.calls, result.overshoot_usd = session.executor.calls, session.budget.overshoot
    result.assumed_price, result.not_understood = session.budget.assumed, dict(session.not_understood)
    result.earlier, result.left_out = session.earlier, dict(session.left_out)
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
            table = await asyncio.to_thread(_metadata, session, rows, results, done, result)
            await asyncio.to_thread(metadata.write, table)
            lacking = table.filter(pc.invert(pc.is_in(table["status"], pa.array(sorted(_WITH_IMAGE)))))
            await asyncio.to_thread(failures.write, lacking)
        await metadata.put(session, layout.part(run_id, "metadata", index))
        if failures.rows:
            await failures.put(session, layout.part(run_id, "failures", index))
    report = result.as_dict() | {
        "failures": result.failures,
        "examples": result.examples,
        "stop_message": result.stop_message,
        "plan": session.prepared.summary.as_dict(),
        "options": session.prepared.job.options.model_dump(exclude=SECRET_OPTIONS),
        "held_rows": result.held_rows,
        "paid": result.paid,
        "overshoot_usd": exact(result.overshoot_usd),
        "assumed_price": result.assumed_price,
        "not_understood": result.not_understood,
        "left_out": result.left_out,
        "order": result.order,
        "unhonoured": result.unhonoured,
        "weights_license": session.settings.weights_license,
        "endpoint": session.endpoint,
        "kind": session.prepared.kind,
    }
    data = json.dumps(report, indent=1, ensure_ascii=False).encode()
    await session.plan.store.put(layout.run(run_id, "report.json"), data, "application/json")
    text = report_markdown(result).encode()
    await session.plan.store.put(layout.run(run_id, "report.md"), text, "text/markdown; charset=utf-8")
    return result


def report_markdown(result: RunResult) -> str:
    """The report for people."""
    lines = [f"# Run {result.run_id}", "", f"Store: `{result.store}`", "", "| | rows |", "|---|---|"]
    lines += [f"| {state} | {getattr(result, state)} |" for state in STATES]
    lines += [f"| **all** | **{result.rows}** |", ""]
    lines += [f"{money_text(result)}; {result.calls} calls, {result.seconds:.1f} s."]
    lines += [line for remark in _remarks(result) for line in ("", remark)]
    if result.stop_reason:
        lines += [
            "",
            f"**Stopped: {STOP_REASONS.get(result.stop_reason, result.stop_reason)}** ({_cell(result.stop_message)}).",
        ]
        lines += ["The same command goes on where this run ended."]
    if result.failures:
        lines += ["", "| error | rows | example | remedy |", "|---|---|---|---|"]
        for kind, count in sorted(result.failures.items(), key=lambda item: -item[1]):
            remedy = OUTCOMES[kind].remedy if kind in OUTCOMES else ""
            lines.append(f"| {kind} | {count} | {_cell(result.examples.get(kind))} | {remedy} |")
    if result.held_rows:
        lines += ["", f"Held rows (the first {len(result.held_rows)}; all are in `failures/`):", ""]
        lines += ["| row | id | error | request_id | attempts |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(_cell(row[name]) for name in _HELD_COLUMNS)} |" for row in result.held_rows]
        lines += ["", "The same command settles what can be settled. `prefect-imagegen resend` gives rows free, at the"]
        lines += ["risk of paying twice; rows on their way (submitted, other_run) only where --kind names them."]
    return "\n".join(lines) + "\n"


def _remarks(result: RunResult) -> Iterator[str]:
    """What is worth a sentence beside the figures."""
    if result.flagged:
        yield f"{result.flagged} images are flagged (see `flags` in the metadata)."
    if result.unhonoured:
        counts = ", ".join(f"{name} in {count}" for name, count in sorted(result.unhonoured.items()))
        yield f"Parameters replaced by what the worker can do (rows): {counts}; see `applied`."
    if result.not_understood:
        counts = ", ".join(f"{_cell(what)} ({count})" for what, count in sorted(result.not_understood.items()))
        yield f"Answers that were not understood, and so proved nothing: {counts}."
    if result.left_out:
        reasons = "; ".join(f"{_cell(worker)}: {_cell(why)}" for worker, why in sorted(result.left_out.items()))
        yield f"Workers that were left out, for a while or to the end: {reasons}."
    if result.weights_license:
        yield f"Licence of the weights: {result.weights_license}."
    if result.overshoot_usd:
        yield f"The budget was overshot by {usd(result.overshoot_usd)}: calls cost more than any before."
    if result.assumed_price:
        yield "Answers named no cost: cap held against an assumed price (published, or the worst seen)."


def _cell(value: object) -> str:
    """A text of anybody's as Markdown shows it: one line, without links, pictures, code, HTML or cells of its own."""
    if value is None:
        return ""
    return _MARKS.sub(r"\\\g<0>", redact(str(value))).replace("&", "&amp;").replace("<", "&lt;")


def money_text(result: RunResult) -> str:
    """What the run delivered, what of it was billed, and what may have been billed twice."""
    text = f"{result.generated} delivered / {result.paid} billed / {result.maybe_paid} possibly billed twice"
    return f"{text}, {usd(result.cost_usd)}{result.order_text}"


async def _results(session: Session, rows: pa.Table, late: Mapping[bytes, RequestResult]) -> dict[bytes, RequestResult]:
    """The results of all shards that these rows of a plan belong to; `late` ones replace them."""
    shards = [shard for shard in pc.unique(rows["shard"]).to_pylist() if shard is not None]
    gate = asyncio.Semaphore(_READERS)

    async def read(shard: int) -> dict[bytes, RequestResult]:
        async with gate:
            return await session.read_results(layout.part(session.prepared.run_id, "results", shard))

    found: dict[bytes, RequestResult] = {}
    for results in await asyncio.gather(*map(read, shards)):
        found |= results
    return found | {key: late[key] for key in found.keys() & late.keys()}


def _metadata(
    session: Session, part: pa.Table, results: Mapping[bytes, RequestResult], done: pa.Table, result: RunResult
) -> pa.Table:
    """The metadata of some rows of a plan, which are added to the figures of `result`; `done` has their events."""
    facts = first_of_each_key(done.filter(pc.is_in(done["key"], part["request_key"].combine_chunks())))
    own = [name for name in part.column_names if not name.startswith("c_")]
    rows = []
    for planned in part.select(own).to_pylist():
        row = _row(session, planned, results, facts)
        rows.append(row)
        _count(result, row, results.get(planned["request_key"]) if planned["state"] in WORKED else None)
    table = pa.Table.from_pylist(rows, schema=METADATA_SCHEMA)
    for position, name in enumerate(session.plan.carried.values()):
        table = table.append_column(name, part[f"c_{position}"])
    return table


def _row(
    session: Session,
    planned: Mapping[str, Any],
    results: Mapping[bytes, RequestResult],
    facts: Mapping[bytes, Mapping[str, Any]],
) -> dict[str, Any]:
    row: dict[str, Any] = {name: planned[name] for name in ("row_index", "id", "prompt", "seed", "model")}
    row |= {
        "attempts": 0,
        "cost_usd": 0.0,
        "error_kind": planned["error_kind"],
        "error_message": planned["error_message"],
    }
    if planned["request_key"] is not None:
        row["request_key"] = planned["request_key"].hex()
        request = request_from_json(planned["request"])
        row["requested"] = _requested(request)
        row |= {"profile": request.profile, "weights": request.weights}
        if request.profile:
            row["weights_license"] = session.settings.weights_license
        row["references"] = [
            {"uri": shown(one.uri), "sha256": one.sha256, "width": one.width, "height": one.height}
            for one in request.references
        ]
    state = planned["state"]
    if state in ("invalid", "busy", "failed"):
        return row | {"status": "invalid" if state == "invalid" else "failed"}
    if state == "done":
        event = facts.get(planned["request_key"])
        return row | (_DAMAGED if event is None else {"status": "reused"} | _from_ledger(event))
    found = results.get(planned["request_key"])
    if found is None:
        return row | {
            # What an earlier run has sent is not lost because this one stopped before it looked.
            "status": "held" if state == "unsettled" else "not_run",
            "error_kind": session.control.stop_reason,
            "error_message": session.control.stop_message,
        }
    row |= {"status": found.status, "error_kind": found.error_kind, "error_message": found.error_message}
    row |= {"request_id": found.request_id, "http_status": found.http_status}
    if found.image is not None:
        row |= _image_columns(asdict(found.image)) | {
            "backend": session.backend_name,
            "endpoint": found.endpoint or session.endpoint,
            "sandbox": session.prepared.kind == "sandbox",
            "latency_s": found.latency_s,
            "created_at": found.created_at,
            "applied": json.dumps(found.applied, ensure_ascii=False, sort_keys=True),
        }
    if state == "identical":
        return row | {"status": "reused"} if found.status == "generated" else row
    return row | {"attempts": found.attempts, "cost_usd": found.cost_usd if _is_billed(found) else 0.0}


def _is_billed(found: RequestResult) -> bool:
    """Whether a row costs what its answer said, or an unknown sum, with or without an image."""
    if found.status != "failed":
        return found.status == "generated"
    outcome = OUTCOMES.get(found.error_kind or "")
    return found.paid > 0 or (outcome is not None and outcome.billed == "yes")


def _from_ledger(event: Mapping[str, Any]) -> dict[str, Any]:
    image = image_facts(dict(event))
    columns = _image_columns(asdict(image)) if image else {}
    names = ("backend", "endpoint", "latency_s", "request_id", "http_status")
    return (
        columns
        | {name: event[name] for name in names}
        | {
            "sandbox": event["backend"] == "sandbox",
            "created_at": event["time"],
            "applied": event["applied"],
        }
    )


def _image_columns(image: Mapping[str, Any]) -> dict[str, Any]:
    names = ("width", "height", "format", "size_bytes", "sha256")
    return {"image_path": image["path"], "flags": list(image["flags"])} | {name: image[name] for name in names}


def _requested(request: GenerationRequest) -> str:
    """Every parameter as sent, references by where they come from."""
    body = request.body([shown(reference.uri) for reference in request.references])
    return json.dumps(body, ensure_ascii=False, sort_keys=True)


def _count(result: RunResult, row: Mapping[str, Any], made: RequestResult | None) -> None:
    status = row["status"]
    result.rows += 1
    setattr(result, status, getattr(result, status) + 1)
    result.flagged += bool(row.get("flags"))
    result.cost_usd += row["cost_usd"] or 0.0
    if made is not None:
        if made.status == "generated":
            for name in _unhonoured(row):
                result.unhonoured[name] = result.unhonoured.get(name, 0) + 1
        result.maybe_paid += made.maybe_paid
        result.paid += made.paid
    if status not in _WITH_IMAGE:
        kind = row["error_kind"] or status
        result.failures[kind] = result.failures.get(kind, 0) + 1
        result.examples.setdefault(kind, row["error_message"] or "")
    if status == "held" and len(result.held_rows) < _HELD_SHOWN:
        result.held_rows.append({name: row.get(name) for name in _HELD_COLUMNS})


def _unhonoured(row: Mapping[str, Any]) -> list[str]:
    """The parameters that were asked for and replaced by something else."""
    requested, applied = json.loads(row["requested"]), json.loads(row["applied"])
    return [name for name, value in requested.items() if name in applied and applied[name] != value]


class _PartFile:
    """A Parquet file in memory, written slice by slice."""

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
        """End the file and store it."""
        if self._writer is not None:
            self._writer.close()
        await session.plan.store.put(path, self._sink.getvalue(), "application/vnd.apache.parquet")
