"""What planning, opening, executing, finishing and compacting touch grows as the rows do: counted, not timed."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import prefect_imagegen
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.plan import Planner
from prefect_imagegen.app.planning.stored_plan import StoredPlan
from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger import deliveries
from prefect_imagegen.core.ledger import fold as ledger
from prefect_imagegen.core.ledger import keyed_table as keyed
from prefect_imagegen.core.ledger.events import Event, ImageFacts
from prefect_imagegen.core.ledger.fold import LedgerView, events_table, fold
from prefect_imagegen.core.plan import KeySeen
from prefect_imagegen.core.request.manifest import ManifestOptions
from prefect_imagegen.inputs.manifests import manifest as manifests
from prefect_imagegen.inputs.manifests.manifest import Manifest
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.ledger import compaction
from prefect_imagegen.store.ledger.files import to_parquet
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.object_store import open_object_store
from prefect_imagegen.store.store_kind import claim_kind

TIMES = 8
MOST = TIMES * 1.5
"""Eight times the rows may touch that many times as much: n log n, and no more."""
WINDOW = 128
TIME = datetime(2026, 11, 1, tzinfo=UTC)


class Touched:
    """Counts the rows that are hashed, compared or put in order."""

    rows = 0


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> Touched:
    """Counts every row that a look-up hashes, and every one that a sorted run is made of."""
    counter = Touched()

    def counting(lookup: Callable[..., Any]) -> Callable[..., Any]:
        def counted(values: Any, value_set: Any, **options: Any) -> Any:
            counter.rows += len(values) + len(value_set)
            return lookup(values, value_set, **options)

        return counted

    for name in ("is_in", "index_in"):
        monkeypatch.setattr(pc, name, counting(getattr(pc, name)))

    class CountedRun(keyed.SortedRun):
        def __init__(self, table: pa.Table) -> None:
            counter.rows += len(table)
            super().__init__(table)

    monkeypatch.setattr(keyed, "SortedRun", CountedRun)
    return counter


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are many windows, parts and runs."""
    monkeypatch.setattr(manifests, "WINDOW_ROWS", WINDOW)
    monkeypatch.setattr(ledger, "_GATHERED_ROWS", WINDOW)
    monkeypatch.setattr(deliveries, "_ROWS_AT_ONCE", 8 * WINDOW)


def spread(number: int) -> bytes:
    """A key whose first bytes are spread evenly, as those of a hash are."""
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") * 2


def finished(keys: list[bytes]) -> pa.Table:
    """The events of calls that led to an image."""
    events = []
    for key in keys:
        name = key.hex()
        facts = ImageFacts(layout.image(name, "png"), 64, 64, "png", 1_000, name * 2)
        sent = Event("submitted", key, f"{name}-1", "run0", TIME, request_id=f"id-{name}")
        events += [sent, replace(sent, type="delivered", image=facts, cost_usd=0.04)]
    return events_table(events)


async def fill(folder: Path, path: Path) -> None:
    """A store that has every image of a manifest."""
    planner = Planner(Manifest(str(path)), ManifestOptions(), LedgerView.empty(), shard_size=8)
    keys = [key for table in planner.windows() for key in table["request_key"].to_pylist()]
    store = open_object_store(str(folder))
    await claim_kind(store, "sandbox")
    for start in range(0, len(keys), 1_000):
        await store.put(layout.segment(f"{start:08d}"), to_parquet(finished(keys[start : start + 1_000])))
    store.close()


def run_with_nothing_to_do(folder: Path, rows: int, touched: Touched) -> int:
    folder.mkdir()
    pq.write_table(pa.table({"prompt": [f"number {n}" for n in range(rows)]}), folder / "manifest.parquet")
    asyncio.run(fill(folder / "store", folder / "manifest.parquet"))
    before = touched.rows
    result = prefect_imagegen.generate(
        str(folder / "manifest.parquet"), StoreSettings(str(folder / "store")), backend=ProviderSettings("sandbox")
    )
    assert (result.reused, result.calls) == (rows, 0)
    paths = [f"images/{key[:2]}/{key}.png" for key in keys_in(folder / "store", str(result.run_id))]
    assert image_paths(folder / "store", str(result.run_id)) == paths
    return touched.rows - before


def keys_in(store: Path, run_id: str) -> list[str]:
    keys: list[str] = pq.read_table(store / "runs" / run_id / "metadata")["request_key"].to_pylist()
    return keys


def image_paths(store: Path, run_id: str) -> list[str]:
    paths: list[str] = pq.read_table(store / "runs" / run_id / "metadata")["image_path"].to_pylist()
    return paths


def test_a_run_touches_in_proportion_to_its_rows(tmp_path: Path, touched: Touched) -> None:
    """Eight times the rows, all of them done: planning, opening and finishing touch eight times as many rows."""
    few = run_with_nothing_to_do(tmp_path / "few", 1_024, touched)
    many = run_with_nothing_to_do(tmp_path / "many", TIMES * 1_024, touched)
    assert many < MOST * few


