"""The search in the request history: a call that is there is found; one is absent only where that is proven."""

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.history_lookup import Finding, Window, claim_form, finding_of
from prefect_imagegen.providers.segmind import history as segmind_history
from prefect_imagegen.providers.segmind.history import SegmindHistory
from tests.providers.segmind_history.conftest import MODEL, NOW, Listing, around, call

pytestmark = pytest.mark.anyio


class Account:
    """An account with a call every so many seconds for a day, newest first; its bodies are their ages in seconds."""

    def __init__(self, seconds: int, *, with_times: bool = True) -> None:
        self.gets = 0
        self._seconds = seconds
        self._with_times = with_times

    async def get_json(self, _: str, params: dict[str, str]) -> Any:
        self.gets += 1
        await asyncio.sleep(0)
        start = (int(params["page"]) - 1) * 100
        ages = [n * self._seconds for n in range(start, start + 100) if n * self._seconds < 86_400]
        return {"data": [self._row(age) for age in ages]}

    def _row(self, age: int) -> dict[str, Any]:
        row = {"request_id": f"r{age}", "model_name": MODEL, "model_status": "COMPLETED", "request_body": {"age": age}}
        return row | ({"model_created": (NOW - timedelta(seconds=age)).isoformat()} if self._with_times else {})


@pytest.mark.parametrize("age", [0, 60, 40_000, 86_000])
async def test_a_call_of_any_age_is_found(age: int) -> None:
    """Among 43,200 calls of a day one is found by the pages of its hours, not by all; so is its absence."""
    account = Account(2)
    history = SegmindHistory("http://history", account.get_json)
    look = await history.find(MODEL, {"age": age}, around(NOW - timedelta(seconds=age)))
    assert finding_of(look, [], 0) == Finding(f"r{age}")
    assert finding_of(look, {f"r{age}"}, 0).is_absent
    # Two hours are 36 pages, and the way to them.
    assert account.gets < 40 + 20


async def test_looks_for_calls_of_other_hours_share_nothing() -> None:
    """A listing that ends before the hours of an older claim is never taken as proof that its call is absent."""
    history = SegmindHistory("http://history", Account(30).get_json)
    ages = [600, 30_000, 60_000, 80_010]
    looks = (history.find(MODEL, {"age": age}, around(NOW - timedelta(seconds=age))) for age in ages)
    assert [finding_of(look, [], 0).request_id for look in await asyncio.gather(*looks)] == [f"r{age}" for age in ages]


