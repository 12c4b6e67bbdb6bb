"""The results of requests in a run, and their table."""

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from prefect_imagegen.core.ledger.delivery_columns import (
    DELIVERY_COLUMNS,
    IMAGE_COLUMNS,
    delivery_schema,
    delivery_values,
    facts_in,
)
from prefect_imagegen.core.ledger.events import DeliveryFacts
from prefect_imagegen.core.ledger.fold import KEY_TYPE


@dataclass(slots=True)
class RequestResult(DeliveryFacts):
    """The result of one request in one run: its status (as in metadata), the delivery or the reason.

    `attempts` is the number of POSTs sent in this run. `maybe_paid` counts calls that were sent again although the
    earlier one may be billed; `paid` counts the calls billed in this run, stored or not. `cost_usd` is None where no
    answer named it.
    """

    key: bytes
    status: str
    error_kind: str | None = None
    error_message: str | None = None
    attempts: int = 0
    maybe_paid: int = 0
    paid: int = 0
    created_at: datetime | None = None


RESULT_SCHEMA = delivery_schema(
    pa.field("key", KEY_TYPE),
    pa.field("status", pa.string()),
    pa.field("error_kind", pa.string()),
    pa.field("error_message", pa.string()),
    "cost_usd",
    pa.field("attempts", pa.int32()),
    pa.field("maybe_paid", pa.int32()),
    pa.field("paid", pa.int32()),
    "latency_s",
    "request_id",
    "endpoint",
    "http_status",
    "applied",
    pa.field("created_at", pa.timestamp("us", tz="UTC")),
    *IMAGE_COLUMNS,
)
"""One row per request of a shard, as `runs/<run_id>/results/part-<shard>.parquet` holds it."""
_OWN = tuple(name for name in RESULT_SCHEMA.names if name not in DELIVERY_COLUMNS)


def results_table(results: list[RequestResult]) -> pa.Table:
    """Results as a table of `RESULT_SCHEMA`."""
    columns = delivery_values(results) | {name: [getattr(result, name) for result in results] for name in _OWN}
    return pa.table(columns, schema=RESULT_SCHEMA)


def results_of(table: pa.Table) -> dict[bytes, RequestResult]:
    """The results of a table of `RESULT_SCHEMA`, by request key; columns that an older version lacked are unknown."""
    rows = table.to_pylist()
    return {row["key"]: RequestResult(**{name: row[name] for name in _OWN} | facts_in(row)) for row in rows}
