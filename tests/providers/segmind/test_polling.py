"""Polls of a job: what ends it, what is waited out, and that nothing is submitted again."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.providers.segmind.provider import Endpoints, SegmindProvider
from tests.providers.segmind.conftest import (
    HISTORY,
    KEY,
    PNG,
    REQUEST,
    RESULT,
    STATUS,
    SUBMIT,
    delivered,
    provider,
    server,
)

pytestmark = pytest.mark.anyio


async def test_polls_and_downloads_never_submit_again() -> None:
    """Errors after the submit are GETs tried again: 500, 429, HTML, a dying record; the POST stays one."""
    async with server() as script:
        script.on(SUBMIT, (200, {"request_id": "r1"}))
        script.on(
            STATUS,
            (500, b"x"),
            (200, b"<html>"),
            (429, {"error": "slow down"}, {"retry-after": "1"}),
            (502, b""),
            (404, {"error": "gone"}),
        )
        row = {"request_id": "r1", "model_name": "flux-2-klein-9b", "model_status": "PENDING"}
        done = row | {"model_status": "COMPLETED", "generation_url": f"{script.url}/out.png", "credits_deduction": 0.04}
        script.on(f"{HISTORY}/r1", (200, {"data": row}), (503, b""), (200, done))
        script.on("/out.png", (503, b""), (200, PNG))
        assert await delivered(script) == PNG
        assert script.calls(SUBMIT) == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Prompt is Mandatory", "generation_failed"),
        ("CUDA out of memory", "generation_error"),
        ("NSFW", "content_policy"),
    ],
)
async def test_failed_jobs(text: str, kind: str) -> None:
    """FAILED counts with 200 and 422 where status and result agree, and its text tells bad luck from bad rows."""
    for status in (200, 422):
        async with server() as script:
            script.on(SUBMIT, (200, {"request_id": "r1"}))
            script.on(STATUS, (status, {"status": "FAILED", "error": text}))
            script.on(RESULT, (status, {"status": "FAILED", "error": text, "request_id": "r1"}))
            with pytest.raises(ProviderError) as caught:
                await delivered(script)
        assert (caught.value.kind, caught.value.request_id) == (kind, "r1")
        assert script.calls(RESULT) == 1


IMAGE = "data:image/png;base64," + base64.b64encode(PNG).decode()
DONE = (200, {"status": "COMPLETED", "output": IMAGE, "metrics": {"cost": 0.04}})
FAILED = (200, {"status": "FAILED", "error": "boom"})


@pytest.mark.parametrize(
    "result",
    [
        (404, {"error": "not found"}),
        (503, {"status": "FAILED", "error": "upstream"}),
        (200, {"status": "PROCESSING"}),
        (200, {"status": "FAILED", "error": "boom", "request_id": "another"}),
        (200, {"status": "ERROR", "error": "boom"}),
        (200, b"<html>"),
    ],
    ids=str,
)
async def test_a_failure_that_one_answer_tells_ends_nothing(result: Any) -> None:
    """FAILED leads to a new POST, so both GETs have to say it; while they do not, the job is asked for again."""
    async with server() as script, provider(script, deadline=0.4) as client:
        script.on(SUBMIT, (200, {"request_id": "r1"}))
        script.on(STATUS, FAILED)
        script.on(RESULT, result)
        with pytest.raises(ProviderError) as caught:
            await client.collect(await client.submit(REQUEST, []))
        assert (caught.value.kind, caught.value.request_id) == ("submitted", "r1")
        script.on(RESULT, result, DONE)
        assert (await client.fetch("r1")).data == PNG
    assert script.calls(SUBMIT) == 1


@pytest.mark.parametrize(
    ("poll", "words"),
    [
        ((503, {"status": "error", "message": "maintenance"}), "a poll: status 503, an object with message, status"),
        ((500, {"status": "FAILED", "error": "x"}), "a poll: status 500, an object with error, status"),
        ((403, {"status": "FAILED"}), "a poll: status 403, an object with status"),
        ((201, {"status": "FAILED"}), "a poll: status 201, an object with status"),
        ((200, {"status": "FAILED", "request_id": "r2"}), "a poll: status 200, an object with request_id, status"),
        ((200, {"status": "ERROR", "error": "x"}), "a poll: an unknown state"),
        ((200, {"status": "CANCELLED"}), "a poll: an unknown state"),
        ((200, [1]), "a poll: status 200, a list of 1"),
        ((200, b"<html>"), "a poll: status 200, no JSON"),
        ((429, {"status": "error", "message": "slow down"}, {"retry-after": "1"}), None),
        ((404, {"status": "FAILED"}), None),
    ],
    ids=str,
)
async def test_a_poll_that_is_not_understood_ends_nothing(poll: Any, words: str | None) -> None:
    """No answer to a poll but an agreed FAILED ends a paid job: the next one delivers; what was odd is counted."""
    async with server() as script, provider(script) as client:
        script.on(SUBMIT, (200, {"request_id": "r1"}))
        script.on(STATUS, poll, poll, (200, {"status": "COMPLETED"}))
        script.on(RESULT, DONE)
        delivery = await client.collect(await client.submit(REQUEST, []))
        assert (delivery.data, delivery.cost_usd) == (PNG, 0.04)
        assert dict(client.not_understood) == ({words: 2} if words else {})
    assert script.calls(SUBMIT) == 1


async def test_a_rejected_key_ends_the_polls() -> None:
    """A 401 on a poll is about the key, and stops the run; the job keeps its id."""
    async with server() as script, provider(script) as client:
        script.on(STATUS, (401, {"error": f"bad key {KEY}"}))
        with pytest.raises(ProviderError) as caught:
            await client.fetch("r1")
    assert (caught.value.kind, caught.value.request_id) == ("auth", "r1")
    assert KEY not in str(caught.value)


async def test_a_finished_job_without_an_output_is_waited_for() -> None:
    """COMPLETED without an output is not lost: the result is asked again, then the history, which may lack it too."""
    async with server() as script, provider(script) as client:
        script.on(STATUS, (200, {"status": "COMPLETED"}))
        script.on(RESULT, (200, {"status": "COMPLETED", "output": None}))
        row = {"request_id": "r1", "model_status": "COMPLETED"}
        script.on(f"{HISTORY}/r1", (200, row), (200, row | {"generation_url": f"{script.url}/out.png"}))
        script.on("/out.png", (200, PNG))
        assert (await client.fetch("r1")).data == PNG
        assert script.calls(RESULT) >= 3
        assert script.calls(f"{HISTORY}/r1") == 2


async def test_an_old_call_is_asked_for_once() -> None:
    """A call of an earlier run of which neither record nor history knows is asked for once, and stays submitted."""
    async with server() as script, provider(script) as client:
        with pytest.raises(ProviderError) as caught:
            await client.fetch("r1", is_old=True)
        assert (caught.value.kind, script.calls(STATUS), script.calls(f"{HISTORY}/r1")) == ("submitted", 1, 1)


async def test_the_time_of_the_api_is_that_of_its_answers() -> None:
    """What the API says of the time, in its Date header, goes on with ours; before it nothing is known."""
    async with server() as script, provider(script) as client:
        assert client.now() is None
        script.on("/v1/get-user-credits", (200, {"credits": 5}, {"date": "Mon, 23 Nov 2026 20:00:00 GMT"}))
        await client.check()
        now = client.now()
        assert now is not None
        assert timedelta() <= now - datetime(2026, 11, 23, 20, tzinfo=UTC) < timedelta(seconds=5)


async def test_a_job_without_end_is_left_to_the_next_run() -> None:
    """After the deadline the job counts as submitted, with its id: never as lost, never as free to buy again."""
    async with server() as script, provider(script, deadline=0.3) as client:
        script.on(SUBMIT, (200, {"request_id": "r1"}))
        script.on(STATUS, (200, {"status": "PROCESSING"}))
        with pytest.raises(ProviderError) as caught:
            await client.collect(await client.submit(REQUEST, []))
    assert (caught.value.kind, caught.value.request_id) == ("submitted", "r1")


async def test_a_429_on_a_poll_is_waited_out() -> None:
    """After a 429 on a poll the polls wait for as long as it asks, and the result still comes from one POST."""
    async with server() as script:
        script.on(SUBMIT, (200, {"request_id": "r1", "status": "QUEUED"}))
        script.on(STATUS, (200, {"status": "QUEUED"}), (429, {}, {"Retry-After": "1"}), (200, {"status": "COMPLETED"}))
        script.on(RESULT, DONE)
        client = SegmindProvider(Endpoints.of(script.url, None), SecretStr(KEY))
        started = asyncio.get_running_loop().time()
        try:
            assert (await client.collect(await client.submit(REQUEST, []))).data == PNG
            assert asyncio.get_running_loop().time() - started >= 1.0
            assert not client.not_understood
        finally:
            await client.aclose()
        assert script.calls(SUBMIT) == 1
