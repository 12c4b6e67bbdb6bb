"""Keys, accounts and credits of a gateway, on a real socket: who may call, and what is charged."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.gateway.server import check_settings
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.gateway.routes.conftest import MODEL, Clock, finished, gateway


def test_the_key_is_asked_for() -> None:
    """Missing, wrong and Bearer keys are 401 with the API's texts; health, outputs and the catalogue are open."""
    with gateway(api_key=SecretStr("right")) as (running, _), httpx.Client(base_url=running.url) as client:
        paths = ("/v1/get-user-credits", "/inference-request/request-history", "/v2/requests/x", "/_gateway/stats")
        for path in paths:
            assert client.get(path).json() == {"error": "Missing Authorization or x-api-key in header"}
            for headers in ({"x-api-key": "wrong"}, {"authorization": "Bearer right"}):
                answer = client.get(path, headers=headers)
                assert (answer.status_code, answer.json()["error"][:13]) == (401, "Unauthorized.")
        assert client.get("/v1/get-user-credits", headers={"x-api-key": "right"}).status_code == 200
        assert client.get("/health").json()["engine"] == "sandbox"
        assert client.get("/inference-model-information/list").status_code == 200


def test_money() -> None:
    """A price is reserved, charged on success only, told in headers and metrics, and 406 when it is not there."""
    with gateway(credits=0.1, price_usd=0.04) as (running, client):
        answer = client.post(f"/v1/{MODEL}", json={"prompt": "a"})
        assert (answer.headers["x-cost"], answer.headers["x-remaining-credits"]) == ("0.04", "0.06")
        assert client.post(f"/v1/{MODEL}", json={"prompt": ""}).status_code == 400
        done = client.post(f"/v2/{MODEL}", json={"prompt": "b"}).json()
        metrics = finished(client, done["request_id"]).json()["metrics"]
        assert (metrics["cost"], metrics["remaining_credits"]) == (0.04, 0.02)
        refused = client.post(f"/v2/{MODEL}", json={"prompt": "c"})
        assert refused.status_code == 406
        assert refused.json()["error"].startswith("Insufficient credits")
        assert client.get("/v1/get-user-credits").json() == {"credits": 0.02, "free-credits": 0.0}
        assert running.account_state.statistics()["charged_usd"] == 0.08


def test_what_is_left_is_always_told() -> None:
    """Without a limit the balance, the header of v1 and the metrics of v2 all say a million, in plain figures."""
    with gateway() as (_, client):
        assert client.post(f"/v1/{MODEL}", json={"prompt": "a"}).headers["x-remaining-credits"] == "1000000"
        done = client.post(f"/v2/{MODEL}", json={"prompt": "b"}).json()
        assert finished(client, done["request_id"]).json()["metrics"]["remaining_credits"] == 1e6
        assert client.get("/v1/get-user-credits").json()["credits"] == 1e6


def test_accounts_are_apart() -> None:
    """Each account has money, rate, history and jobs of its own, whichever of its keys asks; counters are of all."""
    accounts = {"alice": [SecretStr("a1"), SecretStr("a2")], "bob": [SecretStr("b1")]}
    more = {"credits": 0.1, "price_usd": 0.04, "requests_per_minute": 3}
    with gateway(accounts=accounts, **more) as (running, client):

        def ask(key: str, method: str, path: str, **body: Any) -> httpx.Response:
            return client.request(method, path, headers={"x-api-key": key}, json=body or None)

        assert ask("k", "GET", "/v1/get-user-credits").status_code == 401
        first = ask("a1", "POST", f"/v1/{MODEL}", prompt="a")
        assert first.headers["x-remaining-credits"] == "0.06"
        job = ask("b1", "POST", f"/v2/{MODEL}", prompt="b").json()["request_id"]
        client.headers["x-api-key"] = "b1"
        assert finished(client, job).json()["metrics"]["remaining_credits"] == 0.06
        history = "/inference-request/request-history"
        drawn = first.headers["x-request-id"]
        for key, own, foreign in (("a1", drawn, job), ("b1", job, drawn)):
            rows = ask(key, "GET", history).json()
            assert ([row["request_id"] for row in rows["data"]], rows["total"]) == ([own], 1)
            assert ask(key, "GET", f"{history}/{own}").status_code == 200
            assert ask(key, "GET", f"{history}/{foreign}").status_code == 404
        for path in (f"/v2/requests/{job}", f"/v2/requests/{job}/status", f"/v1/requests/{job}"):
            assert (ask("a2", "GET", path).status_code, ask("b1", "GET", path).status_code) == (404, 200)
        assert ask("a2", "GET", f"{history}/{drawn}").status_code == 200
        assert ask("a2", "POST", f"/v1/{MODEL}", prompt="c").headers["x-remaining-credits"] == "0.02"
        assert ask("a1", "POST", f"/v1/{MODEL}", prompt="d").status_code == 406
        assert ask("a1", "POST", f"/v1/{MODEL}", prompt="e").status_code == 429
        assert ask("b1", "POST", f"/v1/{MODEL}", prompt="a").status_code == 200
        assert ask("a2", "GET", "/v1/get-user-credits").json()["credits"] == 0.02
        statistics = ask("a1", "GET", "/_gateway/stats").json()
        assert (statistics["requests"], statistics["billed"], statistics["charged_usd"]) == (4, 4, 0.16)
        assert statistics["billed_twice"] == 1
        assert running.account_state.statistics() == statistics
        assert {record.account for record in running.account_state.records.values()} == {"alice", "bob"}