def test_keys_seen_are_looked_up_in_proportion(touched: Touched) -> None:
    """Finding identical rows touches eight times as many keys in a manifest of eight times the windows."""

    def plan(windows: int, size: int = 16) -> int:
        key_numbers, before = KeySeen(), touched.rows
        for start in range(0, windows * size, size):
            keys = pa.array([spread(number) for number in range(start, start + size)], pa.binary(16))
            assert key_numbers.numbers(keys) == [None] * size
            key_numbers.add(keys, pa.array(range(size), pa.int32()))
        last = pa.array([spread(0), None, spread(windows * size)], pa.binary(16))
        assert key_numbers.numbers(last) == [0, None, None]
        return touched.rows - before

    assert plan(TIMES * 256) < MOST * plan(256)


@pytest.mark.parametrize("flushed", [False, True])
def test_a_question_about_one_key_touches_few_rows(tmp_path: Path, touched: Touched, flushed: bool) -> None:
    """Each row of an execution asks the ledger: that costs the same however many attempts the ledger has.

    Also of those that were recorded since it was read.
    """

    async def ask(attempts: int) -> int:
        keys = [spread(number) for number in range(attempts)]
        view = LedgerView.empty() if flushed else fold([finished(keys)])
        book = StoreLedger(
            open_object_store(str(tmp_path / f"{attempts}")), view, run_id="r", nonce="n", clock=SystemClock()
        )
        if flushed:
            for key in keys:
                await book.record(Event("submitted", key, f"{key.hex()}-1", "r", TIME, request_id="id"))
        await book.flush()
        await book.known(keys[0])  # the course of what has no image is put together once
        before = touched.rows
        for key in keys[:: len(keys) // 64]:
            assert (book.is_open(key), book.is_finished(key)) == (False, not flushed)
            assert book.next_attempt(key) == (1 if flushed else 2)
            (known,) = await book.known(key)
            assert known.is_delivered is not flushed
        return touched.rows - before

    asyncio.run(ask(64))
    assert asyncio.run(ask(TIMES * 512)) <= 2 * asyncio.run(ask(512))


def test_what_a_run_records_is_looked_up_in_proportion(tmp_path: Path, touched: Touched) -> None:
    """A run that asks after each flush touches in proportion to what it has recorded, not to that for each flush.

    Each merge of what it recorded asks which keys have images by now, so the logarithm counts twice: three times, here.
    """

    async def record(count: int) -> int:
        store = open_object_store(str(tmp_path / f"{count}"))
        book = StoreLedger(store, LedgerView.empty(), run_id="r", nonce="n", clock=SystemClock())
        before = touched.rows
        for start in range(0, count, 4):
            for key in map(spread, range(start, start + 4)):
                await book.record(Event("submitted", key, f"{key.hex()}-1", "r", TIME, request_id=key.hex()))
            await book.flush()
            (known,) = await book.known(spread(start))
            assert known.request_id == spread(start).hex()
            assert book.is_closed(f"{spread(start).hex()}-1") is False
        return touched.rows - before

    assert asyncio.run(record(TIMES * 128)) < 3 * TIMES * asyncio.run(record(128))


def test_compaction_looks_into_few_runs_for_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times the events: eight times the looks into sorted runs."""
    for name in ("_FILE_ROWS", "_FAN_OUT"):
        monkeypatch.setattr(compaction, name, 8)
    looks = 0
    between = compaction._between

    def counted(run: pa.Table, low: int, high: int) -> pa.Table:
        nonlocal looks
        looks += 1
        return between(run, low, high)

    monkeypatch.setattr(compaction, "_between", counted)

    def merge(count: int) -> int:
        keys, before = [spread(number) for number in range(count)], looks
        events = finished(keys)
        runs = [events.slice(start, 8).sort_by("key") for start in range(0, len(events), 8)]
        events = pa.concat_tables(compaction.merged(runs))
        assert events["key"].to_pylist() == sorted([*keys, *keys])
        return looks - before

    assert merge(TIMES * 512) < MOST * merge(512)


class CountedPart(dict[str, Any]):
    """A part of a plan that counts how often somebody looks at it."""

    looks = 0

    def __getitem__(self, name: str) -> Any:
        CountedPart.looks += 1
        return super().__getitem__(name)


def test_a_shard_finds_its_part_in_few_looks(tmp_path: Path) -> None:
    """The shards of eight times the parts look at parts eight times as often; parts without shards are passed over."""
    store = open_object_store(str(tmp_path))
    plan = pa.table(
        {
            "row_index": [0, 1],
            "state": ["new", "new"],
            "shard": [0, 0],
            "request_key": pa.array([spread(0), spread(1)], pa.binary(16)),
            "request": ['{"model":"m","params":{},"references":[],"profile":null,"weights":null}'] * 2,
        }
    )

    async def looks(count: int) -> int:
        parts = []
        for number in range(count):
            path = f"plan/{number}.parquet"
            sink = pa.BufferOutputStream()
            pq.write_table(plan.set_column(2, "shard", pa.array([number, number])), sink)
            await store.put(path, sink.getvalue().to_pybytes())
            parts += [
                CountedPart(path=path, first_shard=number, shards=1),
                CountedPart(path="none", first_shard=number + 1, shards=0),
            ]
        written = StoredPlan(
            store, {"parts": parts, "shards": count, "rows": 2 * count, "unsettled_shards": [], "carried": {}}
        )
        before = CountedPart.looks
        for number in range(count):
            assert [row.key for row in await written.shard(number)] == [spread(0), spread(1)]
        return CountedPart.looks - before

    assert asyncio.run(looks(TIMES * 64)) < MOST * asyncio.run(looks(64))
