"""The fault script does what it says, on a real socket, as our own client sees it."""

import ast
import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.gateway.faults import Fault, FaultScript, load_faults
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.net.client import TRANSPORT_ERRORS, make_client, never_sent

pytestmark = pytest.mark.anyio
MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}


@contextmanager
def misbehaving(*faults: dict[str, Any], **settings: Any) -> Iterator[tuple[EmbeddedGateway, httpx.Client]]:
    """A gateway with these faults, and a client with a key."""
    script = FaultScript(faults=[Fault(**fault) for fault in faults])
    with (
        EmbeddedGateway(GatewaySettings(faults=script, **settings)) as running,
        httpx.Client(base_url=running.url, headers=KEY, timeout=30) as client,
    ):
        yield running, client


def accepted(client: httpx.Client, prompt: str = "a", **body: Any) -> str:
    """The request_id of a v2 call that was accepted."""
    answer = client.post(f"/v2/{MODEL}", json={"prompt": prompt, **body})
    return str(answer.json()["request_id"])


def drawn(running: EmbeddedGateway, client: httpx.Client, prompt: str = "a", **body: Any) -> str:
    """The request_id of a v2 call whose work is done; nothing is polled for it."""
    request_id = accepted(client, prompt, **body)
    for _ in range(1000):
        if running.account_state.records[request_id].finished is not None:
            return request_id
        time.sleep(0.01)
    raise AssertionError("the job did not end")


async def posted(version: str, *faults: dict[str, Any], calls: int = 1) -> tuple[list[Any], EmbeddedGateway]:
    """Answers (or transport errors) of some POSTs to a gateway with these faults, and the stopped gateway."""
    script = FaultScript(faults=[Fault(**{"fault": "status", **fault}) for fault in faults])
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        answers: list[Any] = []
        async with make_client(max_connections=4, read_timeout=2.0) as client:
            for number in range(calls):
                body = {"prompt": f"p{number}", "seed": number}
                try:
                    answers.append(await client.post(f"{gateway.url}/{version}/{MODEL}", json=body, headers=KEY))
                except TRANSPORT_ERRORS as error:
                    answers.append(error)
        return answers, gateway


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 401, 402, 403, 404, 410])
async def test_status_before_and_after(status: int) -> None:
    """A status strikes before the call is taken, or after: v2 goes on with it unseen, v1 charges for 200 only."""
    for version, when, taken in (("v1", "before", 0), ("v1", "after", 1), ("v2", "before", 0), ("v2", "after", 1)):
        (answer,), gateway = await posted(version, {"status": status, "when": when})
        assert answer.status_code == status
        assert answer.json()["error"]
        assert len(gateway.account_state.records) == taken
        if version == "v1":
            assert not gateway.account_state.billed
            assert gateway.account_state.charged == 0
            assert {record.status for record in gateway.account_state.records.values()} <= {"FAILED"}
        assert ("x-rate-limit-reset-at-utc" in answer.headers) == (status == 429)
        assert "retry-after" not in answer.headers
        assert answer.headers["x-imagegen-engine"] == "sandbox"


async def test_disconnect_before_and_after() -> None:
    """A dropped connection is no answer, never proof that nothing was sent; after the work, it is billed."""
    for when, billed in (("before", 0), ("after", 1)):
        (error,), gateway = await posted("v1", {"fault": "disconnect", "when": when})
        assert isinstance(error, Exception)
        assert not never_sent(error)
        assert len(gateway.account_state.billed) == billed


async def test_hang_outlasts_the_client() -> None:
    """A hanging call ends by the client's own time-out."""
    (error,), _ = await posted("v2", {"fault": "hang"})
    assert isinstance(error, httpx.TimeoutException)
    assert not never_sent(error)


async def test_bodies_that_lie() -> None:
    """Bodies end before their announced length; HTML, JSON errors and wrong content types come with status 200."""
    for name in ("truncated_body", "wrong_length"):
        (error,), _ = await posted("v1", {"fault": name})
        assert isinstance(error, Exception)
    (html,), _ = await posted("v2", {"fault": "html"})
    assert (html.status_code, html.text[:6]) == (200, "<html>")
    (wrong,), _ = await posted("v1", {"fault": "json_error"})
    assert (wrong.status_code, "error" in wrong.json()) == (200, True)
    (typed,), _ = await posted("v1", {"fault": "wrong_content_type"})
    assert typed.headers["content-type"].startswith("text/plain")
    assert typed.content.startswith(b"\x89PNG")
    (moved,), _ = await posted("v1", {"fault": "redirect"})
    assert moved.status_code == 302
    (slow,), _ = await posted("v1", {"fault": "slow_body", "seconds": 0.2})
    assert slow.content.startswith(b"\x89PNG")


