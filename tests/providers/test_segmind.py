"""The Segmind provider against a server that answers as it is told: shapes, secrets, and what failures mean."""

import asyncio
import base64
import gzip
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.history_lookup import Finding, Window, claim_form, finding_of
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.net.bodies import MAX_BODY_BYTES
from prefect_imagegen.providers.segmind import history as segmind_history
from prefect_imagegen.providers.segmind import http as segmind_http
from prefect_imagegen.providers.segmind import provider as segmind
from prefect_imagegen.providers.segmind.provider import Endpoints, SegmindProvider

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
        self.requests: list[web.Request] = []
        self.url = ""

    def on(self, path: str, *answers: Any) -> None:
        self.answers[path] = list(answers)

    def calls(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        await request.read()
        queue = self.answers.get(request.path, [(404, {"error": "not found"})])
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        if callable(answer):
            return await answer(request)
        status, body, *headers = answer
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=data, headers=headers[0] if headers else {})


@asynccontextmanager
async def server(port: int = 0) -> AsyncIterator[Script]:
    script = Script()
    runner = web.ServerRunner(web.Server(script.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield script
    finally:
        await runner.cleanup()


@asynccontextmanager
async def provider(script: Script, version: str = "v2", deadline: float = 5.0) -> AsyncIterator[SegmindProvider]:
    endpoints = Endpoints.of(script.url, None)
    client = SegmindProvider(endpoints, SecretStr(KEY), api_version=version, deadline=deadline)
    try:
        yield client
    finally:
        await client.aclose()


SUBMIT = "/v2/flux-2-klein-9b"
STATUS, RESULT = "/v2/requests/r1/status", "/v2/requests/r1"
HISTORY = "/inference-request/request-history"


async def delivered(script: Script, version: str = "v2") -> bytes:
    async with provider(script, version) as client:
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
    async with server() as script, provider(script) as client:
        script.on(SUBMIT, answer)
        with pytest.raises(ProviderError) as caught:
            await client.submit(REQUEST, [])
    assert caught.value.kind == kind
    assert KEY not in str(caught.value)
    assert len(script.requests) == 1


async def test_the_reset_time_of_a_429_is_read() -> None:
    """`x-rate-limit-reset-at-utc` and Retry-After say how long to wait."""
    async with server() as script, provider(script) as client:
        script.on(SUBMIT, (429, {}, {"retry-after": "7"}))
        with pytest.raises(ProviderError) as caught:
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


async def test_a_sandbox_cannot_answer_a_real_run() -> None:
    """The engine is checked on every answer to a POST."""
    async with server() as script, provider(script) as client:
        client.expect(sandbox=False)
        script.on(SUBMIT, (200, {"request_id": "r1"}, {"x-imagegen-engine": "sandbox"}))
        with pytest.raises(ProviderError) as caught:
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
    """Whatever a server answers ends in bytes or in a ProviderError of a known kind, never in anything else."""
    import asyncio  # noqa: PLC0415 - hypothesis wants a plain function

    async def go() -> None:
        async with server() as script:
            for path in (SUBMIT, "/v1/flux-2-klein-9b", STATUS, RESULT):
                script.on(path, (status, body, headers))
            async with provider(script, version, deadline=0.1) as client:
                kinds: list[str] = []
                try:
                    submission = await client.submit(REQUEST, [])
                    script.on(STATUS, (404, b""))
                    await client.collect(submission)
                except ProviderError as error:
                    kinds.append(error.kind)
                assert set(kinds) <= set(OUTCOMES)

    asyncio.run(go())


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


async def test_a_half_character_in_an_answer_ends_nothing() -> None:
    """An id that no file can hold is taken as well as can be: the call is accepted, under a name that can be stored."""
    async with server() as script, provider(script) as client:
        script.on(SUBMIT, (200, b'{"request_id": "r1\\ud83d", "status": "QUEUED"}'))
        submission = await client.submit(REQUEST, [])
        assert str(submission.request_id).encode() == b"r1?"


async def test_a_failure_that_names_a_cost_says_so() -> None:
    """What a failed job cost all the same is told with its failure, from its record and from the history."""
    failed = {"status": "FAILED", "error": "no", "request_id": "r1", "metrics": {"cost": 0.04}}
    recorded = {"request_id": "r1", "model_status": "FAILED", "credits_deduction": 0.04, "error": "no"}
    async with server() as script, provider(script) as client:
        script.on(STATUS, (422, failed), (404, {}))
        script.on(RESULT, (422, failed))
        script.on(f"{HISTORY}/r1", (200, {"data": recorded}))
        for _ in range(2):
            with pytest.raises(ProviderError) as caught:
                await client.fetch("r1")
            assert (caught.value.kind, caught.value.cost_usd) == ("generation_failed", 0.04)


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


@pytest.mark.parametrize(("figures", "limit"), [({"max_batch": 8}, 16), ({"max_batch": 1}, 2), ({}, None)])
async def test_a_worker_is_kept_full(figures: dict[str, int], limit: int | None) -> None:
    """A worker that tells its batch is given two: one that runs, and a whole one that waits."""
    async with server() as script, provider(script) as client:
        script.on("/health", (200, {"status": "ok", **figures}))
        assert (await client.health()).limit == limit


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


@pytest.mark.parametrize("status", [200, 202])
async def test_an_answer_that_cannot_be_unpacked_is_said_to_be_so(status: int) -> None:
    """An answer in a packing that nobody asked for is named; its call is held."""
    async with server() as script, provider(script) as client:
        script.on(SUBMIT, (status, b"\x0b\x02\x80hello\x03", {"content-encoding": "br"}))
        with pytest.raises(ProviderError) as caught:
            await client.submit(REQUEST, [])
    assert caught.value.kind == "unknown"
    assert "the answer is packed as br, which was not asked for" in caught.value.message
    assert script.calls(SUBMIT) == 1


def packed(data: bytes, times: int) -> bytes:
    for _ in range(times):
        data = gzip.compress(data, mtime=0)
    return data


@pytest.mark.parametrize(
    ("encoding", "body", "words"),
    [
        ("gzip", packed(bytes(MAX_BODY_BYTES + 1), 1), "larger than"),
        ("gzip, gzip", packed(bytes(1 << 28), 2), "not asked for"),
        ("br", b"\x00" * 64, "not asked for"),
        ("zstd", b"\x28\xb5\x2f\xfd", "not asked for"),
        ("deflate", b"\x78\x9c", "not asked for"),
        ("gzip", packed(PNG, 1)[:-9], "broke off"),
        ("gzip", b"\x1f\x8b" + bytes(64), "cannot be unpacked"),
    ],
)
async def test_no_packed_answer_fills_the_memory(
    encoding: str, body: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is small on the wire and huge when unpacked is refused before it is; the row stays submitted."""
    monkeypatch.setattr(segmind_http, "GET_TRIES", 1)
    async with server() as script, provider(script) as client:
        script.on(STATUS, (200, {"status": "COMPLETED"}))
        script.on(RESULT, (200, {"status": "COMPLETED", "output": f"{script.url}/0"}))
        script.on("/0", (200, body, {"content-encoding": encoding}))
        with pytest.raises(ProviderError, match=words) as caught:
            await client.fetch("r1")
        assert caught.value.kind == "submitted"
        assert script.requests[-1].headers["accept-encoding"] == "gzip"


async def test_a_packed_answer_is_unpacked() -> None:
    """An answer in gzip is read as any other."""
    gzipped = {"content-encoding": "gzip"}
    async with server() as script, provider(script) as client:
        script.on(STATUS, (200, packed(json.dumps({"status": "COMPLETED"}).encode(), 1), gzipped))
        script.on(RESULT, (200, {"status": "COMPLETED", "output": f"{script.url}/0"}))
        script.on("/0", (200, packed(PNG, 1), gzipped))
        assert (await client.fetch("r1")).data == PNG