async def test_without_times_every_page_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the history tells no times all of its days are read; more than can be read prove nothing."""
    account = Account(60, with_times=False)
    history = SegmindHistory("http://history", account.get_json)
    assert finding_of(await history.find(MODEL, {"age": 60_000}, around(NOW)), [], 0) == Finding("r60000")
    assert account.gets == 16
    monkeypatch.setattr(segmind_history, "MAX_PAGES", 14)
    with pytest.raises(ProviderError):
        await history.find(MODEL, {"age": 1}, around(NOW))


@settings(max_examples=400)
@given(
    minutes=st.lists(st.integers(-3000, 3000), max_size=40),
    target=st.integers(-10, 20),
    size=st.sampled_from([1, 2, 3, 7, 10, 100]),
    order=st.sampled_from(["newest", "oldest", "shuffled"]),
    form=st.sampled_from(["zoned", "naive", "zone +9", "day", "zero", "seconds", "none", "mixed"]),
    beyond=st.sampled_from(["empty", "last", "first", "ignored"]),
    total=st.sampled_from(["none", "told"]),
    seed=st.integers(0, 10),
)
def test_no_listing_makes_a_call_absent(minutes, target, size, order, form, beyond, total, seed) -> None:
    """Whatever the pages, their order and their times are: a call that is in the listing is never told to be absent."""
    draw = random.Random(seed)
    forms = ["zoned", "naive", "day", "none"]
    moments = [NOW + timedelta(minutes=minute) for minute in (*minutes, target)]
    rows = [
        (moment, call(n, moment, form=draw.choice(forms) if form == "mixed" else form))
        for n, moment in enumerate(moments)
    ]
    if order == "shuffled":
        draw.shuffle(rows)
    else:
        rows.sort(key=lambda row: row[0], reverse=order == "newest")
    listing = Listing([row for _, row in rows], size, beyond, total)
    odd: Counter[str] = Counter()
    history = SegmindHistory("http://history", listing.get_json, lambda oddity: odd.update([oddity]))
    claimed = claim_form({"prompt": "a cup", "seed": len(minutes)})

    async def look() -> Finding | str:
        try:
            return finding_of(await history.find(MODEL, claimed, around(NOW)), [], 0)
        except ProviderError as error:
            return error.kind

    outcome = asyncio.run(look())
    if beyond == "empty":  # an ordinary listing is understood
        assert outcome == Finding(f"r{len(minutes)}")
    else:
        assert outcome in (Finding(f"r{len(minutes)}"), "unknown")
        assert bool(odd) == (outcome == "unknown")


@given(
    minutes=st.lists(st.integers(-3000, 3000), max_size=40),
    size=st.sampled_from([1, 3, 10, 100]),
    total=st.sampled_from(["none", "told"]),
)
def test_an_ordinary_listing_proves_absence(minutes, size, total) -> None:
    """Newest first, with times and an empty page at the end: a call that is not in it is absent."""
    moments = sorted((NOW + timedelta(minutes=minute) for minute in minutes), reverse=True)
    listing = Listing([call(n, moment) for n, moment in enumerate(moments)], size, total=total)
    history = SegmindHistory("http://history", listing.get_json)
    look = asyncio.run(history.find(MODEL, claim_form({"prompt": "a cup", "seed": 999}), around(NOW)))
    assert finding_of(look, [], 0).is_absent
    assert look.shown <= {row["request_id"] for row in listing.rows}


@pytest.mark.parametrize("beyond", ["last", "first", "ignored"])
@pytest.mark.parametrize("calls", [1, 99, 100])
async def test_a_total_ends_a_listing_that_does_not_end(beyond: str, calls: int) -> None:
    """A page that repeats another one is the end only where the total says that all was seen."""
    rows = [call(n, NOW - timedelta(seconds=n)) for n in range(calls)]
    for total in ("told", "none"):
        listing, odd = Listing(rows, 100, beyond, total), Counter[str]()
        history = SegmindHistory("http://history", listing.get_json, lambda oddity, odd=odd: odd.update([oddity]))
        find = history.find(MODEL, {"seed": 999}, around(NOW))
        if total == "told":
            assert finding_of(await find, [], 0).is_absent
        else:
            with pytest.raises(ProviderError, match="repeats") as caught:
                await find
            assert caught.value.kind == "unknown"
            assert sum(odd.values()) == 1
        assert listing.gets <= 3


@pytest.mark.parametrize("place", [45, 55, 65, 75])
async def test_no_page_is_left_out_of_a_listing_that_is_not_in_order(place: int) -> None:
    """Pages are left out only where those that were read come newest first: else all are read."""
    rows = [call(n, NOW + timedelta(hours=5, minutes=n)) for n in range(200)]
    rows[place] = call(place, NOW)
    listing = Listing(rows, 10)
    look = await SegmindHistory("http://history", listing.get_json).find(
        MODEL, claim_form({"prompt": "a cup", "seed": place}), around(NOW)
    )
    assert finding_of(look, [], 0) == Finding(f"r{place}")


async def test_rows_that_were_pushed_to_the_next_page_count_once() -> None:
    """Rows that come twice, since new calls push old ones on, do not make up for rows that were never shown."""
    rows = [call(n, NOW) for n in range(4)]
    pages = [rows[:2], rows[1:3], rows[1:3]]

    async def get_json(_: str, params: dict[str, str]) -> Any:
        return {"data": pages[min(int(params["page"]), 3) - 1], "total": 4}

    with pytest.raises(ProviderError, match="repeats"):
        await SegmindHistory("http://history", get_json).find(MODEL, {"seed": 3}, around(NOW))


async def test_an_empty_page_before_the_total_is_no_end() -> None:
    """A listing that serves no more pages than it likes does not end where it counts more calls than it showed."""

    async def get_json(_: str, params: dict[str, str]) -> Any:
        return {"data": [call(n, NOW) for n in range(10)] if params["page"] == "1" else [], "total": 5000}

    with pytest.raises(ProviderError, match="empty before the end"):
        await SegmindHistory("http://history", get_json).find(MODEL, {"seed": 3000}, around(NOW))


async def test_calls_that_are_made_meanwhile_need_not_be_seen() -> None:
    """A total that grows while pages are read, as new calls come in on top, is no reason to doubt the end."""

    async def get_json(_: str, params: dict[str, str]) -> Any:
        first = params["page"] == "1"
        return {"data": [call(n, NOW) for n in range(2)] if first else [], "total": 2 if first else 5}

    look = await SegmindHistory("http://history", get_json).find(MODEL, {"seed": 9}, around(NOW))
    assert finding_of(look, [], 0).is_absent


@pytest.mark.parametrize(
    "more",
    [
        {"has_more": True},
        {"next_cursor": "b2Zmc2V0"},
        {"links": {"next": "/page/2"}},
        {"pagination": {"hasNext": True}},
        {"pagination": {"total": 5000}},
        {"meta": {"total_count": "5000"}},
    ],
    ids=json.dumps,
)
async def test_an_empty_page_where_more_is_announced_is_no_end(more: dict[str, Any]) -> None:
    """A listing that pages by other means than numbers says that there is more, and shows nothing of it: no proof."""

    async def get_json(_: str, params: dict[str, str]) -> Any:
        return {"data": [call(n, NOW) for n in range(10)]} | more if params["page"] == "1" else {"data": []}

    with pytest.raises(ProviderError, match="is empty before"):
        await SegmindHistory("http://history", get_json).find(MODEL, {"seed": 3000}, around(NOW))


async def test_an_end_that_is_announced_is_one() -> None:
    """A listing that tells on its last page that nothing follows has been read to its end."""

    async def get_json(_: str, params: dict[str, str]) -> Any:
        rows = [call(n, NOW) for n in range(10)] if params["page"] == "1" else []
        return {"data": rows, "has_more": False, "pagination": {"next": None, "total": 10}}

    look = await SegmindHistory("http://history", get_json).find(MODEL, {"seed": 3000}, around(NOW))
    assert finding_of(look, [], 0).is_absent


@pytest.mark.parametrize("seed", range(20))
async def test_an_order_that_changes_between_pages_proves_nothing(seed: int) -> None:
    """Where every page is cut from another order, a call may be on none of those that were read."""
    draw, rows = random.Random(seed), [call(n, NOW) for n in range(20)]

    async def get_json(_: str, params: dict[str, str]) -> Any:
        start = 5 * (int(params["page"]) - 1)
        return {"data": draw.sample(rows, len(rows))[start : start + 5]}

    history, claimed = SegmindHistory("http://history", get_json), claim_form({"prompt": "a cup", "seed": 7})
    with suppress(ProviderError):
        assert finding_of(await history.find(MODEL, claimed, around(NOW)), [], 0) == Finding("r7")


@pytest.mark.parametrize("pushed", [1, 3])
async def test_calls_that_are_made_amid_a_search_hide_none(pushed: int) -> None:
    """New calls push old ones on while the pages of some hours are looked for: none slips through between two pages."""
    for target in range(150, 400, 14):
        rows = [call(n, NOW - timedelta(minutes=n)) for n in range(600)]

        async def get_json(_: str, params: dict[str, str], rows: list[dict[str, Any]] = rows) -> Any:
            start = 10 * (int(params["page"]) - 1)
            page = rows[start : start + 10]
            rows[:0] = [call(-len(rows) - n, NOW + timedelta(minutes=1)) for n in range(pushed)]
            return {"data": page}

        claimed = claim_form({"prompt": "a cup", "seed": target})
        window = around(NOW - timedelta(minutes=target))
        look = await SegmindHistory("http://history", get_json).find(MODEL, claimed, window)
        assert finding_of(look, [], 0) == Finding(f"r{target}")


@pytest.mark.parametrize("years", [-2, -0.1, 0, 0.1, 0.9])
async def test_a_wrong_clock_does_not_hide_the_days_of_the_call(years: float) -> None:
    """A window that a wrong clock has made months long is searched whole, 31 days at a time, or not at all."""
    made = {"r1": NOW}
    listing = Listing([call(1, NOW)], when=lambda row: made[row["request_id"]])
    history = SegmindHistory("http://history", listing.get_json)
    window = Window(min(NOW, NOW + timedelta(days=365 * years)), max(NOW, NOW + timedelta(days=365 * years)))
    find = history.find(MODEL, claim_form({"prompt": "a cup", "seed": 1}), window)
    if years == -2:
        with pytest.raises(ProviderError, match="years apart"):
            await find
        return
    assert finding_of(await find, [], 0) == Finding("r1")
    for start, end in listing.asked:
        assert (datetime.fromisoformat(end) - datetime.fromisoformat(start)).days < 31
