"""The Segmind backend against a server that answers as it is told: shapes, secrets, and what failures mean."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr

from prefect_imagegen.core.errors import BackendError
from prefect_imagegen.core.outcomes import OUTCOMES
from prefect_imagegen.core.reconcile import claim_form
from prefect_imagegen.core.request import GenerationRequest
from prefect_imagegen.io import segmind_history
from prefect_imagegen.io.limits import RateGate, SystemClock
from prefect_imagegen.io.segmind import Endpoints, SegmindBackend

pytestmark = pytest.mark.anyio
KEY = "SG_0123456789abcdef"
REQUEST = GenerationRequest("flux-2-klein-9b", {"prompt": "a cup", "seed": 7})


def png() -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(sink, "PNG")
    return sink.getvalue()


PNG = png()


class Script:
    """A server on loopback: `answers` by path, each a list used up from the front (the last one stays)."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.seen: list[web.Request] = []
        self.url = ""

    def on(self, path: str, *answers: Any) -> None:
        self.answers[path] = list(answers)

    def calls(self, path: str) -> int:
        return sum(request.path == path for request in self.seen)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        await request.read()
        queue = self.answers.get(request.path, [(404, {"error": "not found"})])
        found = queue.pop(0) if len(queue) > 1 else queue[0]
        status, body, *headers = found
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=data, headers=headers[0] if headers else {})


@asynccontextmanager
async def server() -> AsyncIterator[Script]:
    script = Script()
    runner = web.ServerRunner(web.Server(script.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield script
    finally:
        await runner.cleanup()


@asynccontextmanager
async def backend(script: Script, version: str = "v2", deadline: float = 5.0) -> AsyncIterator[SegmindBackend]:
    clock = SystemClock()
    gate = RateGate(None, clock.monotonic, clock.sleep)
    endpoints = Endpoints.of(script.url, None)
    found = SegmindBackend(endpoints, SecretStr(KEY), limiter=gate, api_version=version, deadline=deadline)
    try:
        yield found
    finally:
        await found.aclose()


SUBMIT = "/v2/flux-2-klein-9b"
STATUS, RESULT = "/v2/requests/r1/status", "/v2/requests/r1"
HISTORY = "/inference-request/request-history"


async def delivered(script: Script, version: str = "v2") -> bytes:
    async with backend(script, version) as client:
        return (await client.collect(await client.submit(REQUEST, []))).data


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
        assert all(request.headers.get("x-api-key") == KEY for request in script.seen)
        assert all("x-api-key" not in request.headers for request in outputs.seen)
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


async def test_polls_and_downloads_never_submit_again() -> None:
    """Errors after the submit are GETs tried again: 500, 429, HTML, a dying record; the POST stays one."""
    async with server() as script:
        script.on(SUBMIT, (200, {"request_id": "r1"}))
        script.on(
            STATUS, (500, b"x"), (200, b"<html>"), (429, {"error": "slow down"}), (502, b""), (404, {"error": "gone"})
        )
        row = {"request_id": "r1", "model_name": "flux-2-klein-9b", "model_status": "PENDING"}
        done = row | {"model_status": "COMPLETED", "generation_url": f"{script.url}/out.png", "credits_deduction": 0.04}
        script.on(f"{HISTORY}/r1", (200, {"data": row}), (503, b""), (200, done))
        script.on("/out.png", (503, b""), (200, PNG))
        assert await delivered(script) == PNG
        assert script.calls(SUBMIT) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((401, {"error": f"bad key {KEY}"}), "auth"),
        ((402, {"error": "pay"}), "credits"),
        ((406, {"error": "Insufficient credits"}), "credits"),
        ((406, {"error": "Invalid content type"}), "invalid_request"),
        ((400, {"detail": "missing field"}), "invalid_request"),
        ((422, {"message": "blocked by content policy"}), "content_policy"),
        ((403, {"error": "no"}), "model_unavailable"),
        ((404, b"nginx"), "model_unavailable"),
        ((410, {"error": "retired"}), "model_unavailable"),
        ((405, b"<html>405</html>"), "protocol"),
        ((302, b"", {"location": "http://127.0.0.1:9/"}), "protocol"),
        ((429, {"error": "rate_limit_exceeded"}), "rate_limited"),
        ((500, b"oops"), "server_error"),
        ((503, b"<html>busy</html>"), "unavailable"),
        ((200, b"<html>who knows</html>"), "unknown"),
        ((200, {"status": "QUEUED"}), "unknown"),
    ],
)
async def test_what_an_answer_to_a_submit_means(answer: Any, kind: str) -> None:
    """Every answer to a POST has its one meaning, and no message holds the key."""
    async with server() as script, backend(script) as client:
        script.on(SUBMIT, answer)
        with pytest.raises(BackendError) as caught:
            await client.submit(REQUEST, [])
    assert caught.value.kind == kind
    assert KEY not in str(caught.value)
    assert len(script.seen) == 1


