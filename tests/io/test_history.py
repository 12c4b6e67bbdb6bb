"""The request history of a busy account: what is looked for is found, and what is absent is proven so."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_imagegen.core.errors import BackendError
from prefect_imagegen.io import segmind_history
from prefect_imagegen.io.segmind_history import SegmindHistory

pytestmark = pytest.mark.anyio
MODEL = "flux-2-klein-9b"
NOW = datetime(2026, 11, 23, 20, tzinfo=UTC)


class Account:
    """An account with a call every so many seconds for a day, newest first; its bodies are their ages in seconds."""

    def __init__(self, seconds: int, *, told: bool = True) -> None:
        self.gets = 0
        self._seconds = seconds
        self._told = told

    async def get_json(self, _: str, params: dict[str, str]) -> Any:
        self.gets += 1
        await asyncio.sleep(0)
        start = (int(params["page"]) - 1) * 100
        ages = [n * self._seconds for n in range(start, start + 100) if n * self._seconds < 86_400]
        return {"data": [self._row(age) for age in ages]}

    def _row(self, age: int) -> dict[str, Any]:
        row = {"request_id": f"r{age}", "model_name": MODEL, "model_status": "COMPLETED", "request_body": {"age": age}}
        return row | ({"model_created": (NOW - timedelta(seconds=age)).isoformat()} if self._told else {})


@pytest.mark.parametrize("age", [0, 60, 40_000, 86_000])
async def test_a_call_of_any_age_is_found(age: int) -> None:
    """Among 43,200 calls of a day one is found by the pages of its hours, not by all; so is its absence."""
    account = Account(2)
    history = SegmindHistory("http://history", account.get_json)
    since = NOW - timedelta(seconds=age)
    assert await history.find(MODEL, {"age": age}, since, frozenset(), 0) == f"r{age}"
    assert await history.find(MODEL, {"age": age}, since, frozenset({f"r{age}"}), 0) is None
    # Five hours are 90 pages; two looks, and the way to them.
    assert account.gets < 2 * (92 + 20)


async def test_looks_for_calls_of_other_hours_share_nothing() -> None:
    """A listing that ends before the hours of an older claim is never taken as proof that its call is absent."""
    history = SegmindHistory("http://history", Account(30).get_json)
    ages = [600, 30_000, 60_000, 80_010]
    looks = (history.find(MODEL, {"age": age}, NOW - timedelta(seconds=age), frozenset(), 0) for age in ages)
    assert await asyncio.gather(*looks) == [f"r{age}" for age in ages]


async def test_without_times_every_page_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the history tells no times all of its days are read; more than can be read prove nothing."""
    account = Account(60, told=False)
    history = SegmindHistory("http://history", account.get_json)
    assert await history.find(MODEL, {"age": 60_000}, NOW, frozenset(), 0) == "r60000"
    assert account.gets == 15
    monkeypatch.setattr(segmind_history, "MAX_PAGES", 14)
    with pytest.raises(BackendError):
        await history.find(MODEL, {"age": 1}, NOW, frozenset(), 0)
