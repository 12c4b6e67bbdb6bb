"""The gateway's contract: routes, bodies, states, errors, money and retention, on a real socket."""

import asyncio
import base64
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from pydantic import SecretStr

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.images.image import decode
from prefect_imagegen.core.request.models import ASPECT_SIZES, MODELS
from prefect_imagegen.gateway.engines import ImageJob, StaticEngine
from prefect_imagegen.gateway.jobs.metrics import Metrics
from prefect_imagegen.gateway.server import EmbeddedGateway, check_settings
from prefect_imagegen.gateway.settings import GatewaySettings

MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def gateway(**settings: Any) -> Iterator[tuple[EmbeddedGateway, httpx.Client]]:
    with (
        EmbeddedGateway(GatewaySettings(**settings)) as running,
        httpx.Client(base_url=running.url, headers=KEY, timeout=30) as client,
    ):
        yield running, client


def finished(client: httpx.Client, request_id: str) -> httpx.Response:
    """The first status answer that is terminal."""
    for _ in range(1000):
        answer = client.get(f"/v2/requests/{request_id}/status")
        if answer.json().get("status") not in ("QUEUED", "PROCESSING"):
            return answer
    raise AssertionError("the job did not end")


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


def test_errors_have_the_api_s_codes_and_bodies() -> None:
    """406, 400, 404, 405 and 422 are those of the API; every answer names the engine."""
    with gateway() as (_, client):
        answers = {
            406: client.post(f"/v1/{MODEL}", content=b"{}", headers={"content-type": "text/plain"}),
            400: client.post(f"/v1/{MODEL}", json={"prompt": "a", "steps": 0}),
            404: client.post("/v1/no-such-model", json={"prompt": "a"}),
            405: client.get(f"/v1/{MODEL}"),
        }
        for status, answer in answers.items():
            assert answer.status_code == status
            assert answer.headers["x-imagegen-engine"] == "sandbox"
        assert answers[406].json() == {"error": "Invalid content type"}
        assert answers[405].text.startswith("<html>")
        assert (
            client.post(f"/v2/{MODEL}", content=b"[1]", headers={"content-type": "application/json"}).status_code == 400
        )
        accepted = client.post(f"/v2/{MODEL}", json={"prompt": 7}).json()
        assert accepted["status"] == "QUEUED"
        failed = finished(client, accepted["request_id"])
        assert failed.status_code == 422
        assert failed.json()["error"] == "Prompt is Mandatory and must be string"
        assert client.get("/v2/requests/unknown").json() == {"error": "Request unknown not found"}


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


def test_retention_and_history() -> None:
    """Records die after an hour, outputs after seven days, the history knows all, after its lag, a page at a time."""
    clock = Clock()
    with gateway(clock=clock, history_lag_s=10.0) as (_, client):
        ids = []
        for number in range(5):
            body = {"prompt": f"p{number}", "seed": number, "image_format": "jpeg"}
            ids.append(client.post(f"/v2/{MODEL}", json=body).json()["request_id"])
            finished(client, ids[-1])
        history = "/inference-request/request-history"
        assert client.get(history).json()["data"] == []
        assert client.get(f"{history}/{ids[0]}").status_code == 404
        clock.now += 11
        rows = client.get(history, params={"per_page": 2, "page": 2}).json()["data"]
        assert [row["request_id"] for row in rows] == [ids[2], ids[1]]
        assert rows[0]["request_body"] == "{'prompt': 'p2', 'seed': 2, 'image_format': 'jpeg'}"
        assert client.get(history, params={"model_name": "4b"}).json()["data"] == []
        assert client.get(history, params={"status": "FAILED"}).json()["data"] == []
        assert client.get(history, params={"sort_order": "asc"}).json()["data"][0]["request_id"] == ids[0]
        assert client.get(history, params={"from_date": "2027-01-16"}).json()["data"] == []
        assert client.get(history, params={"from_date": "2027-01-01", "to_date": "2027-03-01"}).status_code == 400
        output = client.get(f"/v2/requests/{ids[0]}").json()["output"]
        assert httpx.get(output).headers["content-type"] == "image/jpeg"
        clock.now += 3600
        assert client.get(f"/v2/requests/{ids[0]}").status_code == 404
        assert client.get(f"{history}/{ids[0]}").json()["data"]["generation_url"] == output
        assert httpx.get(output).status_code == 200
        clock.now += 7 * 86400
        assert httpx.get(output).status_code == 404


