"""Compaction: segments become a generation, and nothing of what the ledger says changes."""

import json
import secrets

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import RETRY_ASKED
from prefect_imagegen.core.ledger.fold import KEY_TYPE, LedgerView, events_table
from prefect_imagegen.store.ledger import compaction
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.files import ledger_files, to_parquet
from prefect_imagegen.store.ledger.reading import event_tables, load_ledger
from prefect_imagegen.store.object_store import open_object_store
from tests.store.compaction.conftest import (
    CLOCK,
    all_events,
    event,
    fill,
    key_of,
    said,
    write,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=pytest.mark.s3)])
def any_store(request, tmp_path):
    options = {}
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        url, options = s3.url(), s3.options
    else:
        url = str(tmp_path / "store") if request.param == "file" else f"memory://{secrets.token_hex(6)}/store"
    store = open_object_store(url, options)
    yield store
    store.close()


async def test_nothing_is_lost_and_nothing_is_doubled(any_store) -> None:
    """The ledger says the same before and after a compaction, event by event, on every kind of store."""
    await fill(any_store, 12)
    events, before = await all_events(any_store), await said(any_store)
    assert await compact(any_store, CLOCK, more_than=11) is True
    assert (await ledger_files(any_store)).open_segments == []
    assert await all_events(any_store) == events
    assert await said(any_store) == before
    await fill(any_store, 3, start=12)
    events, before = await all_events(any_store), await said(any_store)
    assert await compact(any_store, CLOCK, more_than=2) is True
    assert await all_events(any_store) == events
    assert await said(any_store) == before


async def test_few_segments_stay_as_they_are(timed_store) -> None:
    """Nothing is written unless more segments are open than asked; absorbed ones do not count."""
    await fill(timed_store, 5)
    before = dict(timed_store.objects)
    assert await compact(timed_store, CLOCK, more_than=5) is False
    assert timed_store.objects == before
    assert await compact(timed_store, CLOCK, more_than=4) is True
    assert await compact(timed_store, CLOCK, more_than=4) is False
    assert "ledger/generations/2.json" not in timed_store.objects


async def test_files_are_sorted_by_key(timed_store, monkeypatch) -> None:
    """A generation is many files of about the same size, one range of keys after the other, each sorted by key."""
    monkeypatch.setattr(compaction, "_FILE_ROWS", 50)
    monkeypatch.setattr(compaction, "_RUN_ROWS", 64)
    await fill(timed_store, 40)
    events = await all_events(timed_store)
    await compact(timed_store, CLOCK, more_than=1)
    manifest = json.loads(timed_store.objects["ledger/generations/1.json"][0])
    tables = [pq.read_table(pa.BufferReader(timed_store.objects[path][0])) for path in manifest["files"]]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    assert len(tables) == round(len(events) / 50)
    assert max(map(len, tables)) < 150
    assert keys == sorted(keys)
    assert manifest["files"] == sorted(manifest["files"])
    assert manifest["absorbed"] == [f"s{n:04d}.parquet" for n in range(40)]
    assert await all_events(timed_store) == events


async def test_events_without_a_key_or_of_the_future_survive(timed_store) -> None:
    """What this version does not understand is carried along."""
    odd = events_table([event("claimed", key_of(1)), event("delivered", key_of(2))])
    odd = odd.set_column(0, "type", pa.array(["reviewed", "delivered"]))
    odd = odd.set_column(1, "key", pa.array([None, key_of(2)], KEY_TYPE))
    await timed_store.create(layout.segment("odd"), to_parquet(odd))
    await compact(timed_store, CLOCK, more_than=0)
    (table,) = [table async for table in event_tables(timed_store)]
    assert table["type"].to_pylist() == ["delivered", "reviewed"]


def whole(view: LedgerView) -> dict:
    """All that a ledger says of two keys and of calls."""
    keys = [key_of(1), key_of(2)]
    ids = [f"id-{n}" for n in range(1, 9)]

    def course_of(row: dict) -> list[str]:
        return [str(row[name]) for name in ("attempt_id", "type", "request_id", "error_kind", "account", "endpoint")]

    return {
        "states": view.states(pa.array(keys, KEY_TYPE)).to_pylist(),
        "failures": [view.failure(key) for key in keys],
        "ranks": [dict(view.ranks(key)) for key in keys],
        "courses": [sorted(map(course_of, view.course(key))) for key in keys],
        "calls": view.newest_calls(account="acc", most=99),
        "known": view.known_ids(ids),
        "among": view.calls_among(ids, run_id="run-1"),
    }


@pytest.mark.parametrize("rows", [1, 2, 50_000])
async def test_compaction_changes_nothing_of_what_is_said(timed_store, monkeypatch, rows) -> None:
    """States, failures, courses, accounts and request ids are the same before and after, in files of any size."""
    monkeypatch.setattr(compaction, "_FILE_ROWS", rows)
    monkeypatch.setattr(compaction, "_RUN_ROWS", rows)
    first_key, second_key = key_of(1), key_of(2)
    call = {"account": "acc", "endpoint": "https://api"}
    steps = [
        event("claimed", first_key, 1, account="acc"),
        event("submitted", first_key, 1, request_id="id-1", **call),
        event("failed", first_key, 1, error_kind="content_policy", request_id="id-1", **call),
        event("failed", first_key, 1, error_kind=RETRY_ASKED),
        event("submitted", first_key, 2, request_id="id-2"),
        event("failed", second_key, 10, error_kind="unsent"),
        event("failed", second_key, 9, error_kind="server_error", request_id="id-9"),
        event("submitted", second_key, 9, request_id="id-3", **call),
    ]
    for n, step in enumerate(steps):
        await write(timed_store, f"{n}", step)
    before = whole(await load_ledger(timed_store))
    assert await compact(timed_store, CLOCK, more_than=0)
    assert whole(await load_ledger(timed_store)) == before
    assert before["states"] == ["open", "failed"]
    assert before["failures"] == [(RETRY_ASKED, ""), ("unsent", "")]
    assert before["known"] == {"id-1", "id-2", "id-3"}
    assert before["calls"][0][0] == "id-3"


async def test_a_store_from_before_accounts_is_compacted(timed_store) -> None:
    """Segments and generations without the column `account` are read and compacted; their accounts are null."""
    for n in (1, 2):
        old = events_table([event("submitted", key_of(n), 1, request_id=f"id-{n}")]).drop_columns(["account"])
        assert await timed_store.create(layout.segment(f"old-{n}"), to_parquet(old))
        assert await compact(timed_store, CLOCK, more_than=0)
    await write(timed_store, "new", event("submitted", key_of(2), 2, request_id="id-3", account="acc"))
    assert await compact(timed_store, CLOCK, more_than=0)
    view = await load_ledger(timed_store)
    assert [name for name, _ in view.newest_calls(account="acc")] == ["id-3"]
    assert view.known_ids(["id-1", "id-2", "id-3"]) == {"id-1", "id-2", "id-3"}
    assert [row["account"] for row in view.course(key_of(1))] == [None]
