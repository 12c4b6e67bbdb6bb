"""Faults of any call, on a real socket, as our own client sees them: refused, cut, late or spoilt."""

import threading
import time
from typing import Any

import httpx
import pytest

from prefect_imagegen.net.client import never_sent
from tests.gateway.faults.conftest import MODEL, accepted, misbehaving, posted

pytestmark = pytest.mark.anyio


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
