"""What a long-running gateway keeps: bounded in memory and on disk, with right answers and counts after drops."""

import gc
import hashlib
import os
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.policy.history_lookup import claim_form, compare_calls
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway, check_settings
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.gateway.state.file_shelf import OUTPUT_NAME, Shelf
from tests.support.builders.images import data_url, encoded

MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}
HISTORY = "/inference-request/request-history"


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def photo(seed: int, side: int = 256) -> str:
    """A picture of about 3 bytes a pixel, as a data URL."""
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return data_url(encoded(Image.fromarray(noise)))


def test_an_hour_s_calls_in_a_minute(tmp_path: Path) -> None:
    """A worker that takes calls with pictures inside for an hour grows neither in memory nor on disk."""
    clock = Clock()
    settings = GatewaySettings(
        engine="static", static_bytes=100_000, data_dir=tmp_path, clock=clock, output_ttl_s=900.0, keep_bytes=3_000_000
    )
    with (
        EmbeddedGateway(settings) as gateway,
        httpx.Client(base_url=gateway.url, headers=KEY, timeout=60) as client,
    ):

        def call(number: int) -> None:
            clock.now += 18
            version = "v2" if number % 2 else "v1"
            body = {"prompt": f"cup {number}", "seed": number, "image_urls": [photo(number)]}
            assert client.post(f"/{version}/{MODEL}", json=body).status_code == 200
            client.post("/upload-asset", json={"data_urls": [photo(-number - 1 & 0xFFFF)]})

        for number in range(20):
            call(number)
        gc.collect()
        tracemalloc.start()
        try:
            for number in range(20, 200):
                call(number)
            gc.collect()
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert grown < 8_000_000  # the pictures alone were 47 MB
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 6_600_000
        assert len(gateway.account_state.records) == 200
        assert "data:" not in repr(list(gateway.account_state.records.values()))


def test_a_body_without_its_picture_is_still_the_claim_s() -> None:
    """What the history shows of a call with a picture inside is known as the call of its claim, and of no other."""
    with EmbeddedGateway() as gateway, httpx.Client(base_url=gateway.url, headers=KEY, timeout=60) as client:
        body = {"prompt": "a cup", "seed": 1, "image_urls": [photo(1, 64)]}
        assert client.post(f"/v1/{MODEL}", json=body).status_code == 200
        (record,) = gateway.account_state.records.values()
        other = body | {"image_urls": [photo(2, 64)]}
        assert compare_calls(record.body, claim_form(body)) == "same"
        assert compare_calls(record.body, claim_form(other)) == compare_calls(body, claim_form(other)) != "same"
        assert claim_form(claim_form(body)) == claim_form(body)


@pytest.mark.parametrize("bound", [{"keep_records": 5}, {"keep_body_bytes": 5_500}])
def test_old_requests_are_forgotten(bound: dict[str, Any]) -> None:
    """Only the newest requests are kept; a forgotten one is 404, as an expired one, and the counters go on."""
    with (
        EmbeddedGateway(GatewaySettings(price_usd=0.5, **bound)) as gateway,
        httpx.Client(base_url=gateway.url, headers=KEY, timeout=60) as client,
    ):
        ids = []
        for number in range(12):
            answer = client.post(f"/v1/{MODEL}", json={"prompt": f"{number} " + "x" * 1000, "seed": number})
            ids.append(answer.headers["x-request-id"])
        assert list(gateway.account_state.records) == ids[-5:]
        for path in (f"/v2/requests/{ids[0]}", f"/v2/requests/{ids[0]}/status", f"{HISTORY}/{ids[0]}"):
            assert client.get(path).json() == {"error": f"Request {ids[0]} not found"}
            assert client.get(path).status_code == 404
        assert client.get(f"/v2/requests/{ids[-1]}").status_code == 200
        statistics = client.get("/_gateway/stats").json()
        assert (statistics["requests"], statistics["billed"], statistics["charged_usd"]) == (12, 12, 6.0)


def test_a_history_that_has_forgotten_says_so() -> None:
    """Where a listing of some days would end at what is forgotten, it is 410: nobody may take that for absence."""
    clock = Clock()
    with (
        EmbeddedGateway(GatewaySettings(keep_records=3, clock=clock)) as gateway,
        httpx.Client(base_url=gateway.url, headers=KEY, timeout=60) as client,
    ):
        for number in range(6):
            client.post(f"/v1/{MODEL}", json={"prompt": "a", "seed": number})
        days = {"from_date": "2027-01-15", "to_date": "2027-01-16"}
        assert client.get(HISTORY, params=days | {"per_page": 2}).status_code == 200
        for query in ({"per_page": 2, "page": 2}, {"per_page": 100}):
            answer = client.get(HISTORY, params=days | query)
            assert (answer.status_code, answer.json()["error"]) == (
                410,
                "older requests of these days are no longer kept",
            )
        assert len(client.get(HISTORY).json()["data"]) == 3
        clock.now += 2 * 86400
        later = {"from_date": "2027-01-17", "to_date": "2027-01-18"}
        assert client.get(HISTORY, params=later).json()["data"] == []


