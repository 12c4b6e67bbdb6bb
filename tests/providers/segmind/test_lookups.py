"""Calls looked up in the request history: by their whole body, page by page."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.history_lookup import Finding, Window, claim_form, finding_of
from prefect_imagegen.providers.segmind import history as segmind_history
from tests.providers.segmind.conftest import (
    HISTORY,
    REQUEST,
    provider,
    server,
)

pytestmark = pytest.mark.anyio


def around(moment: datetime) -> Window:
    return Window(moment - timedelta(minutes=10), moment + timedelta(minutes=10))


async def test_the_history_is_searched_by_the_whole_body() -> None:
    """A match is a call of this very body that nobody knows yet; one whose body is not shown yet leaves it unclear."""
    body = REQUEST.body([])
    rows = [
        {"request_id": "known", "model_name": REQUEST.model, "request_body": repr(body)},
        {"request_id": "other", "model_name": REQUEST.model, "request_body": repr(body | {"seed": 8})},
        {"request_id": "unseen", "model_name": REQUEST.model, "request_body": None},
        {"request_id": "match", "model_name": REQUEST.model, "request_body": json.dumps(body)},
    ]
    async with server() as script, provider(script) as client:
        script.on(HISTORY, (200, {"data": rows}), (200, {"data": []}))
        look = await client.find(REQUEST.model, claim_form(body), around(datetime.now(UTC)))
    assert look.shown == {"known", "other", "unseen", "match"}
    assert finding_of(look, {"known"}, 0) == Finding("match")
    assert finding_of(look, {"known", "match"}, 0) == Finding(unclear="unseen")
    assert finding_of(look, {"known", "match", "unseen"}, 0).is_absent


async def test_paging_of_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paging stops at a page from before the claim; more pages than can be read prove nothing."""
    now = datetime.now(UTC)

    def page(age: timedelta) -> dict[str, Any]:
        times = [(now - age - timedelta(seconds=n)).isoformat() for n in range(100)]
        return {
            "data": [
                {
                    "request_id": f"{age}-{n}",
                    "model_name": REQUEST.model,
                    "model_created": moment,
                    "request_body": {"prompt": "y"},
                }
                for n, moment in enumerate(times)
            ]
        }

    async with server() as script, provider(script) as client:
        script.on(HISTORY, (200, page(timedelta())), (200, page(timedelta(hours=5))), (500, {"error": "not asked for"}))
        assert finding_of(await client.find(REQUEST.model, {"prompt": "x"}, around(now)), [], 0).is_absent
        assert script.calls(HISTORY) == 2
    monkeypatch.setattr(segmind_history, "MAX_PAGES", 2)
    async with server() as script, provider(script) as client:
        script.on(HISTORY, (200, page(timedelta())), (200, page(timedelta(minutes=1))))
        with pytest.raises(ProviderError, match="more than 200 requests"):
            await client.find(REQUEST.model, {"prompt": "x"}, around(now))


async def test_a_history_that_is_not_understood_is_counted() -> None:
    """A listing in another envelope is an error that says so, and is counted for the report."""
    async with server() as script, provider(script) as client:
        script.on(HISTORY, (200, {"requests": [{"request_body": "secret"}]}))
        with pytest.raises(ProviderError) as caught:
            await client.find(REQUEST.model, {"prompt": "x"}, around(datetime.now(UTC)))
        assert caught.value.kind == "unknown"
        assert dict(client.not_understood) == {"the request history: an object with requests": 1}


async def test_looks_at_the_same_time_share_a_listing() -> None:
    """A hundred rows that look at once cost two listings: one under way, one begun after the rest asked."""
    async with server() as script, provider(script) as client:
        script.on(HISTORY, (200, {"data": []}))
        now = datetime.now(UTC)
        await asyncio.gather(*(client.find(REQUEST.model, {"prompt": "x"}, around(now)) for _ in range(100)))
        assert script.calls(HISTORY) <= 2
