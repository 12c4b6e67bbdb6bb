"""The plan of a run: what has to be done for each manifest row. Pure; windows of rows in, tables out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.core.ledger.fold import KEY_TYPE
from prefect_imagegen.core.ledger.keyed_table import KeyedTable, sorted_by_key
from prefect_imagegen.core.policy.forecast import Forecast
from prefect_imagegen.core.request.validate import RowError
from prefect_imagegen.core.tally import Tally

PLAN_SCHEMA = pa.schema(
    [
        ("row_index", pa.int64()),
        ("state", pa.string()),
        ("shard", pa.int32()),
        ("id", pa.string()),
        ("request_key", KEY_TYPE),
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("request", pa.string()),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
    ]
)
"""The columns of a plan's parts; the carried manifest columns come after them, as `c_<position>`.

state: new, done, identical, invalid, busy (the host of a reference was busy; nothing is known to be wrong), failed, or
unsettled (an earlier run left the row without an end). shard: the shard that makes the row's image; for an identical
row, that of the first such row.
"""
STATES = ("new", "done", "identical", "invalid", "busy", "failed", "unsettled")
WORKED = frozenset({"new", "unsettled"})
SHOWN_ERRORS = 20


class KeySeen:
    """The keys of earlier rows with one number each, in 20 bytes a key; looked up for a window of rows at a time."""

    def __init__(self, number: pa.DataType | None = None) -> None:
        self._schema = pa.schema([("key", KEY_TYPE), ("number", number or pa.int32())])
        self._rows = KeyedTable(self._schema, sorted_by_key)

    def numbers(self, keys: pa.Array) -> list[int | None]:
        """The number that was added with each key; None for a new key and for null."""
        before = self._rows.of(keys.drop_null())
        positions = pc.index_in(keys, before["key"].combine_chunks(), skip_nulls=True)
        return list(before["number"].take(positions).to_pylist())

    def add(self, keys: pa.Array, numbers: pa.Array) -> None:
        """Add new keys with their numbers."""
        self._rows.add(pa.table([keys, numbers], schema=self._schema))


@dataclass(slots=True)
class PlanSummary:
    """The summary of a plan. `errors` holds the first 20 row errors, `reasons` counts all by column and reason.

    Reasons and warnings that differ only in a value are counted together from the sixth on.
    """

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    models: Counter[str] = field(default_factory=Counter)
    to_make_by_class: Counter[str] = field(default_factory=Counter)
    """The number of images to make, by cost class."""
    forecast: Forecast = field(default_factory=Forecast)
    warnings: Counter[str] = field(default_factory=Tally)
    errors: list[RowError] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Tally)
    carried: dict[str, str] = field(default_factory=dict)
    unsettled_shards: list[int] = field(default_factory=list)
    """Shards with rows that an earlier run left without an end; they are worked on first."""

    @property
    def to_make(self) -> int:
        """The number of images to make."""
        return self.counts["new"] + self.counts["unsettled"]

    def note(self, error: RowError) -> None:
        """Count a row error."""
        if len(self.errors) < SHOWN_ERRORS:
            self.errors.append(error)
        self.reasons[f"{error.column}: {error.reason}"] += 1

    def as_dict(self) -> dict[str, Any]:
        """The summary as a dict for JSON."""
        return {
            "rows": self.rows,
            "counts": {state: self.counts[state] for state in STATES},
            "shards": self.shards,
            "unsettled_shards": self.unsettled_shards,
            "models": dict(self.models),
            "forecast": self.forecast.as_dict(),
            "warnings": dict(self.warnings),
            "errors": [str(error) for error in self.errors],
            "reasons": dict(self.reasons),
        }


class Sharder:
    """Assigns rows to shards of `size` rows; the last shard before `close_shard` may be shorter."""

    def __init__(self, size: int) -> None:
        self.shards = 0
        self._size = size
        self._filled = 0

    def next(self) -> int:
        """The shard of the next row to be made."""
        if self._filled in {0, self._size}:
            self.shards += 1
            self._filled = 0
        self._filled += 1
        return self.shards - 1

    def close_shard(self) -> None:
        """Begin a new shard with the next row, so that no shard spans two parts."""
        self._filled = 0
