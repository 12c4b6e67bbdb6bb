"""The fault script does what it says, on a real socket, as our own client sees it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.gateway.faults import Fault, FaultScript, load_faults
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.net.client import TRANSPORT_ERRORS, make_client, never_sent

pytestmark = pytest.mark.anyio
MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}


async def posted(version: str, *faults: dict[str, Any], calls: int = 1) -> tuple[list[Any], EmbeddedGateway]:
    """Answers (or transport errors) of some POSTs to a gateway with these faults, and the stopped gateway."""
    script = FaultScript(faults=[Fault(**{"fault": "status", **fault}) for fault in faults])
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        found: list[Any] = []
        async with make_client(max_connections=4, read_timeout=2.0) as client:
            for number in range(calls):
                body = {"prompt": f"p{number}", "seed": number}
                try:
                    found.append(await client.post(f"{gateway.url}/{version}/{MODEL}", json=body, headers=KEY))
                except TRANSPORT_ERRORS as error:
                    found.append(error)
        return found, gateway


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 401, 402, 403, 404, 410])
async def test_status_before_and_after(status: int) -> None:
    """A status strikes before the call is taken, or after: v2 goes on with it unseen, v1 charges for 200 only."""
    for version, when, taken in (("v1", "before", 0), ("v1", "after", 1), ("v2", "before", 0), ("v2", "after", 1)):
        (answer,), gateway = await posted(version, {"status": status, "when": when})
        assert answer.status_code == status
        assert answer.json()["error"]
        assert len(gateway.books.records) == taken
        if version == "v1":
            assert not gateway.books.billed
            assert gateway.books.charged == 0
            assert {record.status for record in gateway.books.records.values()} <= {"FAILED"}
        assert ("x-rate-limit-reset-at-utc" in answer.headers) == (status == 429)
        assert "retry-after" not in answer.headers
        assert answer.headers["x-imagegen-engine"] == "sandbox"


async def test_disconnect_before_and_after() -> None:
    """A dropped connection is no answer, never proof that nothing was sent; after the work, it is billed."""
    for when, billed in (("before", 0), ("after", 1)):
        (error,), gateway = await posted("v1", {"fault": "disconnect", "when": when})
        assert isinstance(error, Exception)
        assert not never_sent(error)
        assert len(gateway.books.billed) == billed


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
                if all(record.finished is not None for record in list(gateway.books.records.values())):
                    break
                await asyncio.sleep(0.01)
            found = [await client.get(f"{gateway.url}/v2/requests/{one}", headers=KEY) for one in ids]
            assert (found[0].status_code, found[0].json()["error"]) == (422, "no luck")
            assert (found[1].status_code, found[1].json()["status"]) == (200, "FAILED")
            assert found[2].status_code == 404
            history = await client.get(f"{gateway.url}/inference-request/request-history/{ids[2]}", headers=KEY)
            assert history.json()["data"]["model_status"] == "COMPLETED"
            black = await client.get(found[3].json()["output"])
            assert len(black.content) < 1000
    assert len(gateway.books.billed) == 2


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
