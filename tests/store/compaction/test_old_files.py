"""Compaction: replaced files go after a day of the store's own time, and nothing else."""

import asyncio
import json
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.store.ledger import compaction
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.files import ledger_files
from prefect_imagegen.store.ledger.ledger import StoreLedger
from tests.store.compaction.conftest import (
    CLAIM,
    CLOCK,
    all_events,
    fill,
    key_of,
    paths,
    said,
)

pytestmark = pytest.mark.anyio


async def test_what_was_replaced_goes_after_a_day_of_the_stores_time(timed_store) -> None:
    """Absorbed segments and older generations stay for 24 hours, by the store's clock and no other, and then go."""
    await fill(timed_store, 4)
    await compact(timed_store, CLOCK, more_than=1)
    timed_store.later(20)
    await fill(timed_store, 2, start=4)
    await compact(timed_store, CLOCK, more_than=1)
    expected = await said(timed_store)
    assert len(paths(timed_store, layout.SEGMENTS)) == 6
    timed_store.later(3.9)
    await compact(timed_store, CLOCK)
    assert len(paths(timed_store, layout.SEGMENTS)) == 6
    timed_store.later(0.2)
    await compact(timed_store, CLOCK)
    assert paths(timed_store, layout.SEGMENTS) == [layout.segment("s0004"), layout.segment("s0005")]
    assert "ledger/generations/1.json" in timed_store.objects
    timed_store.later(20)
    await compact(timed_store, CLOCK)
    assert paths(timed_store, layout.SEGMENTS) == []
    assert sorted(map(layout.generation_of, paths(timed_store, layout.GENERATIONS))) == [0, 2]
    assert await said(timed_store) == expected


async def test_a_generation_remembers_what_is_still_there(timed_store) -> None:
    """A generation names the segments of former ones that are not deleted yet, and forgets those that are."""
    await fill(timed_store, 2)
    await compact(timed_store, CLOCK, more_than=1)
    await fill(timed_store, 2, start=2)
    await compact(timed_store, CLOCK, more_than=1)
    assert len((await ledger_files(timed_store)).generation.absorbed) == 4
    timed_store.later(25)
    await compact(timed_store, CLOCK)
    await fill(timed_store, 2, start=4)
    await compact(timed_store, CLOCK, more_than=1)
    assert (await ledger_files(timed_store)).generation.absorbed == {"s0004.parquet", "s0005.parquet"}


async def test_a_store_without_times_loses_nothing(timed_store) -> None:
    """Where the store tells no times, nothing is ever deleted."""
    timed_store.tells_time = False
    await fill(timed_store, 2)
    await StoreLedger(timed_store, LedgerView.empty(), run_id="r", nonce="n", clock=CLOCK).claim(key_of(1), 1, CLAIM)
    for start in (2, 4):
        await compact(timed_store, CLOCK, more_than=1)
        timed_store.later(100)
        await fill(timed_store, 2, start=start)
    assert len(paths(timed_store, layout.SEGMENTS)) == 6
    assert len(paths(timed_store, layout.CLAIMS)) == 1


async def test_files_of_others_stay(timed_store) -> None:
    """What compaction did not write is left alone, also among the generations."""
    await timed_store.put("ledger/generations/notes/read.me", b"hello")
    await timed_store.put("ledger/generations/later.json", b"hello")
    for start in (0, 2):
        await fill(timed_store, 2, start=start)
        await compact(timed_store, CLOCK, more_than=1)
        timed_store.later(25)
    await compact(timed_store, CLOCK)
    assert "ledger/generations/notes/read.me" in timed_store.objects
    assert "ledger/generations/later.json" in timed_store.objects


class Model:
    """What has to lie in the ledger's folders: all that was written, less what a day-old generation replaced."""

    def __init__(self, store) -> None:
        self.store = store
        self.remaining: set[str] = set()
        self.made: list[tuple[datetime, set[str]]] = []
        """When each generation was made, and the segments that it absorbed."""
        self.events: list[dict] = []
        self.segments = 0

    async def write(self) -> None:
        await fill(self.store, 1, start=self.segments)
        self.remaining.add(layout.segment(f"s{self.segments:04d}"))
        self.segments += 1
        self.events = await all_events(self.store)

    async def crash(self) -> None:
        """A compactor dies between its files and its manifest."""

        def die(point: str) -> None:
            raise RuntimeError(point)

        with pytest.MonkeyPatch.context() as patched, suppress(RuntimeError):
            patched.setattr(compaction, "hit", die)
            await compact(self.store, CLOCK, more_than=0)
            # Nothing was open, so that nobody died, and what is old is gone.
            self._forget()
        files = paths(self.store, layout.GENERATIONS)
        self.remaining |= {path for path in files if layout.generation_of(path) > len(self.made)}

    async def compact(self) -> None:
        is_new = bool(segments_of(self.remaining) - set().union(*(segments for _, segments in self.made)))
        assert await compact(self.store, CLOCK, more_than=0) is is_new
        if is_new:
            self.made.append((self.store.now, segments_of(self.remaining)))
            manifest = layout.generation(len(self.made))
            self.remaining |= {manifest, *json.loads(self.store.objects[manifest][0])["files"]}
        self._forget()

    def _forget(self) -> None:
        moment = self.store.now - timedelta(hours=24)
        newest = max((n for n, (at, _) in enumerate(self.made, 1) if at < moment), default=0)
        absorbed = self.made[newest - 1][1] if newest else set()
        self.remaining = {path for path in self.remaining if path not in absorbed and not 0 < number_of(path) < newest}


def test_exactly_what_was_replaced_goes(timed_store) -> None:
    """All events stay, and what goes is what a generation of over a day ago replaced, whoever writes and dies when."""

    async def run(steps: list[tuple[str, float]]) -> None:
        store = type(timed_store)()
        model = Model(store)
        for step, hours in steps:
            if step == "wait":
                store.later(hours)
            else:
                await getattr(model, step)()
            assert {*paths(store, layout.SEGMENTS), *paths(store, layout.GENERATIONS)} == model.remaining
            assert await all_events(store) == model.events

    steps = st.tuples(st.sampled_from(["write", "compact", "wait", "crash"]), st.sampled_from([1.0, 12.5, 25.0]))

    @settings(max_examples=60)
    @given(st.lists(steps, max_size=12))
    @example([("write", 0), ("compact", 0), ("write", 0), ("compact", 0), ("wait", 25.0), ("compact", 0)])
    @example([("write", 0), ("crash", 0), ("compact", 0), ("write", 0), ("compact", 0), ("wait", 25.0), ("compact", 0)])
    def check(given_steps: list[tuple[str, float]]) -> None:
        asyncio.run(run(given_steps))

    check()


def segments_of(all_paths: set[str]) -> set[str]:
    return {path for path in all_paths if path.startswith(f"{layout.SEGMENTS}/")}


def number_of(path: str) -> int:
    """The generation that a manifest or a file belongs to; 0 for others."""
    if not path.startswith(f"{layout.GENERATIONS}/"):
        return 0
    return int(path.split("/")[2].removesuffix(".json"))
