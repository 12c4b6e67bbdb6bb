"""The metadata table: one row per manifest row, with these columns first and the manifest's columns after them.

A column of deliveries is declared and explained in `core.ledger.events.DeliveryFacts`; here it is placed by its name.
"""

import pyarrow as pa

from prefect_imagegen.core.ledger.delivery_columns import MEANINGS, metadata_schema

_COLUMNS: tuple[tuple[str, pa.DataType, str] | str, ...] = (
    ("row_index", pa.int64(), "position in the manifest, from 0"),
    ("id", pa.string(), "the value of `--id-column`, as text; null without one"),
    ("request_key", pa.string(), "identity of the request, 32 hex digits; null for an invalid row"),
    ("status", pa.string(), "generated, reused, invalid, failed, held or not_run"),
    ("error_kind", pa.string(), "why there is no image (see the table of errors)"),
    ("error_message", pa.string(), "the reason in words"),
    "image_path",
    "width",
    "height",
    "format",
    "size_bytes",
    "sha256",
    "flags",
    ("prompt", pa.string(), "as sent"),
    ("seed", pa.int64(), "as sent: the row's, or derived from the row"),
    ("model", pa.string(), "slug of the model"),
    ("backend", pa.string(), "segmind, pool or sandbox"),
    "endpoint",
    ("sandbox", pa.bool_(), "whether a placeholder engine drew it"),
    ("requested", pa.string(), "every parameter as sent, JSON"),
    (
        "references",
        pa.list_(
            pa.struct([("uri", pa.string()), ("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32())])
        ),
        "reference images in order: where they come from, without query, and what was seen of them",
    ),
    "applied",
    "cost_usd",
    ("attempts", pa.int32(), "POSTs sent for the row in this run"),
    "latency_s",
    "request_id",
    "http_status",
    ("created_at", pa.timestamp("us", tz="UTC"), "when the image was stored"),
    ("profile", pa.string(), "how a GPU worker ran the model; null for the API"),
    ("weights", pa.string(), "label of a GPU worker's weights, if one was given"),
    ("weights_license", pa.string(), "licence of a GPU worker's weights"),
)
METADATA_SCHEMA = metadata_schema(*(item if isinstance(item, str) else pa.field(*item[:2]) for item in _COLUMNS))
_MEANINGS = {**MEANINGS, **{item[0]: item[2] for item in _COLUMNS if not isinstance(item, str)}}
COLUMN_MEANINGS: dict[str, str] = {name: _MEANINGS[name] for name in METADATA_SCHEMA.names}
"""The meaning of each column; the table of the docs is made from it."""
CLASH_PREFIX = "manifest_"

STATUSES: dict[str, str] = {
    "generated": "made, or settled, in this run",
    "reused": "was in the store already, or shares the image of an identical row; costs nothing",
    "invalid": "the row cannot be a request; nothing was called",
    "failed": "asked for and not delivered; retryable kinds are tried again by the next run",
    "held": "sent, or claimed by another run, and not settled: never bought again on a guess",
    "not_run": "not sent when the run stopped",
}
"""The states of a row, and what each means."""


def carried_name(column: str) -> str:
    """The metadata name of a manifest column: its own, or prefixed where ours has that name."""
    while column in COLUMN_MEANINGS:
        column = CLASH_PREFIX + column
    return column
