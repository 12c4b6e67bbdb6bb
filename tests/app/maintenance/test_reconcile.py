"""Reconcile: the ledger compared with the account's history."""

import asyncio
from datetime import UTC, date, datetime

import httpx
import pytest

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.maintenance.reconcile import reconcile
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.ledger.events import Event
from prefect_imagegen.core.ledger.fold import events_table
from prefect_imagegen.store.ledger.files import to_parquet
from prefect_imagegen.store.object_store import open_object_store
from tests.app.maintenance.conftest import PRICE, ROWS, Place


def test_books_that_agree(place: Place) -> None:
    """After an undisturbed run, ledger and history agree to the cent."""
    place.generate()
    report = place.reconcile()
    assert (report.history_calls, report.ledger_calls, report.differences) == (ROWS, ROWS, [])
    assert report.history_usd == report.ledger_usd == pytest.approx(ROWS * PRICE)


def test_every_difference_is_named(place: Place) -> None:
    """A foreign call, a call bought twice, one not fetched and one that the history lacks: each by name, in dollars."""
    place.generate()
    with httpx.Client(base_url=place.gateway.url, headers={"x-api-key": "k"}) as client:
        foreign = client.post("/v1/flux-2-klein-9b", json={"prompt": "another program's"})
        body = place.gateway.account_state.billed[0].body
        twice = client.post("/v1/flux-2-klein-9b", json=body)
    missing = Event(
        "submitted", bytes(16), f"{bytes(16).hex()}-1", "r", datetime.now(UTC), request_id="gone", cost_usd=0.5
    )

    async def write() -> None:
        store = open_object_store(place.store.url)
        await store.create(layout.segment("s"), to_parquet(events_table([missing])))
        store.close()

    asyncio.run(write())
    report = place.reconcile()
    assert {(difference.kind, difference.request_id, difference.usd) for difference in report.differences} == {
        ("not_in_ledger", foreign.headers["x-request-id"], PRICE),
        ("paid_twice", twice.headers["x-request-id"], PRICE),
        ("not_in_history", "gone", -0.5),
    }
    assert report.history_usd == pytest.approx((ROWS + 2) * PRICE)


def test_calls_that_only_a_claim_knows(place: Place) -> None:
    """A call whose process died right after it got its id is ours: it waits to be fetched."""
    place.generate()
    place.forget_the_ledger()
    report = place.reconcile()
    assert [difference.kind for difference in report.differences] == ["not_fetched"] * ROWS
    place.generate()
    assert place.reconcile().differences == []


def test_a_window_too_wide_is_refused(place: Place) -> None:
    """The history answers a month at most, and a window needs an end after its start."""
    place.generate(1)
    for start, end in ((date(2026, 1, 1), date(2026, 11, 1)), (date(2026, 11, 2), date(2026, 11, 1))):
        with pytest.raises(RefusedError, match="no window of up to 31 days"):
            asyncio.run(reconcile(place.store, place.account, RunOptions(), start=start, end=end))