async def test_the_reset_time_of_a_429_is_read() -> None:
    """`x-rate-limit-reset-at-utc` and Retry-After say how long to wait."""
    async with server() as script, backend(script) as client:
        script.on(SUBMIT, (429, {}, {"retry-after": "7"}))
        with pytest.raises(BackendError) as caught:
            await client.submit(REQUEST, [])
    assert caught.value.retry_after == 7.0


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Prompt is Mandatory", "generation_failed"),
        ("CUDA out of memory", "generation_error"),
        ("NSFW", "content_policy"),
    ],
)
async def test_failed_jobs(text: str, kind: str) -> None:
    """FAILED counts whatever its HTTP status, and its text tells bad luck from bad rows."""
    for status in (200, 422):
        async with server() as script:
            script.on(SUBMIT, (200, {"request_id": "r1"}))
            script.on(STATUS, (status, {"status": "FAILED", "error": text}))
            with pytest.raises(BackendError) as caught:
                await delivered(script)
        assert (caught.value.kind, caught.value.request_id) == (kind, "r1")


async def test_a_job_without_end_is_left_to_the_next_run() -> None:
    """After the deadline the job counts as submitted, with its id: never as lost, never as free to buy again."""
    async with server() as script, backend(script, deadline=0.3) as client:
        script.on(SUBMIT, (200, {"request_id": "r1"}))
        script.on(STATUS, (200, {"status": "PROCESSING"}))
        with pytest.raises(BackendError) as caught:
            await client.collect(await client.submit(REQUEST, []))
    assert (caught.value.kind, caught.value.request_id) == ("submitted", "r1")


async def test_bad_v1_bytes_are_looked_up_by_their_id() -> None:
    """A v1 body that is no image is bad output; fetched again, it comes through the history."""
    async with server() as script, backend(script, "v1") as client:
        script.on("/v1/flux-2-klein-9b", (200, {"error": "half done"}, {"x-request-id": "r1"}))
        row = {"request_id": "r1", "model_status": "COMPLETED", "generation_url": f"{script.url}/out.png"}
        script.on(f"{HISTORY}/r1", (200, row))
        script.on("/out.png", (200, PNG))
        submission = await client.submit(REQUEST, [])
        with pytest.raises(BackendError) as caught:
            await client.collect(submission)
        assert caught.value.kind == "bad_output"
        assert (await client.collect(submission)).data == PNG
        assert script.calls("/v1/flux-2-klein-9b") == 1


async def test_the_history_is_searched_by_the_whole_body() -> None:
    """A match is a call of this very body that nobody knows yet, JSON or Python repr; anything else is none."""
    body = REQUEST.body([])
    rows = [
        {"request_id": "known", "model_name": REQUEST.model, "request_body": repr(body)},
        {"request_id": "other", "model_name": REQUEST.model, "request_body": repr(body | {"seed": 8})},
        {"request_id": "unseen", "model_name": REQUEST.model, "request_body": None},
        {"request_id": "match", "model_name": REQUEST.model, "request_body": json.dumps(body)},
    ]
    async with server() as script, backend(script) as client:
        script.on(HISTORY, (200, {"data": rows}))
        now, claimed = datetime.now(UTC), claim_form(body)
        assert await client.find(REQUEST.model, claimed, now, frozenset({"known"}), 0) == "match"
        assert await client.find(REQUEST.model, claimed, now, frozenset({"known", "match"}), 0) is None


async def test_failed_calls_of_earlier_claims_in_the_history() -> None:
    """So many failed calls as earlier claims never learned the ids of are theirs; a call with an image is taken."""
    body = REQUEST.body([])

    def row(name: str, status: str) -> dict[str, Any]:
        return {"request_id": name, "model_name": REQUEST.model, "model_status": status, "request_body": repr(body)}

    async with server() as script, backend(script) as client:
        one, two = [row("a", "FAILED")], [row("b", "FAILED"), row("a", "FAILED")]
        for rows, unnamed, expected in (
            (one, 0, "a"),
            (one, 1, None),
            (two, 1, "b"),
            (two, 2, None),
            ([row("c", "COMPLETED"), *two], 2, "c"),
            ([row("c", "PENDING"), *two], 2, "c"),
        ):
            script.on(HISTORY, (200, {"data": rows}))
            found = await client.find(REQUEST.model, claim_form(body), datetime.now(UTC), frozenset(), unnamed)
            assert found == expected