def test_the_shelf(tmp_path: Path) -> None:
    """The oldest files go first, by bytes and by age; the newest stays whatever its size."""
    shelf = Shelf(tmp_path, 100, 60.0, OUTPUT_NAME)
    for number, (size, at) in enumerate([(40, 0.0), (40, 1.0), (40, 2.0), (500, 3.0), (10, 4.0), (10, 70.0)]):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        (tmp_path / name).write_bytes(bytes(size))
        shelf.put(name, size, at)
        sizes = sorted(path.stat().st_size for path in tmp_path.iterdir())
        assert sizes == [[40], [40, 40], [40, 40], [500], [10], [10]][number]
        assert shelf.bytes == sum(sizes)
    shelf.put(name, 10, 71.0)
    assert shelf.bytes == 10


def test_what_an_earlier_process_left_makes_room(tmp_path: Path) -> None:
    """A gateway that was started again in its folder removes its old outputs and uploads, and nobody else's files."""
    own = (tmp_path / f"{uuid.uuid4()}.png", tmp_path / f"{uuid.uuid4()}.jpeg")
    upload = tmp_path / "assets" / f"{'0a' * 32}.png"
    others = (tmp_path / "mine.png", tmp_path / f"{uuid.uuid4()}", tmp_path / "assets" / "mine.png")
    upload.parent.mkdir()
    for path in (*own, upload, *others):
        path.write_bytes(bytes(4000))
        os.utime(path, (1.0, 1.0))
    settings = GatewaySettings(engine="static", static_bytes=3000, data_dir=tmp_path, keep_bytes=5000)
    with EmbeddedGateway(settings) as gateway, httpx.Client(base_url=gateway.url, headers=KEY) as client:
        assert client.post(f"/v1/{MODEL}", json={"prompt": "a cup"}).status_code == 200
        assert client.post("/upload-asset", json={"data_urls": [photo(1, 64)]}).status_code == 200
        assert not any(path.exists() for path in (*own, upload))
    assert all(path.exists() for path in others)


def test_an_output_that_made_room_is_not_charged() -> None:
    """Where others took the room of a v1 call's output before it was sent, the answer is 500 and costs nothing."""
    with (
        EmbeddedGateway(GatewaySettings(latency_s=0.05, keep_bytes=1000)) as gateway,
        ThreadPoolExecutor(12) as threads,
    ):

        def call(number: int) -> httpx.Response:
            body = {"prompt": "a", "seed": number}
            return httpx.post(f"{gateway.url}/v1/{MODEL}", json=body, headers=KEY, timeout=60)

        answers = list(threads.map(call, range(24)))
        sent = [answer for answer in answers if answer.status_code == 200]
        assert all(answer.content for answer in sent)
        assert {answer.status_code for answer in answers} <= {200, 500}
        statistics = gateway.account_state.statistics()
        assert (statistics["requests"], statistics["billed"]) == (24, len(sent))
        assert statistics["charged_usd"] == pytest.approx(len(sent) * gateway.account_state.price(MODEL))


def test_a_refund_of_what_is_forgotten() -> None:
    """A call that is given its money back counts as not billed, also where its record is kept no more."""
    fault = Fault(fault="status", on=["run"], when="after", status=500)
    settings = GatewaySettings(keep_records=1, latency_s=0.05, faults=FaultScript(faults=[fault]))
    with EmbeddedGateway(settings) as gateway, ThreadPoolExecutor(6) as threads:

        def call(number: int) -> int:
            body = {"prompt": "a", "seed": number}
            return httpx.post(f"{gateway.url}/v1/{MODEL}", json=body, headers=KEY, timeout=60).status_code

        assert set(threads.map(call, range(6))) == {500}
        statistics = gateway.account_state.statistics()
        assert (statistics["requests"], statistics["billed"], statistics["charged_usd"]) == (6, 0, 0.0)


@pytest.mark.parametrize("settings", [{}, {"credits": 5.0}, {"accounts": {"a": [SecretStr("k")]}}, {"price_usd": 0.0}])
@pytest.mark.parametrize("engine", ["sandbox", "static"])
def test_the_rest_of_the_money_is_told_in_every_mode(engine: str, settings: dict[str, Any]) -> None:
    """Whatever draws, and however accounts are kept: v1 tells what is left in its header, v2 in its metrics."""
    with (
        EmbeddedGateway(GatewaySettings(engine=engine, **settings)) as gateway,
        httpx.Client(base_url=gateway.url, headers=KEY, timeout=60) as client,
    ):
        answer = client.post(f"/v1/{MODEL}", json={"prompt": "a"})
        left = client.get("/v1/get-user-credits").json()["credits"]
        assert float(answer.headers["x-remaining-credits"]) == left
        status = client.get(f"/v2/requests/{answer.headers['x-request-id']}/status").json()
        assert status["metrics"]["remaining_credits"] == left


def test_the_description_asks_for_the_key() -> None:
    """Where a key is set, nothing describes the routes, or counts their calls, to those who have none."""
    for settings, status in ((GatewaySettings(), 200), (GatewaySettings(api_key=SecretStr("k")), 401)):
        with EmbeddedGateway(settings) as gateway:
            for path in ("/docs", "/openapi.json", "/metrics"):
                assert httpx.get(gateway.url + path).status_code == status
                assert httpx.get(gateway.url + path, headers={"x-api-key": "wrong"}).status_code == status
                assert httpx.get(gateway.url + path, headers=KEY).status_code == 200


def test_ray_serve_is_for_strangers() -> None:
    """Where Serve listens is not known: without a key it is refused unless its address is said to be loopback."""
    with pytest.raises(RefusedError, match="without a key"):
        check_settings(GatewaySettings(), "every address")
    check_settings(GatewaySettings(), "127.0.0.1")
