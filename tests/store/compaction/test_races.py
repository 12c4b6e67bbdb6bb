"""Compaction while others read, write, die or compact at the same time."""

import asyncio
import json
import os

import pyarrow as pa
import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.fold import KEY_TYPE
from prefect_imagegen.store.ledger import compaction
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.files import ledger_files
from prefect_imagegen.store.ledger.reading import load_ledger
from prefect_imagegen.store.object_store import open_object_store
from tests.store.compaction.conftest import (
    CLOCK,
    event,
    fill,
    key_of,
    paths,
    said,
    write,
)
from tests.support import warm_python

pytestmark = pytest.mark.anyio


async def test_one_of_many_compactors_wins(timed_store) -> None:
    """Of compactors at once one wins; the others take their files away again and say so."""
    await fill(timed_store, 6)
    before = await said(timed_store)

    async def meanwhile(call: str, path: str) -> None:
        await asyncio.sleep(0)

    timed_store.before = meanwhile
    results = await asyncio.gather(*(compact(timed_store, CLOCK, more_than=1) for _ in range(4)))
    assert sum(results) == 1
    manifest = json.loads(timed_store.objects["ledger/generations/1.json"][0])
    assert paths(timed_store, "ledger/generations/1") == manifest["files"]
    assert await said(timed_store) == before


async def test_an_own_manifest_sent_twice_is_won(timed_store) -> None:
    """A manifest whose put was sent again by the client library meets itself, and counts as written."""
    await fill(timed_store, 2)
    create = timed_store.create

    async def twice(path: str, data: bytes, content_type: str = "") -> bool:
        await create(path, data)
        return await create(path, data)

    timed_store.create = twice
    assert await compact(timed_store, CLOCK, more_than=1) is True
    assert len(paths(timed_store, "ledger/generations/1")) == 1


async def test_a_writer_meanwhile_loses_nothing(timed_store) -> None:
    """A segment that is written while others are being absorbed counts, before and after."""
    await fill(timed_store, 3)

    async def meanwhile(call: str, path: str) -> None:
        if call == "create" and path == "ledger/generations/1.json":
            timed_store.before = nothing
            await write(timed_store, "late", event("delivered", key_of(4_000)))

    async def nothing(call: str, path: str) -> None:
        """Nothing more happens."""

    timed_store.before = meanwhile
    await compact(timed_store, CLOCK, more_than=1)
    files = await ledger_files(timed_store)
    assert (files.number, files.open_segments) == (1, [layout.segment("late")])
    assert (await load_ledger(timed_store)).states(pa.array([key_of(4_000)], KEY_TYPE)).to_pylist() == ["delivered"]


@pytest.mark.parametrize("nth", range(7))
async def test_a_reader_sees_every_event_through_a_compaction(timed_store, nth) -> None:
    """A reader that sleeps for days between any two of its calls, and finds its files gone, still sees every event."""
    await fill(timed_store, 3)
    await compact(timed_store, CLOCK, more_than=1)
    await fill(timed_store, 3, start=3)
    expected, calls = await said(timed_store), 0

    async def nothing(call: str, path: str) -> None:
        """The compactors' calls go through."""

    async def sleeping(call: str, path: str) -> None:
        nonlocal calls
        calls += 1
        if calls == nth + 1:
            timed_store.before = nothing
            await compact(timed_store, CLOCK, more_than=1)
            timed_store.later(25)
            await compact(timed_store, CLOCK, more_than=1)
            assert paths(timed_store, layout.SEGMENTS) == []
            assert list((await ledger_files(timed_store)).manifests) == [2]

    timed_store.before = sleeping
    assert await said(timed_store) == expected
    assert calls > nth


@pytest.mark.parametrize("lost", ["generation file", "segment"])
async def test_what_is_really_missing_is_named(timed_store, lost) -> None:
    """A file that no compaction took away is missing: an error that names it, not a smaller ledger."""
    await fill(timed_store, 3)
    await compact(timed_store, CLOCK, more_than=1)
    await fill(timed_store, 1, start=3)
    path = paths(timed_store, "ledger/generations/1")[0] if lost == "generation file" else layout.segment("s0003")

    get = timed_store.get

    async def blind(name: str) -> bytes | None:
        return None if name == path else await get(name)

    timed_store.get = blind
    for look in (load_ledger(timed_store), compact(timed_store, CLOCK, more_than=0)):
        with pytest.raises(StoreError, match=path) as raised:
            await look
        assert raised.value.kind == "store_damaged"
        assert raised.value.remedy


async def test_a_crash_before_the_manifest_changes_nothing(timed_store, monkeypatch) -> None:
    """Who dies between writing the files and the manifest leaves the ledger as it was, and files that go a day later.

    The next compaction makes the same generation.
    """
    await fill(timed_store, 4)
    before = await said(timed_store)

    class DeadError(BaseException):
        pass

    def die(point: str) -> None:
        raise DeadError(point)

    with monkeypatch.context() as patched:
        patched.setattr(compaction, "hit", die)
        with pytest.raises(DeadError, match="compaction"):
            await compact(timed_store, CLOCK, more_than=1)
    (orphan,) = paths(timed_store, layout.GENERATIONS)
    assert await said(timed_store) == before
    assert await compact(timed_store, CLOCK, more_than=1) is True
    await fill(timed_store, 2, start=4)
    assert await compact(timed_store, CLOCK, more_than=1) is True
    assert orphan in timed_store.objects
    timed_store.later(25)
    await compact(timed_store, CLOCK)
    assert orphan not in timed_store.objects


def test_a_killed_compactor_changes_nothing(tmp_path) -> None:
    """A process that is killed at the crash point `compaction` has written files, and no manifest."""
    store = open_object_store(str(tmp_path))
    asyncio.run(fill(store, 4))
    before = asyncio.run(said(store))
    script = (
        "import asyncio, sys\n"
        "from datetime import UTC, datetime\n"
        "from types import SimpleNamespace\n"
        "from prefect_imagegen.store.ledger.compaction import compact\n"
        "from prefect_imagegen.store.object_store import open_object_store\n"
        "clock = SimpleNamespace(now=lambda: datetime.now(UTC))\n"
        "asyncio.run(compact(open_object_store(sys.argv[1]), clock, more_than=1))\n"
    )
    deadly = os.environ | {"PREFECT_IMAGEGEN_CRASH_AT": "compaction"}
    killed = warm_python.run("-c", script, tmp_path, env=deadly)
    assert killed.returncode == -9
    assert len(list(tmp_path.glob("ledger/generations/1/*.parquet"))) == 1
    assert not list(tmp_path.glob("ledger/generations/*.json"))
    assert asyncio.run(said(store)) == before
    assert warm_python.run("-c", script, tmp_path).returncode == 0
    assert list(tmp_path.glob("ledger/generations/*.json"))
    assert asyncio.run(said(store)) == before
    store.close()
