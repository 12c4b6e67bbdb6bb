"""The metadata of a run's rows: plan, results and ledger become columns, and are counted in the run's figures."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.app.planning.stored_plan import request_from_json
from prefect_imagegen.app.running.result import HELD_COLUMNS, RunResult
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.core.ledger.delivery_columns import MEANINGS, explained_values
from prefect_imagegen.core.ledger.fold import first_of_each_key
from prefect_imagegen.core.metadata import METADATA_SCHEMA
from prefect_imagegen.core.plan import WORKED
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.core.request.references import shown
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult

WITH_IMAGE = frozenset({"generated", "reused"})
"""The states of rows that have an image."""
_HELD_SHOWN = 20
_DAMAGED = {
    "status": "failed",
    "error_kind": "image_damaged",
    "error_message": "the image was there when the run was planned, and was quarantined before the run began",
}


def metadata_table(
    session: Session, part: pa.Table, results: Mapping[bytes, RequestResult], done: pa.Table, result: RunResult
) -> pa.Table:
    """The metadata (`METADATA_SCHEMA` and carried columns) of some rows of a plan; adds them to `result`'s figures.

    `results`: this run's results by key. `done`: the delivered events of rows that were done before.
    """
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
            {
                "uri": shown(reference.uri),
                "sha256": reference.sha256,
                "width": reference.width,
                "height": reference.height,
            }
            for reference in request.references
        ]
    state, is_sandbox = planned["state"], session.planned_run.kind == "sandbox"
    if state in ("invalid", "busy", "failed"):
        return row | {"status": "invalid" if state == "invalid" else "failed"}
    if state == "done":
        event = facts.get(planned["request_key"])
        return row | (_DAMAGED if event is None else {"status": "reused", "sandbox": is_sandbox} | _from_ledger(event))
    result = results.get(planned["request_key"])
    if result is None:
        return row | {
            # A call of an earlier run stays held if this run stopped before looking it up.
            "status": "held" if state == "unsettled" else "not_run",
            "error_kind": session.control.stop_reason,
            "error_message": session.control.stop_message,
        }
    row |= {"status": result.status, "error_kind": result.error_kind, "error_message": result.error_message}
    row |= explained_values(result) | {"cost_usd": 0.0}
    if result.image is not None:
        row |= {
            "backend": session.provider_name,
            "endpoint": result.endpoint or session.endpoint,
            "sandbox": is_sandbox,
            "created_at": result.created_at,
        }
    if state == "identical":
        return row | {"status": "reused"} if result.status == "generated" else row
    return row | {"attempts": result.attempts, "cost_usd": result.cost_usd if _is_billed(result) else 0.0}


def _is_billed(result: RequestResult) -> bool:
    """Whether the call of a row was billed, with or without an image."""
    if result.status != "failed":
        return result.status == "generated"
    outcome = OUTCOMES.get(result.error_kind or "")
    return result.paid > 0 or (outcome is not None and outcome.billed == "yes")


def _from_ledger(event: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of an image that was made before; this run paid nothing for it."""
    return {name: event[name] for name in MEANINGS} | {
        "cost_usd": 0.0,
        "backend": event["backend"],
        "created_at": event["time"],
    }


def _requested(request: GenerationRequest) -> str:
    """The parameters as sent, as JSON; references by their source URI without query."""
    body = request.body([shown(reference.uri) for reference in request.references])
    return json.dumps(body, ensure_ascii=False, sort_keys=True)


def _count(result: RunResult, row: Mapping[str, Any], outcome: RequestResult | None) -> None:
    status = row["status"]
    result.rows += 1
    setattr(result, status, getattr(result, status) + 1)
    result.flagged += bool(row.get("flags"))
    result.cost_usd += row["cost_usd"] or 0.0
    result.unpriced += row["cost_usd"] is None
    if outcome is not None:
        if outcome.status == "generated":
            for name in _unhonoured(row):
                result.unhonoured[name] = result.unhonoured.get(name, 0) + 1
        result.maybe_paid += outcome.maybe_paid
        result.paid += outcome.paid
    if status not in WITH_IMAGE:
        kind = row["error_kind"] or status
        result.failures[kind] = result.failures.get(kind, 0) + 1
        result.examples.setdefault(kind, row["error_message"] or "")
    if status == "held" and len(result.held_rows) < _HELD_SHOWN:
        result.held_rows.append({name: row.get(name) for name in HELD_COLUMNS})


def _unhonoured(row: Mapping[str, Any]) -> list[str]:
    """The parameters whose applied value differs from the requested one."""
    requested, applied = json.loads(row["requested"]), json.loads(row["applied"] or "{}")
    return [name for name, value in requested.items() if name in applied and applied[name] != value]
