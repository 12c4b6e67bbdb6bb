"""Manifests planned against a store in memory."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from prefect_imagegen.app.planning.plan import Planner
from prefect_imagegen.core.ledger.events import Event
from prefect_imagegen.core.ledger.fold import LedgerView, events_table, fold
from prefect_imagegen.core.request.manifest import ManifestOptions
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.inputs.manifests.manifest import Manifest

NOW = datetime(2026, 8, 1, tzinfo=UTC)
MODEL = "flux-2-klein-9b"
EMPTY = LedgerView.empty()


def write(folder, *tables) -> Manifest:
    """A manifest of several files: each of them is a window of its own."""
    for n, table in enumerate(tables):
        pq.write_table(pa.table(table), folder / f"{n}.parquet")
    return Manifest(str(folder))


def planner(manifest, ledger=EMPTY, *, shard_size=2, limit=None, **options) -> Planner:
    return Planner(manifest, ManifestOptions(**options), ledger, shard_size=shard_size, limit=limit)


def plan(manifest, ledger=EMPTY, **options):
    """All rows of a plan, and its summary."""
    chosen = planner(manifest, ledger, **options)
    return [row for table in chosen.windows() for row in table.to_pylist()], chosen.summary


def states(rows) -> list[str]:
    return [row["state"] for row in rows]


def ledger_of(**kinds) -> LedgerView:
    """A ledger in which the prompt has ended so: type of event, or (failed, kind, message)."""
    events = []
    for prompt, kind in kinds.items():
        key = GenerationRequest(MODEL, {"prompt": prompt, "seed": 7}).key
        name, error_kind, message = kind if isinstance(kind, tuple) else (kind, None, None)
        events.append(Event(name, key, f"attempt {prompt}", "r", NOW, error_kind=error_kind, error_message=message))
    return fold([events_table(events)])


CELLS = {
    pa.string(): st.text(max_size=20),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.binary(): st.binary(max_size=8),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.datetimes(),
    pa.list_(pa.string()): st.lists(st.none() | st.text(max_size=8), max_size=3),
    pa.list_(pa.int64()): st.lists(st.integers(0, 9), max_size=3),
    pa.struct([("a", pa.string())]): st.fixed_dictionaries({"a": st.text(max_size=4)}),
    pa.decimal128(9, 2): st.decimals(-1000, 1000, places=2),
}
NAMES = st.sampled_from(
    ["prompt", "model", "seed", "image_urls", "negative_prompt", "cfg", "steps", "go_fast", "quality", "aspect_ratio"]
) | st.text(max_size=6)


@st.composite
def tables(draw) -> pa.Table:
    """Any table: known and unknown columns of any type, with nulls, of no or some rows."""
    count = draw(st.integers(0, 4))
    columns = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        kind = draw(st.sampled_from(list(CELLS)))
        values = draw(st.lists(st.none() | CELLS[kind], min_size=count, max_size=count))
        columns[name] = pa.array(values, kind)
    return pa.table(columns)