async def test_faults_of_the_job() -> None:
    """FAILED, unknown states, expired records and black images are properties of a v2 job."""
    rules = [
        {"fault": "failed", "prompt_contains": "p0", "text": "no luck"},
        {"fault": "failed", "prompt_contains": "p1", "status": 200},
        {"fault": "expired_record", "prompt_contains": "p2"},
        {"fault": "black_image", "prompt_contains": "p3"},
    ]
    script = FaultScript(faults=[Fault(**rule) for rule in rules])
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        async with make_client(max_connections=4) as client:
            ids = []
            for number in range(4):
                answer = await client.post(f"{gateway.url}/v2/{MODEL}", json={"prompt": f"p{number}"}, headers=KEY)
                ids.append(answer.json()["request_id"])
            for _ in range(1000):
                if all(record.finished is not None for record in list(gateway.account_state.records.values())):
                    break
                await asyncio.sleep(0.01)
            results = [await client.get(f"{gateway.url}/v2/requests/{job_id}", headers=KEY) for job_id in ids]
            assert (results[0].status_code, results[0].json()["error"]) == (422, "no luck")
            assert (results[1].status_code, results[1].json()["status"]) == (200, "FAILED")
            assert results[2].status_code == 404
            history = await client.get(f"{gateway.url}/inference-request/request-history/{ids[2]}", headers=KEY)
            assert history.json()["data"]["model_status"] == "COMPLETED"
            black = await client.get(results[3].json()["output"])
            assert len(black.content) < 1000
    assert len(gateway.account_state.billed) == 2


async def test_an_unknown_state_passes() -> None:
    """A job may show a state that no page names, and completes all the same."""
    script = FaultScript(faults=[Fault(fault="unknown_state")])
    with EmbeddedGateway(GatewaySettings(faults=script, latency_s=0.3)) as gateway:
        async with make_client(max_connections=4) as client:
            answer = await client.post(f"{gateway.url}/v2/{MODEL}", json={"prompt": "a"}, headers=KEY)
            states = []
            while "COMPLETED" not in states:
                polled = await client.get(answer.json()["status_url"], headers=KEY)
                states.append(polled.json()["status"])
    assert set(states) == {"WARMING_UP", "COMPLETED"}


async def test_how_often_a_rule_strikes() -> None:
    """`first`, `every`, `times` and `share` choose the calls; a share is the same calls every time."""
    for rule, expected in (
        ({"first": 2}, [503, 503, 200, 200, 200, 200]),
        ({"every": 3}, [200, 200, 503, 200, 200, 503]),
        ({"every": 2, "times": 1}, [200, 503, 200, 200, 200, 200]),
    ):
        answers, _ = await posted("v2", rule, calls=6)
        assert [answer.status_code for answer in answers] == expected
    struck = [FaultScript(faults=[Fault(fault="hang", share=0.25, seed=5)]) for _ in range(2)]
    picks = [[script.pick("submit") is not None for _ in range(400)] for script in struck]
    assert picks[0] == picks[1]
    assert 60 < sum(picks[0]) < 140


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ('{"faults": [{"fault": "earthquake"}]}', "faults.0.fault"),
        ('{"faults": [{"fault": "hang", "evry": 2}]}', "faults.0.evry"),
        ('{"faults": [{"fault": "status", "status": 7}]}', "faults.0.status"),
        ('{"faults": [{"fault": "history_shape"}]}', "needs a shape"),
        ('{"faults": [{"fault": "history_shape", "shape": "oval"}]}', "faults.0.shape"),
        ('{"faults": [{"fault": "clamp_pages", "on": ["status"]}]}', "strikes only history"),
        ('{"faults": [{"fault": "small_pages"}]}', "needs per_page"),
        ('{"faults": [{"fault": "hang", "per_page": 3}]}', "clamp_pages and small_pages only"),
        ('{"faults": [{"fault": "html", "body": {}}]}', "json_error and status only"),
        ('{"faults": [{"fault": "other_format", "on": ["history"]}]}', "strikes only download and run"),
    ],
)
def test_a_wrong_script_is_refused(text: str, said: str, tmp_path: Path) -> None:
    """A script that cannot be understood is refused, naming the file and the place."""
    path = tmp_path / "faults.json"
    path.write_text(text)
    with pytest.raises(RefusedError, match=r"faults\.json") as caught:
        load_faults(str(path))
    assert said in str(caught.value)
    with pytest.raises(RefusedError):
        load_faults(str(tmp_path / "missing.json"))
    assert json.dumps(FaultScript().model_dump())


