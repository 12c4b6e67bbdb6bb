"""Compaction: claims go when nobody can need them, and what they said stays."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import RANK, Claim
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger
from tests.store.compaction.conftest import (
    CLAIM,
    CLOCK,
    TYPES,
    event,
    fill,
    key_of,
    paths,
    write,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("claims", "steps", "open_steps", "hours", "stays"),
    [
        pytest.param([1], ["1 delivered"], [], 25, False, id="delivered"),
        pytest.param([1, 2], ["1 failed", "2 delivered"], [], 25, False, id="delivered at last"),
        pytest.param([1], ["1 delivered"], [], 23, True, id="young"),
        pytest.param([1], ["1 submitted"], [], 25, True, id="open"),
        pytest.param([1, 2], ["1 submitted", "2 delivered"], [], 25, True, id="an open attempt beside"),
        pytest.param([2], ["1 submitted", "2 delivered"], [], 25, True, id="an open attempt whose claim is not listed"),
        pytest.param([1, 2], ["1 delivered"], [], 25, True, id="a claim that the ledger does not know"),
        pytest.param([1], ["1 failed"], [], 25, True, id="failed: will be asked for again"),
        pytest.param([1], ["1 delivered", "1 quarantined"], [], 25, True, id="quarantined: will be asked for again"),
        pytest.param([1], [], [], 25, True, id="unknown"),
        pytest.param([1], ["1 claimed"], ["1 delivered"], 25, True, id="closed outside the generation only"),
    ],
)
async def test_claims_go_when_nobody_can_need_them(timed_store, claims, steps, open_steps, hours, stays) -> None:
    """Claims go a day later, once the generation knows the key to be delivered and all its attempts to have ended."""
    key = key_of(500)
    book = StoreLedger(timed_store, LedgerView.empty(), run_id="r", nonce="n", clock=CLOCK)
    for n in claims:
        await book.claim(key, n, CLAIM)
        await book.record_request_id(key, n, f"id-{n}")
    timed_store.later(hours)
    for n, text in enumerate(steps):
        await write(timed_store, f"a{n}", event(text.split()[1], key, int(text[0])))
    await fill(timed_store, 1)

    async def meanwhile(call: str, path: str) -> None:
        if open_steps and path == "ledger/generations/1.json":
            await write(timed_store, "b", event(open_steps.pop().split()[1], key, 1))

    timed_store.before = meanwhile
    await compact(timed_store, CLOCK, more_than=0)
    assert len(paths(timed_store, layout.CLAIMS)) == (2 * len(claims) if stays else 0)


def test_exactly_the_needless_claims_go(timed_store) -> None:
    """A key's claims go, all or none, if it is delivered, all its attempts have ended, and all objects are old."""
    numbers = st.integers(1, 3)
    ends = st.dictionaries(st.one_of(numbers, st.sampled_from(["x", "0", "007"])), st.sampled_from(TYPES), max_size=4)
    hours = st.sampled_from([1, 23, 25, 99])
    claims = st.dictionaries(numbers, st.tuples(hours, st.none() | hours), max_size=3)

    async def run(keys: list[tuple[dict, dict]]) -> None:
        store, expected = type(timed_store)(), []
        now = store.now
        for position, (attempts, claimed) in enumerate(keys):
            key = key_of(500 + 7 * position)
            objects = []
            for n, (age, id_age) in claimed.items():
                for path, hours_ago in ((layout.claim(key.hex(), n), age), (layout.claim_id(key.hex(), n), id_age)):
                    if hours_ago is not None:
                        store.now = now - timedelta(hours=hours_ago)
                        await store.create(path, b"{}")
                        objects.append((path, hours_ago))
            store.now = now
            events = [replace(event(kind, key), attempt_id=f"{key.hex()}-{n}") for n, kind in attempts.items()]
            await write(store, f"s{position}", *events)
            is_over = "delivered" in attempts.values() and not {"claimed", "submitted"} & set(attempts.values())
            if not (is_over and set(claimed) <= set(attempts) and all(age > 24 for _, age in objects)):
                expected += [path for path, _ in objects]
        await compact(store, CLOCK, more_than=0)
        assert paths(store, layout.CLAIMS) == sorted(expected)

    @given(st.lists(st.tuples(ends, claims), min_size=1, max_size=4))
    @example([({}, {})])
    @example([({1: "failed"}, {1: (25, 25)})])
    @example([({1: "delivered", "x": "claimed"}, {1: (25, 25)})])
    @example([({1: "delivered", 2: "failed"}, {1: (25, 25), 2: (25, None)})])
    def check(keys: list[tuple[dict, dict]]) -> None:
        asyncio.run(run(keys))

    check()


async def test_numbers_go_on_after_claims_are_gone(timed_store) -> None:
    """A key whose claims were removed is claimed with a number that none of its attempts had."""
    key = key_of(500)
    await write(timed_store, "a", event("failed", key, 1), event("delivered", key, 2))
    await compact(timed_store, CLOCK, more_than=0)
    await write(timed_store, "b", event("quarantined", key, 2))
    book = StoreLedger(timed_store, await load_ledger(timed_store), run_id="r", nonce="n", clock=CLOCK)
    assert (book.next_attempt(key), book.next_attempt(key_of(501))) == (3, 1)
    await write(timed_store, "c", event("submitted", key, 3))
    assert (await load_ledger(timed_store)).next_attempt(key) == 3


async def test_what_is_known_of_an_attempt_outlives_its_claims(timed_store) -> None:
    """A key that was delivered, lost its claims and then its image goes on with numbers of its own."""
    key = key_of(1)
    book = StoreLedger(timed_store, LedgerView.empty(), run_id="run-1", nonce="n1", clock=CLOCK)
    await book.claim(key, 1, Claim("run-1", "n1", f"{key.hex()}-1", CLOCK.now(), {}))
    await write(timed_store, "a", event("submitted", key, 1, request_id="id-1"), event("delivered", key, 1))
    timed_store.later(25)
    await compact(timed_store, CLOCK, more_than=0)
    assert await book.claims(key) == []
    await write(timed_store, "b", event("quarantined", key, 1))
    view = await load_ledger(timed_store)
    later = StoreLedger(timed_store, view, run_id="run-2", nonce="n2", clock=CLOCK)
    (known,) = await later.known(key)
    assert (known.claim_no, known.record, known.request_id, known.rank) == (1, None, "id-1", RANK["quarantined"])
    assert later.next_attempt(key) == 2
