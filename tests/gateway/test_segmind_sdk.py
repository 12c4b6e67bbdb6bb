"""Proof by a client that nobody here wrote: the official SDK of the API runs against the gateway."""

import io
import sys
from collections.abc import Iterator

import httpx
import pytest
import segmind
import segmind.generations
from PIL import Image
from segmind.exceptions import SegmindError
from segmind.files import Files

from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings

MODEL = "flux-2-klein-9b"


@pytest.fixture
def gateway() -> Iterator[EmbeddedGateway]:
    script = FaultScript(faults=[Fault(fault="failed", prompt_contains="forbidden", text="nsfw content")])
    with EmbeddedGateway(GatewaySettings(faults=script, allow_loopback=True)) as running:
        yield running


@pytest.fixture
def client(gateway: EmbeddedGateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[segmind.SegmindClient]:
    monkeypatch.setattr(Files, "STORAGE_BASE_URL", gateway.url)
    history = f"{gateway.url}/inference-request/request-history"
    monkeypatch.setattr(sys.modules["segmind.generations"], "REQUEST_HISTORY_URL", history)
    sdk_client = segmind.SegmindClient(api_key="SG_0123456789abcdef", base_url=f"{gateway.url}/v1")
    yield sdk_client
    sdk_client._client.close()


def size_of(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.size


def test_run_sync_gives_the_image(client: segmind.SegmindClient) -> None:
    """`run_sync` (v1) answers with the bytes of an image of the asked size, and with its price."""
    answer = client.run_sync(MODEL, prompt="a red cup", seed=7, aspect_ratio="3:2")
    assert size_of(answer.content) == (1248, 832)
    assert float(answer.headers["x-cost"]) > 0
    assert answer.headers["x-seed-value"] == "7"


def test_run_waits_for_the_output(client: segmind.SegmindClient) -> None:
    """`run` (v2) submits, polls, and names a public output URL that needs no key."""
    result = client.run(MODEL, prompt="a red cup", seed=7, image_format="jpeg")
    assert result["status"] == "COMPLETED"
    assert result["seed"] == "7"
    assert size_of(httpx.get(result["output"]).content) == (1024, 1024)


def test_submit_async_is_polled(client: segmind.SegmindClient) -> None:
    """`submit_async` gives a job whose `wait` ends with the result."""
    job = client.submit_async(MODEL, prompt="a blue cup", seed=8)
    assert job.request_id
    assert job.wait(interval=0.05, timeout=30)["status"] == "COMPLETED"


def test_failures_are_the_sdk_s_own(client: segmind.SegmindClient) -> None:
    """A failed job and a body that cannot be drawn raise what the SDK raises for the real API."""
    for body in ({"prompt": "forbidden thing"}, {"prompt": ""}, {"prompt": "a cup", "steps": 1000}):
        with pytest.raises(SegmindError):
            client.submit_async(MODEL, **body).wait(interval=0.05, timeout=30)


def test_errors_are_the_sdk_s_own(gateway: EmbeddedGateway, client: segmind.SegmindClient) -> None:
    """An unknown model and an empty account raise the SDK's errors."""
    with pytest.raises(SegmindError):
        client.run_sync("no-such-model", prompt="a")
    gateway.account_state.settings.credits = 0.0
    with pytest.raises(SegmindError):
        client.run_sync(MODEL, prompt="a")


def test_upload_and_use_as_reference(client: segmind.SegmindClient, tmp_path) -> None:
    """An uploaded image gets a URL, which works as a reference; match_input_image takes its shape."""
    path = tmp_path / "photo.png"
    Image.new("RGB", (320, 192), "teal").save(path)
    (url,) = client.files.upload(str(path))["file_urls"]
    answer = client.run_sync(MODEL, prompt="a cup", image_urls=[url], aspect_ratio="match_input_image")
    assert size_of(answer.content) == (320, 192)


def test_a_wrong_key_and_the_history(gateway: EmbeddedGateway, client: segmind.SegmindClient) -> None:
    """A revoked key raises the SDK's error; the history names what was drawn and what it cost."""
    client.run_sync(MODEL, prompt="a cup", seed=5)
    rows = client.generations.history()["data"]
    assert [(row["model_name"], row["model_status"]) for row in rows] == [(MODEL, "COMPLETED")]
    assert rows[0]["credits_deduction"] > 0
    gateway.account_state.revoked = True
    with pytest.raises(SegmindError, match="Unauthorized"):
        client.run_sync(MODEL, prompt="a cup", seed=6)
