"""The GPU worker: the gateway with the engine `diffusers`, over a real pipeline with tiny random weights."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import segmind
from PIL import Image, ImageChops

from tests.support.builders.images import data_url, encoded

MODEL = "flux-2-klein-9b"
Start = Callable[..., Any]


@pytest.fixture
def client(start_worker: Start) -> Iterator[httpx.Client]:
    with start_worker("distilled").client as worker_client:
        yield worker_client


def make(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post(f"/v1/{MODEL}", json={"prompt": "a red cup", "seed": 7} | body)


def picture(client: httpx.Client, **body: Any) -> Image.Image:
    answer = make(client, **body)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


def difference(first: Image.Image, second: Image.Image) -> int:
    """The largest difference of any pixel's colour, 0 to 255."""
    assert first.size == second.size
    return max(high for _, high in ImageChops.difference(first, second).getextrema())


def photo(colour: str, size: tuple[int, int] = (96, 64)) -> str:
    return data_url(encoded(Image.new("RGB", size, colour)))


def test_health_is_503_until_warm(start_worker: Start) -> None:
    """While it loads a worker says so in /health and refuses calls; then it names checkpoint, profile and licence."""
    worker = start_worker("distilled", "--weights-license", "my licence", warm=False)
    answer = httpx.get(f"{worker.url}/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "warming")
    with worker.client as client:
        answer = make(client)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        worker.wait_until_warm()
        assert make(client).status_code == 200
        assert client.post("/v1/flux-2-klein-4b", json={"prompt": "a"}).status_code == 404
    assert httpx.get(f"{worker.url}/health").json() == {
        "status": "ok",
        "engine": "diffusers",
        "models": [MODEL],
        "weights": "tiny-distilled-klein-9B",
        "weights_license": "my licence",
        "profile": "klein-distilled",
        "max_batch": 4,
    }
    assert "licence of the weights: my licence" in worker.log.read_text()


def test_every_parameter_has_its_effect(client: httpx.Client) -> None:
    """Prompt, seed, size, format and references change the image; the same call gives the same pixels."""
    first = picture(client)
    assert difference(first, picture(client)) == 0
    assert difference(first, picture(client, seed=8)) > 0
    assert difference(first, picture(client, prompt="a blue cup")) > 0
    assert picture(client, aspect_ratio="16:9").size == (192, 96)
    red, both = picture(client, image_urls=[photo("red")]), picture(client, image_urls=[photo("red"), photo("blue")])
    assert difference(first, red) > 0
    assert difference(red, both) > 0
    assert picture(client, image_urls=[photo("red")], aspect_ratio="match_input_image").size == (96, 64)
    for image_format in ("png", "jpeg", "webp"):
        answer = make(client, image_format=image_format)
        assert Image.open(io.BytesIO(answer.content)).format == image_format.upper()
    small, large = (len(make(client, image_format="jpeg", quality=q).content) for q in (10, 100))
    assert small < large


def test_a_distilled_checkpoint_says_what_it_ignores(client: httpx.Client) -> None:
    """Guidance, steps and a negative prompt change nothing, and the answer tells what was used instead."""
    answer = make(client, cfg=3, steps=9, negative_prompt="rain", sampler="res_2s")
    applied = {"steps": 4, "cfg": 1, "negative_prompt": "", "sampler": "euler", "go_fast": False}
    assert json.loads(answer.headers["x-imagegen-applied"]) == applied
    assert answer.content == make(client).content
    plain = make(client, cfg=1, steps=4, negative_prompt="", go_fast=False)
    assert "x-imagegen-applied" not in plain.headers


def test_a_base_checkpoint_takes_guidance_and_negative_prompt(start_worker: Start) -> None:
    """With a base checkpoint steps, guidance and the negative prompt change the image."""
    with start_worker("base").client as client:
        plain = {"steps": 3, "cfg": 4, "negative_prompt": "rain"}
        first = picture(client, **plain)
        for change in ({"steps": 2}, {"cfg": 1}, {"cfg": 9}, {"negative_prompt": "snow"}, {"negative_prompt": ""}):
            assert difference(first, picture(client, **plain | change)) > 0, change
        answer = make(client, **plain, sampler="res_2s")
        assert json.loads(answer.headers["x-imagegen-applied"]) == {"sampler": "euler", "go_fast": False}
        # Without guidance the negative prompt is not used.
        unguided = plain | {"cfg": 1}
        assert difference(picture(client, **unguided), picture(client, **unguided | {"negative_prompt": "snow"})) == 0


def test_equal_sizes_share_a_batch(start_worker: Start) -> None:
    """Calls of equal size, steps, guidance and references are drawn together; pixels differ by two levels at most."""
    worker = start_worker("distilled", "--max-batch", "4", "--batch-delay-ms", "500")
    bodies = [{"seed": seed, "aspect_ratio": ratio} for ratio in ("1:1", "3:2") for seed in range(4)]
    bodies.append({"seed": 9, "image_urls": [photo("red")]})
    with worker.client as client, ThreadPoolExecutor(len(bodies)) as threads:
        before = worker.metric("imagegen_batch_size_count")
        together = list(threads.map(lambda body: picture(client, **body), bodies))
        assert worker.metric("imagegen_batch_size_count") - before == 3
        assert worker.metric('imagegen_batch_size_bucket{le="3.0"}') == 1
        alone = [picture(client, **body) for body in bodies]
        again = list(threads.map(lambda body: picture(client, **body), bodies))
    assert max(difference(*pair) for pair in zip(together, alone, strict=True)) <= 2
    assert max(difference(*pair) for pair in zip(together, again, strict=True)) <= 2
    assert worker.metric("imagegen_queue") == 0
    assert worker.metric(f'imagegen_images_total{{model="{MODEL}"}}') == 3 * len(bodies)


def test_a_full_queue_is_429_with_a_time(start_worker: Start) -> None:
    """Above the batches at hand and the queue calls are refused, with the time when to come again."""
    worker = start_worker("distilled", "--max-batch", "1", "--queue", "2", "--latency", "1")
    with worker.client as client, ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda seed: make(client, seed=seed), range(12)))
        codes = [answer.status_code for answer in answers]
        assert sorted(set(codes)) == [200, 429]
        assert codes.count(200) == 6
        assert all("x-rate-limit-reset-at-utc" in answer.headers for answer in answers if answer.status_code == 429)


