"""An API that is slow, out of reach or another one: what is said of it, and how often."""

import asyncio
from datetime import UTC, datetime
from functools import partial

import pytest
from aiohttp import web
from pydantic import SecretStr

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.history_lookup import Window
from prefect_imagegen.providers.segmind import provider as segmind
from prefect_imagegen.providers.segmind.provider import Endpoints, SegmindProvider
from tests.providers.segmind.conftest import (
    HISTORY,
    KEY,
    REQUEST,
    SUBMIT,
    provider,
    server,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/v1/get-user-credits", "/health"])
async def test_a_check_ends_though_its_answer_does_not(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes byte by byte, without an end, is none: what is asked before a run begins takes seconds."""
    monkeypatch.setattr(segmind, "PROBE_S", 0.3)

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "100000"})
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    async with server() as script, provider(script) as client:
        script.on(path, drip)
        asking = client.engine() if path == "/health" else client.check()
        with pytest.raises(ProviderError) as caught:
            await asyncio.wait_for(asking, 10)
    assert caught.value.kind == "unsent"


@pytest.mark.parametrize("path", ["/v1/get-user-credits", HISTORY])
async def test_a_get_obeys_retry_after(path: str) -> None:
    """A GET that is answered with 429 comes again when it was told to; three refusals are the answer."""
    async with server() as script, provider(script) as client:
        wanted = (200, {"credits": 1.0, "data": []})
        script.on(path, (429, {}, {"Retry-After": "1"}), wanted)
        now = datetime.now(UTC)
        look = partial(client.find, "flux-2-klein-9b", {}, Window(now, now)) if path == HISTORY else client.check
        started = asyncio.get_running_loop().time()
        await look()
        assert asyncio.get_running_loop().time() - started >= 1.0
        script.on(path, (429, {}, {"Retry-After": "1"}))
        before = script.calls(path)
        with pytest.raises(ProviderError) as caught:
            await look()
        assert (caught.value.kind, script.calls(path) - before <= 3) == ("rate_limited", True)


async def test_an_outage_of_the_api_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many calls meet an API that is away, the log says once that it is, and once that it is back."""
    async with server() as script:
        script.on("/v1/get-user-credits", (200, {"credits": 1}))
        port = int(script.url.rpartition(":")[2])
        client = SegmindProvider(Endpoints.of(script.url, None), SecretStr(KEY))
        await client.check()
    for number in range(40):
        with pytest.raises(ProviderError):
            await client.submit(REQUEST, [])
        assert len(caplog.records) == (number >= 4)
    async with server(port) as script:
        script.on("/v1/get-user-credits", (200, {"credits": 1}))
        await client.check()
        await client.check()
    await client.aclose()
    away, back = (record.getMessage() for record in caplog.records)
    assert f"The image API at http://127.0.0.1:{port} gives no good answer since" in away
    assert "Nothing is paid for twice" in away
    assert f"The image API at http://127.0.0.1:{port} answers again, after" in back


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_that_answers_for_the_api_is_no_api(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Answers that a load balancer gives for an API that is away count as none; those of a busy API do not."""
    async with server() as script, provider(script) as client:
        script.on(
            SUBMIT, *[(429, {"error": "later"})] * 30, *[(status, b"bad gateway")] * 30, (200, {"request_id": "r"})
        )
        for number in range(60):
            with pytest.raises(ProviderError):
                await client.submit(REQUEST, [])
            assert len(caplog.records) == (number >= 34)
        await client.submit(REQUEST, [])
    assert len(caplog.records) == 2
