"""Manifests as other programs write them."""

from pathlib import Path

import duckdb
import pytest

from prefect_imagegen.app.planning.plan import Planner
from prefect_imagegen.app.planning.stored_plan import request_from_json
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.core.request.manifest import ManifestOptions
from prefect_imagegen.inputs.manifests.manifest import Manifest

CASES = Path(__file__).parents[2] / "data" / "cases"


def plan(path, *, limit=None, **options) -> tuple[list[dict], PlanSummary]:
    """All rows of a plan, with their carried columns under their own names, and its summary."""
    manifest = Manifest(str(path))
    planner = Planner(manifest, ManifestOptions(**options), LedgerView.empty(), shard_size=64, limit=limit)
    try:
        rows = [row for table in planner.windows() for row in table.to_pylist()]
    finally:
        planner.close()
    for row in rows:
        row["carried"] = {name: row[f"c_{at}"] for at, name in enumerate(planner.summary.carried)}
        row["params"] = dict(request_from_json(row["request"]).params) if row["request"] else None
    return rows, planner.summary


def refusal(path, **options) -> RefusedError:
    with pytest.raises(RefusedError) as raised:
        plan(path, **options)
    assert raised.value.remedy
    return raised.value


def by_duckdb(query: str) -> list[dict]:
    """The rows that DuckDB finds."""
    with duckdb.connect() as connection:
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