def test_a_bad_picture_fails_alone(client: httpx.Client) -> None:
    """What the pipeline cannot take is refused in words, for that call only, and counted."""
    answer = make(client, image_urls=[photo("red"), photo("red", (1000, 40))])
    assert answer.status_code == 400
    assert "image 2 of image_urls has 1000x40 pixels" in answer.json()["error"]
    assert make(client).status_code == 200
    assert 'imagegen_errors_total{kind="bad_request"} 1.0' in client.get("/metrics").text


def test_a_worker_drains(start_worker: Start) -> None:
    """After SIGTERM what was taken is finished and delivered, new calls get 503, and the process ends with 0."""
    worker = start_worker("distilled", "--latency", "2")
    with worker.client as client, ThreadPoolExecutor(4) as threads:
        queued = client.post(f"/v2/{MODEL}", json={"prompt": "queued"}).json()["request_id"]
        running = [threads.submit(make, client, seed=seed) for seed in range(3)]
        while worker.metric("imagegen_in_flight") < 4:
            time.sleep(0.02)
        worker.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{worker.url}/health").status_code == 200:
            time.sleep(0.02)
        assert httpx.get(f"{worker.url}/health").json()["status"] == "draining"
        assert make(client, seed=9).status_code == 503
        assert [call.result().status_code for call in running] == [200] * 3
        result = client.get(f"/v2/requests/{queued}").json()
        assert result["status"] == "COMPLETED"
        assert client.get(result["output"]).status_code == 200
        assert worker.process.wait(20) == 0


def test_the_official_sdk_runs_against_a_worker(start_worker: Start) -> None:
    """The SDK of the API makes images on a worker, blocking and polling."""
    worker = start_worker("distilled")
    client = segmind.SegmindClient(api_key="SG_0123456789abcdef", base_url=f"{worker.url}/v1")
    try:
        answer = client.run_sync(MODEL, prompt="a red cup", seed=7)
        assert Image.open(io.BytesIO(answer.content)).size == (144, 144)
        result = client.run(MODEL, prompt="a red cup", seed=7, image_format="jpeg")
        assert (result["status"], result["applied"]["steps"]) == ("COMPLETED", 4)
        assert Image.open(io.BytesIO(httpx.get(result["output"]).content)).format == "JPEG"
    finally:
        client._client.close()


@pytest.mark.parametrize("options", [["--offload"], ["--dtype", "bfloat16"]])
def test_memory_is_saved_as_asked(start_worker: Start, options: list[str]) -> None:
    """With idle parts in main memory, or in another number format, a worker draws all the same."""
    with start_worker("distilled", *options).client as client:
        assert picture(client).size == (144, 144)
        assert picture(client, image_urls=[photo("red")]).size == (144, 144)


def test_a_pipeline_with_a_reference_cache(start_worker: Start) -> None:
    """A checkpoint of the KV kind is distilled, takes no guidance, and draws with and without references."""
    worker = start_worker("kv", "--batch-delay-ms", "300")
    assert httpx.get(f"{worker.url}/health").json()["profile"] == "klein-distilled"
    with worker.client as client, ThreadPoolExecutor(2) as threads:
        plain, both = picture(client), picture(client, image_urls=[photo("red"), photo("blue")])
        assert difference(plain, both) > 0
        pair = list(threads.map(lambda seed: picture(client, seed=seed, image_urls=[photo("red")]), (1, 2)))
        assert difference(*pair) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "nowhere/at-all"], "nowhere/at-all cannot be used"),
        (["--model", "{tmp}"], "cannot be used"),
        (["--model", "{tiny}", "--device", "cuda:99"], "--device"),
        ([], "needs a checkpoint"),
    ],
)
def test_an_unusable_checkpoint_is_said(tiny: dict[str, Path], tmp_path: Path, options: list[str], words: str) -> None:
    """A worker that cannot load its checkpoint ends with exit code 2, one clear word, and no traceback."""
    command = [sys.executable, "-m", "prefect_imagegen.cli.main", "serve", "--engine", "diffusers", "--port", "0"]
    command += [option.format(tmp=tmp_path, tiny=tiny["base"]) for option in options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, check=False)
    assert process.returncode == 2, process.stderr
    assert words in process.stderr
    assert "Traceback" not in process.stderr
