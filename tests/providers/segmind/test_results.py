"""Results in every shape, and the downloads of their images."""

import base64
import json
from typing import Any

import pytest

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.providers.segmind import http as segmind_http
from tests.providers.segmind.conftest import (
    HISTORY,
    KEY,
    PNG,
    REQUEST,
    RESULT,
    STATUS,
    SUBMIT,
    delivered,
    png,
    provider,
    server,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "result",
    [
        {"images": [{"url": "URL"}]},
        {"output": "URL"},
        {"output": {"images": [{"url": "URL"}]}},
        {"output": json.dumps({"image_url": "URL"})},
        {"output": "data:image/png;base64," + base64.b64encode(PNG).decode()},
        {"output": base64.b64encode(PNG).decode()},
    ],
)
async def test_results_of_every_shape(result: dict[str, Any]) -> None:
    """A v2 result is understood in every shape that the API, its SDK or its users show."""
    async with server() as script, server() as outputs:
        outputs.on("/out.png", (200, PNG))
        text = json.dumps(result).replace("URL", f"{outputs.url}/out.png")
        script.on(SUBMIT, (200, {"request_id": "r1", "status": "QUEUED", "status_url": f"{outputs.url}/evil"}))
        script.on(STATUS, (200, {"status": "QUEUED"}), (200, {"status": "DREAMING"}), (200, {"status": "COMPLETED"}))
        script.on(RESULT, (200, {"status": "COMPLETED", "metrics": {"cost": 0.04}} | json.loads(text)))
        assert await delivered(script) == PNG
        assert script.calls(SUBMIT) == 1
        # The key goes to the endpoint alone, and its URLs are rebuilt, not taken from the answer.
        assert all(request.headers.get("x-api-key") == KEY for request in script.requests)
        assert all("x-api-key" not in request.headers for request in outputs.requests)
        assert outputs.calls("/evil") == 0


@pytest.mark.parametrize(
    "body",
    [
        PNG,
        json.dumps({"image_url": "URL"}).encode(),
        base64.b64encode(PNG),
        json.dumps({"data": [{"b64_json": base64.b64encode(PNG).decode()}]}).encode(),
    ],
)
async def test_v1_bodies_of_every_shape(body: bytes) -> None:
    """A v1 answer may be the bytes, base64, or JSON that names or holds them; its content type is not believed."""
    async with server() as script:
        script.on("/out.png", (200, PNG))
        script.on(
            "/v1/flux-2-klein-9b",
            (200, body.replace(b"URL", f"{script.url}/out.png".encode()), {"content-type": "text/html"}),
        )
        assert await delivered(script, "v1") == PNG


async def test_several_images_of_one_answer_are_all_delivered() -> None:
    """All images of one answer were paid: the first goes to the row, the others come with it."""
    other = png()
    async with server() as script, provider(script) as client:
        script.on(STATUS, (200, {"status": "COMPLETED"}))
        script.on(RESULT, (200, {"status": "COMPLETED", "images": [{"url": f"{script.url}/{n}.png"} for n in (1, 2)]}))
        script.on("/1.png", (200, PNG))
        script.on("/2.png", (200, other))
        delivery = await client.fetch("r1")
    assert (delivery.data, delivery.more) == (PNG, (other,))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_downloads_follow_redirects(status: int) -> None:
    """An output is fetched over redirects, relative ones and to other hosts, without the key and with its query."""
    async with server() as script, server() as cdn, provider(script) as client:
        script.on(STATUS, (200, {"status": "COMPLETED"}))
        script.on(RESULT, (200, {"status": "COMPLETED", "output": f"{script.url}/0?sig=a%2Bb"}))
        script.on("/0", (status, b"", {"location": "1?sig=c"}))
        script.on("/1", (status, b"", {"location": f"{cdn.url}/2?sig=d%2Be"}))
        cdn.on("/2", (200, PNG))
        assert (await client.fetch("r1")).data == PNG
        outputs = [request for request in (*script.requests, *cdn.requests) if request.path in ("/0", "/1", "/2")]
        assert [request.raw_path for request in outputs] == ["/0?sig=a%2Bb", "/1?sig=c", "/2?sig=d%2Be"]
        assert all("x-api-key" not in request.headers for request in outputs)


