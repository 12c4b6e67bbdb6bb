"""The results of requests in a run, and their table."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from prefect_imagegen.core.ledger.events import ImageFacts
from prefect_imagegen.core.ledger.fold import KEY_TYPE, image_facts


@dataclass(slots=True)
class RequestResult:
    """The result of one request in one run: its status (as in metadata), the image or the reason, cost and time.

    `attempts` is the number of POSTs sent in this run. `maybe_paid` counts calls that were sent again although the
    earlier one may be billed; `paid` counts the calls billed in this run, stored or not. `cost_usd` is None where no
    answer named it.
    """

    key: bytes
    status: str
    error_kind: str | None = None
    error_message: str | None = None
    image: ImageFacts | None = None
    cost_usd: float | None = None
    attempts: int = 0
    maybe_paid: int = 0
    paid: int = 0
    latency_s: float | None = None
    request_id: str | None = None
    endpoint: str | None = None
    http_status: int | None = None
    applied: dict[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None


RESULT_SCHEMA = pa.schema(
    [
        ("key", KEY_TYPE),
        ("status", pa.string()),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
        ("cost_usd", pa.float64()),
        ("attempts", pa.int32()),
        ("maybe_paid", pa.int32()),
        ("paid", pa.int32()),
        ("latency_s", pa.float64()),
        ("request_id", pa.string()),
        ("endpoint", pa.string()),
        ("http_status", pa.int32()),
        ("applied", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("image_path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("flags", pa.list_(pa.string())),
    ]
)
"""One row per request of a shard, as `runs/<run_id>/results/part-<shard>.parquet` holds it."""
_OWN = RESULT_SCHEMA.names[: RESULT_SCHEMA.names.index("image_path")]
_IMAGE = ("width", "height", "format", "size_bytes", "sha256", "flags")


def results_table(results: list[RequestResult]) -> pa.Table:
    """Results as a table of `RESULT_SCHEMA`."""
    rows = []
    for result in results:
        row = {name: getattr(result, name) for name in _OWN}
        row["applied"] = json.dumps(result.applied, ensure_ascii=False)
        if result.image:
            row["image_path"] = result.image.path
            row |= {name: getattr(result.image, name) for name in _IMAGE}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=RESULT_SCHEMA)


def results_of(table: pa.Table) -> dict[bytes, RequestResult]:
    """The results of a table of `RESULT_SCHEMA`, by request key."""
    results = {}
    for row in table.to_pylist():
        facts = {name: row[name] for name in _OWN} | {"applied": json.loads(row["applied"] or "{}")}
        results[row["key"]] = RequestResult(image=image_facts(row), **facts)
    return results