@pytest.mark.parametrize("detail", [False, True], ids=["list", "detail"])
@pytest.mark.parametrize("shape", ["items", "requests", "bare", "error", "empty_body", "cut", "html"])
def test_a_history_in_another_envelope(shape: str, *, detail: bool) -> None:
    """The right rows come with status 200 in another envelope, or in none that can be read."""
    with misbehaving({"fault": "history_shape", "shape": shape, "times": 1}) as (running, client):
        request_id = drawn(running, client)
        path = "/inference-request/request-history" + (f"/{request_id}" if detail else "")
        answer, right = client.get(path), client.get(path).json()["data"]
    rows = [right] if detail else right
    assert [row["request_id"] for row in rows] == [request_id]
    assert answer.status_code == 200
    assert answer.headers["x-imagegen-engine"] == "sandbox"
    if shape in ("empty_body", "cut", "html"):
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert (shape == "empty_body") == (answer.content == b"")
        with pytest.raises(json.JSONDecodeError):
            answer.json()
        return
    expected = {"items": {"data": {"items": rows}}, "requests": {"requests": rows}, "bare": right}
    assert answer.json() == expected.get(shape, {"error": "injected by the fault script"})


@pytest.mark.parametrize("detail", [False, True], ids=["list", "detail"])
@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ("text_numbers", "request_body"),
        ("no_body", "request_body"),
        ("no_url", "generation_url"),
        ("no_time", "model_created"),
        ("no_id", "request_id"),
    ],
)
def test_history_rows_that_lack_something(shape: str, field: str, *, detail: bool) -> None:
    """Rows come with one field changed or missing, and are right in all others."""
    with misbehaving({"fault": "history_shape", "shape": shape, "times": 1}) as (running, client):
        request_id = drawn(running, client, seed=7, go_fast=True, cfg=2.5, negative_prompt="", image_urls=[])
        path = "/inference-request/request-history" + (f"/{request_id}" if detail else "")
        row, right = (client.get(path).json()["data"] for _ in range(2))
    row, right = (row, right) if detail else (row[0], right[0])
    was, value = right.pop(field), row.pop(field, "absent")
    assert row == right
    assert was
    if shape == "text_numbers":
        changed = {"seed": "7", "go_fast": "true", "cfg": "2.5"}
        assert ast.literal_eval(value) == ast.literal_eval(was) | changed
    else:
        assert value == ("absent" if shape in ("no_time", "no_id") else None)


def test_pages_of_a_history_that_have_a_will_of_their_own() -> None:
    """Pages hold fewer rows than asked for, and page numbers beyond the last answer the last page again."""
    faults = [{"fault": "clamp_pages", "per_page": 2, "first": 4}, {"fault": "small_pages", "per_page": 1}]
    with misbehaving(*faults) as (running, client):
        ids = [drawn(running, client, f"p{number}") for number in range(3)][::-1]

        def page(number: int) -> list[str]:
            query = {"page": number, "per_page": 100}
            rows = client.get("/inference-request/request-history", params=query).json()["data"]
            return [row["request_id"] for row in rows]

        assert [page(number) for number in (1, 2, 3, 99)] == [ids[:2], ids[2:], ids[2:], ids[2:]]
        assert [page(number) for number in (1, 3, 4)] == [ids[:1], ids[2:], []]
    with misbehaving({"fault": "clamp_pages"}) as (_, client):
        assert client.get("/inference-request/request-history", params={"page": 5}).json() == {"data": [], "total": 0}


@pytest.mark.parametrize("status", [503, 500, 429, 404, 200])
@pytest.mark.parametrize("call", ["status", "result"])
@pytest.mark.parametrize("fault", ["status", "json_error"])
def test_a_poll_is_answered_with_json_of_an_error(fault: str, call: str, status: int) -> None:
    """A poll may be answered with any status and any JSON; the job goes on, and is whole when asked for again."""
    body = {"status": "error", "message": "busy"}
    with misbehaving({"fault": fault, "status": status, "on": [call], "body": body, "times": 1}) as (running, client):
        request_id = drawn(running, client)
        path = f"/v2/requests/{request_id}" + ("/status" if call == "status" else "")
        answers = [client.get(path) for _ in range(2)]
    assert (answers[0].status_code, answers[0].json()) == (status, body)
    assert ("x-rate-limit-reset-at-utc" in answers[0].headers) == (status == 429)
    assert (answers[1].status_code, answers[1].json()["status"]) == (200, "COMPLETED")


async def test_what_a_v1_call_is_charged_for() -> None:
    """Work that is answered with anything but 200 costs nothing, whatever the fault is called."""
    for fault, status, billed in (("json_error", 503, 0), ("html", 502, 0), ("redirect", 302, 0), ("html", 200, 1)):
        (answer,), gateway = await posted("v1", {"fault": fault, "status": status, "when": "after"})
        assert answer.status_code == status
        assert len(gateway.account_state.billed) == billed