@pytest.mark.parametrize(("redirects", "arrives"), [(6, True), (7, False)])
async def test_redirects_have_an_end(redirects: int, arrives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six redirects are followed, no more; an output that is not reached is not lost: the row stays submitted."""
    monkeypatch.setattr(segmind_http, "GET_TRIES", 1)
    async with server() as script, provider(script) as client:
        script.on(STATUS, (200, {"status": "COMPLETED"}))
        script.on(RESULT, (200, {"status": "COMPLETED", "output": f"{script.url}/0"}))
        for n in range(redirects):
            script.on(f"/{n}", (302, b"", {"location": f"/{n + 1}"}))
        script.on(f"/{redirects}", (200, PNG))
        if arrives:
            assert (await client.fetch("r1")).data == PNG
        else:
            with pytest.raises(ProviderError, match="more than 6 redirects") as caught:
                await client.fetch("r1")
            assert (caught.value.kind, caught.value.request_id) == ("submitted", "r1")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/a.png", "data:image/png;base64,AA", "gopher://x"])
async def test_redirects_stay_with_http(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect to anything but http is not followed."""
    monkeypatch.setattr(segmind_http, "GET_TRIES", 1)
    async with server() as script, provider(script) as client:
        script.on(STATUS, (200, {"status": "COMPLETED"}))
        script.on(RESULT, (200, {"status": "COMPLETED", "output": f"{script.url}/0"}))
        script.on("/0", (302, b"", {"location": target}))
        with pytest.raises(ProviderError, match=r"no http URL|InvalidURL") as caught:
            await client.fetch("r1")
    assert caught.value.kind == "submitted"


async def test_a_download_that_fails_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that cannot be fetched yet leaves the row submitted, with its id and status: paid, and asked again."""
    monkeypatch.setattr(segmind_http, "GET_TRIES", 1)
    async with server() as script, provider(script) as client:
        script.on(STATUS, (200, {"status": "COMPLETED"}))
        script.on(RESULT, (200, {"status": "COMPLETED", "output": f"{script.url}/0"}))
        script.on("/0", (503, b""))
        with pytest.raises(ProviderError) as caught:
            await client.fetch("r1")
        assert (caught.value.kind, caught.value.status, caught.value.request_id) == ("submitted", 503, "r1")
        script.on("/0", (404, b""))
        row = {"request_id": "r1", "model_status": "COMPLETED", "generation_url": f"{script.url}/1"}
        script.on(f"{HISTORY}/r1", (200, row))
        script.on("/1", (200, PNG))
        assert (await client.fetch("r1")).data == PNG  # from the address in the history


async def test_bad_v1_bytes_are_looked_up_by_their_id() -> None:
    """A v1 body that is no image is bad output; fetched again, it comes through the history."""
    async with server() as script, provider(script, "v1") as client:
        script.on("/v1/flux-2-klein-9b", (200, {"error": "half done"}, {"x-request-id": "r1"}))
        row = {"request_id": "r1", "model_status": "COMPLETED", "generation_url": f"{script.url}/out.png"}
        script.on(f"{HISTORY}/r1", (200, row))
        script.on("/out.png", (200, PNG))
        submission = await client.submit(REQUEST, [])
        with pytest.raises(ProviderError) as caught:
            await client.collect(submission)
        assert caught.value.kind == "bad_output"
        assert (await client.collect(submission)).data == PNG
        assert script.calls("/v1/flux-2-klein-9b") == 1


async def test_a_half_character_in_an_answer_ends_nothing() -> None:
    """An id that no file can hold is taken as well as can be: the call is accepted, under a name that can be stored."""
    async with server() as script, provider(script) as client:
        script.on(SUBMIT, (200, b'{"request_id": "r1\\ud83d", "status": "QUEUED"}'))
        submission = await client.submit(REQUEST, [])
        assert str(submission.request_id).encode() == b"r1?"