async def test_paging_of_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paging stops at a page from before the claim; more pages than can be read prove nothing."""
    now = datetime.now(UTC)

    def page(age: timedelta) -> dict[str, Any]:
        moment = (now - age).isoformat()
        rows = [{"request_id": f"{age}-{n}", "model_name": REQUEST.model, "model_created": moment} for n in range(100)]
        return {"data": rows}

    async with server() as script, backend(script) as client:
        script.on(HISTORY, (200, page(timedelta())), (200, page(timedelta(hours=5))), (500, {"error": "not asked for"}))
        assert await client.find(REQUEST.model, {"prompt": "x"}, now, frozenset(), 0) is None
        assert script.calls(HISTORY) == 2
    monkeypatch.setattr(segmind_history, "MAX_PAGES", 2)
    async with server() as script, backend(script) as client:
        script.on(HISTORY, (200, page(timedelta())))
        with pytest.raises(BackendError, match="more than 200 requests"):
            await client.find(REQUEST.model, {"prompt": "x"}, now, frozenset(), 0)


async def test_looks_at_the_same_time_share_a_listing() -> None:
    """A hundred rows that look at once cost two listings: one under way, one begun after the rest asked."""
    async with server() as script, backend(script) as client:
        script.on(HISTORY, (200, {"data": []}))
        now = datetime.now(UTC)
        await asyncio.gather(*(client.find(REQUEST.model, {"prompt": "x"}, now, frozenset(), 0) for _ in range(100)))
        assert script.calls(HISTORY) <= 2


async def test_a_sandbox_cannot_answer_a_real_run() -> None:
    """The engine is checked on every answer to a POST."""
    async with server() as script, backend(script) as client:
        client.expect(sandbox=False)
        script.on(SUBMIT, (200, {"request_id": "r1"}, {"x-imagegen-engine": "sandbox"}))
        with pytest.raises(BackendError) as caught:
            await client.submit(REQUEST, [])
    assert caught.value.kind == "sandbox_mismatch"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    status=st.sampled_from([200, 201, 204, 301, 400, 404, 406, 418, 422, 429, 500, 502, 599]),
    body=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.text() | st.floats(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["status", "request_id", "output", "error", "images", "url"]), x)
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
    headers=st.dictionaries(
        st.sampled_from(
            [
                *("x-request-id", "x-cost", "x-generation-time", "x-seed-value", "x-remaining-credits"),
                *("x-rate-limit-reset-at-utc", "retry-after", "content-type", "location", "x-imagegen-engine"),
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
        | st.sampled_from(["nan", "-inf", "1e999", "0", "-1", "image/png", "9" * 30]),
    ),
    version=st.sampled_from(["v1", "v2"]),
)
def test_no_answer_is_without_a_meaning(status: int, body: bytes, headers: dict[str, str], version: str) -> None:
    """Whatever a server answers ends in bytes or in a BackendError of a known kind, never in anything else."""
    import asyncio  # noqa: PLC0415 - hypothesis wants a plain function

    async def go() -> None:
        async with server() as script:
            for path in (SUBMIT, "/v1/flux-2-klein-9b", STATUS, RESULT):
                script.on(path, (status, body, headers))
            async with backend(script, version, deadline=0.1) as client:
                kinds: list[str] = []
                try:
                    submission = await client.submit(REQUEST, [])
                    script.on(STATUS, (404, b""))
                    await client.collect(submission)
                except BackendError as error:
                    kinds.append(error.kind)
                assert set(kinds) <= set(OUTCOMES)

    asyncio.run(go())


async def test_a_poll_refused_with_429_is_tried_again_at_the_rate_of_submits() -> None:
    """After a 429 on a poll the polls go through the rate gate, and the result still comes."""
    clock = SystemClock()
    gate = RateGate(None, clock.monotonic, clock.sleep)
    acquired = 0
    acquire = gate.acquire

    async def counted() -> None:
        nonlocal acquired
        acquired += 1
        await acquire()

    gate.acquire = counted  # type: ignore[method-assign]
    async with server() as script:
        script.on(SUBMIT, (200, {"request_id": "r1", "status": "QUEUED"}))
        script.on(STATUS, (200, {"status": "QUEUED"}), (429, {}, {"Retry-After": "1"}), (200, {"status": "COMPLETED"}))
        data = "data:image/png;base64," + base64.b64encode(PNG).decode()
        script.on(RESULT, (200, {"status": "COMPLETED", "output": data}))
        client = SegmindBackend(Endpoints.of(script.url, None), SecretStr(KEY), limiter=gate)
        try:
            assert (await client.collect(await client.submit(REQUEST, []))).data == PNG
        finally:
            await client.aclose()
        # The poll after the 429, and the fetch of the result.
        assert acquired == 2
        assert script.calls(SUBMIT) == 1