@pytest.mark.parametrize("when", ["before", "after"])
def test_any_answer_can_come_late(when: str) -> None:
    """`hang` holds back the head of every kind of answer for its seconds, and the answer is right when it comes."""
    calls = ["submit", "run", "status", "result", "download", "history", "credits", "upload"]
    with misbehaving({"fault": "hang", "seconds": 0.1, "when": when, "on": calls}) as (_, client):
        started = [time.monotonic()]

        def late(method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
            answer = client.request(method, path, json=body)
            started.append(time.monotonic())
            assert started[-1] - started[-2] >= 0.1
            assert answer.status_code == 200
            return answer

        late("POST", f"/v1/{MODEL}", {"prompt": "v1"})
        request_id = late("POST", f"/v2/{MODEL}", {"prompt": "v2"}).json()["request_id"]
        while late("GET", f"/v2/requests/{request_id}/status").json()["status"] != "COMPLETED":
            pass
        url = late("GET", f"/v2/requests/{request_id}").json()["output"]
        assert late("GET", url).content.startswith(b"\x89PNG")
        assert len(late("GET", "/inference-request/request-history").json()["data"]) == 2
        assert late("GET", f"/inference-request/request-history/{request_id}").json()["data"]["generation_url"] == url
        late("GET", "/v1/get-user-credits")
        late("POST", "/upload-asset", {"data_urls": ["data:image/png;base64,iVBORw0KGgo="]})


def test_work_goes_on_while_its_answer_hangs() -> None:
    """A call that hangs `after` is recorded and drawn meanwhile; one that hangs `before` is not there yet."""
    for when, taken in (("before", 0), ("after", 1)):
        with misbehaving({"fault": "hang", "seconds": 2.0, "when": when, "first": 1}) as (running, client):
            thread = threading.Thread(target=accepted, args=(client,))
            thread.start()
            while running.account_state.calls["submit"] == 0 or len(running.account_state.billed) < taken:
                assert thread.is_alive()
                time.sleep(0.01)
            assert (len(running.account_state.records), thread.is_alive()) == (taken, True)
            thread.join()
            assert len(running.account_state.records) == 1


def test_an_answer_made_up_before_it_hangs_is_old_when_it_comes() -> None:
    """A poll that hangs `after` tells the state of before; one that hangs `before` tells that of its end."""
    for when, ended in (("after", False), ("before", True)):
        rule = {"fault": "hang", "seconds": 1.0, "when": when, "on": ["status"]}
        with misbehaving(rule, latency_s=0.5) as (running, client):
            request_id = accepted(client)
            answer = client.get(f"/v2/requests/{request_id}/status").json()
            assert (answer["status"] == "COMPLETED") == ended
            assert len(running.account_state.billed) == 1


def test_downloads_of_junk() -> None:
    """A download may be a page of HTML, cut, empty, noise or another format, and is whole when asked for again."""
    names = ["html", "truncated_body", "empty_body", "junk", "other_format", "wrong_content_type"]
    rules = [{"fault": name, "on": ["download"], "times": 1} for name in names]
    with misbehaving(*rules, {"fault": "html", "status": 403, "on": ["download"], "times": 1}) as (running, client):
        request_id = drawn(running, client, image_format="jpeg")
        url = f"/generations/{request_id}.jpeg"
        html = client.get(url)
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(url)
        empty, junk, other, typed, forbidden, whole = (client.get(url) for _ in range(6))
    assert (html.status_code, html.text[:6]) == (200, "<html>")
    assert (empty.status_code, empty.content, empty.headers["content-length"]) == (200, b"", "0")
    assert (junk.status_code, junk.headers["content-type"]) == (200, "image/png")
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(junk.content))
    assert other.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(other.content)).format == "PNG"
    assert typed.headers["content-type"].startswith("text/plain")
    assert (forbidden.status_code, forbidden.text[:6]) == (403, "<html>")
    assert typed.content == whole.content
    assert Image.open(io.BytesIO(whole.content)).format == "JPEG"


def test_any_json_answer_can_be_spoilt() -> None:
    """What spoils a body spoils that of polls, history, balance and uploads too, also of jobs that are not done."""
    calls = ["status", "result", "history", "credits", "upload"]
    with misbehaving({"fault": "junk", "on": calls}, {"fault": "hang", "when": "during"}) as (_, client):
        request_id = accepted(client)
        paths = (f"/v2/requests/{request_id}/status", f"/v2/requests/{request_id}", "/v1/get-user-credits")
        answers = [client.get(path) for path in (*paths, "/inference-request/request-history")]
        answers.append(client.post("/upload-asset", json={"data_urls": ["data:image/png;base64,iVBORw0KGgo="]}))
    assert {answer.headers["content-type"] for answer in answers} == {"image/png"}
    assert len({answer.content for answer in answers}) == 1