def test_pictures_are_deterministic_and_distinct() -> None:
    """Same parameters, same bytes; any other parameter, another picture; sizes follow the aspect ratio."""
    with gateway() as (_, client):

        def drawn(**body: Any) -> bytes:
            return client.post(f"/v1/{MODEL}", json={"prompt": "a cup", "seed": 1, **body}).content

        assert drawn() == drawn()
        others = ({"seed": 2}, {"prompt": "a hat"}, {"steps": 5}, {"cfg": 2}, {"negative_prompt": "fog"})
        samplers = MODELS[MODEL].fields["sampler"].choices
        pixels = {
            hashlib.sha256(Image.open(io.BytesIO(drawn(**change))).tobytes()).digest() for change in ({}, *others)
        }
        pixels |= {hashlib.sha256(Image.open(io.BytesIO(drawn(sampler=name))).tobytes()).digest() for name in samplers}
        assert len(pixels) == len(others) + len(samplers)
        for ratio in ("1:1", "9:16", "21:9"):
            assert decode(drawn(aspect_ratio=ratio)).width == ASPECT_SIZES[ratio][0]
        for image_format in ("png", "jpeg", "webp"):
            assert decode(drawn(image_format=image_format)).format == image_format
        assert len(drawn(image_format="jpeg", quality=20)) < len(drawn(image_format="jpeg", quality=95))
        # Anything can be a prompt.
        for prompt in ("🦊🎨", "שלום עולם", "日本語", "x" * 100_000, "a\nb\tc", "\u202e"):
            assert decode(drawn(prompt=prompt)).format == "png"


def test_minus_one_draws_a_seed() -> None:
    """Seed -1 is drawn and told; no seed is always the same one, as at the API."""
    with gateway() as (_, client):
        seeds = {
            client.post(f"/v1/{MODEL}", json={"prompt": "a", "seed": -1}).headers["x-seed-value"] for _ in range(3)
        }
        assert len(seeds) == 3
        assert client.post(f"/v1/{MODEL}", json={"prompt": "a"}).headers["x-seed-value"] == "3425234"


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


def test_references_of_strangers() -> None:
    """A standing gateway refuses references at loopback addresses; an embedded one may fetch them.

    Uploads of its own, and images inside the call, both take.
    """
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(sink, "PNG")
    for allowed in (True, False):
        with gateway(allow_loopback=allowed) as (running, client):
            data = "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()
            (url,) = client.post("/upload-asset", json={"data_urls": [data]}).json()["file_urls"]
            elsewhere = url.replace("127.0.0.1", "localhost")
            answer = client.post(f"/v1/{MODEL}", json={"prompt": "a", "image_urls": [elsewhere]})
            assert answer.status_code == (200 if allowed else 400)
            assert len(running.account_state.billed) == (1 if allowed else 0)
            for own in (url, data):
                answer = client.post(f"/v1/{MODEL}", json={"prompt": own[:9], "image_urls": [own]})
                assert answer.status_code == 200
            assert client.head(url).status_code == 200
            for bad in (f"{url}x", data[:-1], "data:text/plain,hello"):
                answer = client.post(f"/v1/{MODEL}", json={"prompt": "a", "image_urls": [bad]})
                assert answer.status_code == 400
            assert client.post("/upload-asset", json={"data_urls": ["nonsense"]}).status_code == 400


@pytest.mark.parametrize(("image_format", "size"), [("jpeg", 130_000), ("png", 1_000_000), ("webp", 60_000)])
def test_the_static_engine(image_format: str, size: int) -> None:
    """The engine `static` gives bytes of about the chosen size, distinct for each request, that decode in full."""
    engine = StaticEngine(GatewaySettings(static_format=image_format, static_bytes=size), Metrics())
    files = [
        engine.paint(ImageJob(MODEL, "a", 1, 64, 64, image_format, 90, request_id=f"id-{number}")).data
        for number in range(3)
    ]
    assert len(set(files)) == 3
    for data in files:
        assert decode(data).format == image_format
        assert abs(len(data) - size) < 0.1 * size


