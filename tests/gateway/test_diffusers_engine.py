"""What the engine `diffusers` does around the model; the model itself is drawn with in tests/worker."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
from PIL import Image

from prefect_imagegen.core.request.profiles import PROFILES
from prefect_imagegen.gateway.engines import DiffusersEngine, ImageJob
from prefect_imagegen.gateway.engines import diffusers as module
from prefect_imagegen.gateway.jobs.metrics import Metrics
from prefect_imagegen.gateway.settings import GatewaySettings

pytestmark = pytest.mark.anyio


def picture(number: int) -> ImageJob:
    params = {"steps": 20, "cfg": 5, "negative_prompt": "rain", "sampler": "euler", "go_fast": False}
    return ImageJob("flux-2-klein-9b", f"cup {number}", number, 64, 64, "png", 90, f"r{number}", params=params)


async def test_encoding_goes_on_beside_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is encoded while the model draws the next: the first encoding ends only once the second is drawn."""
    engine = DiffusersEngine(GatewaySettings(max_batch=1, batch_delay_s=0.0), Metrics())
    engine._profile = PROFILES["klein-distilled"]
    second_drawn = threading.Event()
    drawn: list[ImageJob] = []

    def draw(batch: Sequence[ImageJob]) -> list[Image.Image]:
        drawn.extend(batch)
        if len(drawn) == 2:
            second_drawn.set()
        return [Image.new("RGB", (64, 64)) for _ in batch]

    def encode(image: Image.Image, image_format: str, quality: int) -> bytes:
        assert second_drawn.wait(10), "the second batch waited for the first image's file"
        return b"file"

    monkeypatch.setattr(engine, "_draw", draw)
    monkeypatch.setattr(module, "encode", encode)
    drawings = await asyncio.wait_for(asyncio.gather(engine.draw(picture(1)), engine.draw(picture(2))), 20)
    assert [drawing.data for drawing in drawings] == [b"file"] * 2
    assert [job.params["steps"] for job in drawn] == [4, 4]
    assert drawings[0].applied == {"steps": 4, "cfg": 1, "negative_prompt": ""}
    await engine.close()
