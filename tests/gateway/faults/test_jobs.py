"""Faults of jobs, on a real socket, as our client sees them: states, polls, downloads; which calls a rule meets."""

import asyncio
import io
import json
from pathlib import Path

import httpx
import pytest
from PIL import Image

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.gateway.faults import Fault, FaultScript, load_faults
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.net.client import make_client
from tests.gateway.faults.conftest import KEY, MODEL, drawn, misbehaving, posted

pytestmark = pytest.mark.anyio


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