def test_a_gateway_for_strangers_needs_a_key() -> None:
    """Any address but loopback is refused without a key, and an unknown engine always."""
    for host in ("127.0.0.1", "::1", "localhost"):
        check_settings(GatewaySettings(), host)
    check_settings(GatewaySettings(api_key=SecretStr("k")), "0.0.0.0")
    for host in ("0.0.0.0", "::", "example.org", "192.168.1.5"):
        with pytest.raises(RefusedError, match="PREFECT_IMAGEGEN_API_KEY"):
            check_settings(GatewaySettings(), host)
    with pytest.raises(RefusedError, match="sandbox"):
        check_settings(GatewaySettings(engine="oil"), "127.0.0.1")


def test_the_engine_diffusers_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, a checkpoint or a known dtype the engine is refused before anything is loaded."""
    settings = GatewaySettings(engine="diffusers")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(RefusedError, match=r"needs torch.*prefect-imagegen\[diffusers\]"):
        check_settings(settings, "127.0.0.1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(RefusedError, match="--model"):
        check_settings(settings, "127.0.0.1")
    settings.model_path, settings.dtype = "a/b", "int4"
    with pytest.raises(RefusedError, match="float32"):
        check_settings(settings, "127.0.0.1")


def test_what_cannot_be_drawn_ends() -> None:
    """A reference that only looks like an image, and a full disk, end the job: nobody waits for ever, or is billed."""
    broken = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)).decode()
    with gateway(allow_loopback=True) as (running, client):
        (url,) = client.post("/upload-asset", json={"data_urls": [broken]}).json()["file_urls"]
        body = {"prompt": "a", "image_urls": [url]}
        answer = client.post(f"/v1/{MODEL}", json=body)
        assert (answer.status_code, "image 1" in answer.json()["error"]) == (400, True)
        assert finished(client, client.post(f"/v2/{MODEL}", json=body).json()["request_id"]).status_code == 422
        running.account_state.folder /= "gone"
        answer = client.post(f"/v1/{MODEL}", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]) == (500, "Internal error: FileNotFoundError")
        assert finished(client, client.post(f"/v2/{MODEL}", json={"prompt": "a"}).json()["request_id"]).is_error
        assert not running.account_state.billed
        assert running.account_state.reserved == 0


def test_odd_input_is_400() -> None:
    """Queries and bodies that no parser takes are 400 with the API's form of an error."""
    with gateway() as (_, client):
        answer = client.get("/inference-request/request-history", params={"per_page": "many"})
        assert (answer.status_code, answer.json()["error"][:9]) == (400, "per_page:")
        for content in (b"[" * 100_000, b"{", b"", b"\xff", b"null"):
            answer = client.post(f"/v1/{MODEL}", content=content, headers={"content-type": "application/json"})
            assert (answer.status_code, list(answer.json())) == (400, ["error"])


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


def test_a_stopped_gateway_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stopping ends every thread and removes the temporary files, also while work is under way."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(threading.enumerate())
    with gateway(latency_s=60.0) as (_, client):
        client.post(f"/v2/{MODEL}", json={"prompt": "a"})
    with gateway() as (_, client):
        client.post(f"/v1/{MODEL}", json={"prompt": "a"})
        assert list(tmp_path.iterdir())
    assert set(threading.enumerate()) <= before
    assert not list(tmp_path.iterdir())


def test_a_standing_gateway_stops_on_sigterm(tmp_path: Path) -> None:
    """SIGTERM ends a standing gateway in order: exit status 0, and no temporary files left."""
    code = (
        "from prefect_imagegen.gateway.server import run_server\n"
        "from prefect_imagegen.gateway.settings import GatewaySettings\n"
        "run_server(GatewaySettings(), '127.0.0.1', 0, print)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "startup complete" in line:
                    break
            assert list(tmp_path.iterdir())
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert not list(tmp_path.iterdir())