def test_a_key_without_a_name_beside_accounts() -> None:
    """The gateway's own key is that of an account without a name; no two accounts share a key."""
    with gateway(accounts={"alice": [SecretStr("a")]}, api_key=SecretStr("k"), credits=1.0, price_usd=0.1) as (
        _,
        client,
    ):
        client.post(f"/v1/{MODEL}", json={"prompt": "a"})
        left = [
            client.get("/v1/get-user-credits", headers={"x-api-key": key}).json().get("credits")
            for key in ("k", "a", "z")
        ]
        assert left == [0.9, 1.0, None]
    check_settings(GatewaySettings(accounts={"alice": [SecretStr("a")]}), "0.0.0.0")
    for accounts in ({"alice": [SecretStr("k")]}, {"alice": [SecretStr("a")], "bob": [SecretStr("a")]}):
        with pytest.raises(RefusedError, match="same key"):
            check_settings(GatewaySettings(api_key=SecretStr("k"), accounts=accounts), "127.0.0.1")


def test_rate_limit_and_queue() -> None:
    """Over the requests per minute the answer is the API's 429, without Retry-After; a full queue has both."""
    clock = Clock()
    with gateway(requests_per_minute=2, clock=clock) as (_, client):
        codes = [client.post(f"/v2/{MODEL}", json={"prompt": "a"}).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        limited = client.post(f"/v2/{MODEL}", json={"prompt": "a"})
        assert limited.json()["error"] == "rate_limit_exceeded"
        assert limited.headers["x-rate-limit-reset-at-utc"] == "2027-01-15 08:01:00"
        assert "retry-after" not in limited.headers
        clock.now += 61
        assert client.post(f"/v2/{MODEL}", json={"prompt": "a"}).status_code == 200
    with gateway(workers=1, queue_limit=2, latency_s=30.0) as (_, client):
        with ThreadPoolExecutor(20) as threads:
            posts = threads.map(lambda _: client.post(f"/v2/{MODEL}", json={"prompt": "a"}).status_code, range(20))
        assert Counter(posts) == {200: 3, 429: 17}
        full = client.post(f"/v2/{MODEL}", json={"prompt": "a"})
        assert full.json()["error"] == "rate_limit_exceeded: the queue is full (--queue)"
        assert int(full.headers["retry-after"]) >= 1
        assert full.headers["x-rate-limit-reset-at-utc"]


def test_a_client_that_hangs_up_is_billed() -> None:
    """v1 work goes on, and is billed, when nobody waits for it any more."""
    with gateway(latency_s=0.5) as (running, client):
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"/v1/{MODEL}", json={"prompt": "a"}, timeout=0.2)

        async def until_billed() -> None:
            for _ in range(500):
                if running.account_state.billed:
                    return
                await asyncio.sleep(0.01)

        asyncio.run(until_billed())
        assert len(running.account_state.billed) == 1


def test_a_key_revoked_and_credits_gone() -> None:
    """What the account loses in the middle of a run, the next call meets; jobs under way go on."""
    with gateway(credits=1.0) as (running, client):
        request_id = client.post(f"/v2/{MODEL}", json={"prompt": "a"}).json()["request_id"]
        running.account_state.settings.credits = 0.0
        assert client.post(f"/v2/{MODEL}", json={"prompt": "b"}).status_code == 406
        assert finished(client, request_id).json()["status"] == "COMPLETED"
        running.account_state.revoked = True
        assert client.get(f"/v2/requests/{request_id}").status_code == 401


def test_stats_count_what_was_paid_twice() -> None:
    """The statistics count calls, and images that were paid again for the same body."""
    with gateway() as (_, client):
        for prompt in ("a", "a", "b"):
            client.post(f"/v1/{MODEL}", json={"prompt": prompt})
        statistics = client.get("/_gateway/stats").json()
        assert (statistics["calls"], statistics["billed"], statistics["billed_twice"]) == ({"run": 3}, 3, 1)
        assert statistics["in_flight"] == 0
