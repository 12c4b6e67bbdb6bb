"""The pipeline called directly, in a process of its own: `python -m gpu_parts.pipeline SETTINGS`.

`SETTINGS` is JSON: model, device, dtype, side, steps, references (files). One line of JSON comes in for each case, and
one goes out: the figures, or `error`. The first line out has the figures of loading.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from gpu_parts import memory

FORMATS = ("png", "jpeg", "webp")
QUALITY = 90


def prompt(seed: int) -> str:
    """The prompt for a seed."""
    return f"a cup on a table, number {seed}"


class Pipeline:
    """A loaded checkpoint that draws batches as the engine of the gateway does, without anything around it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        from diffusers import DiffusionPipeline
        from PIL import Image

        self._torch = torch
        self._settings = settings
        self._device: str = settings["device"]
        dtype = getattr(torch, settings["dtype"])
        local = Path(settings["model"]).is_dir()
        self._pipe = DiffusionPipeline.from_pretrained(settings["model"], dtype=dtype, local_files_only=local)
        self._pipe.to(self._device)
        self._pipe.set_progress_bar_config(disable=True)
        self._references = [Image.open(path).convert("RGB") for path in settings["references"]]

    @property
    def parameters(self) -> dict[str, int]:
        """The number of weights of each part."""
        parts = {name: getattr(self._pipe, name) for name in ("transformer", "text_encoder", "vae")}
        return {name: sum(weights.numel() for weights in part.parameters()) for name, part in parts.items()}

    def draw(self, seeds: list[int], references: int) -> list[Any]:
        """Make the images of some seeds in one call; returns when the device is done."""
        generators = [self._torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        options = {"image": self._references[:references]} if references else {}
        images = self._pipe(
            prompt=[prompt(seed) for seed in seeds],
            width=self._settings["side"],
            height=self._settings["side"],
            num_inference_steps=self._settings["steps"],
            guidance_scale=1.0,
            generator=generators,
            **options,
        ).images
        if self._device.startswith("cuda"):
            self._torch.cuda.synchronize(self._device)
        return list(images)

    def measure(self, case: dict[str, Any]) -> dict[str, Any]:
        """Make all images of a case after a batch that warms up; saves them for comparison afterwards."""
        batch, references, seeds = case["batch"], case["references"], case["seeds"]
        self.draw([seeds[0]] * batch, references)
        memory.reset(self._device)
        images: list[Any] = []
        batch_seconds = []
        for first in range(0, len(seeds), batch):
            started = time.monotonic()
            images += self.draw(seeds[first : first + batch], references)
            batch_seconds.append(time.monotonic() - started)
        figures: dict[str, Any] = {
            "seconds": sum(batch_seconds),
            "batch_seconds": batch_seconds,
            **memory.peak(self._device),
        }
        if case["encode"]:
            figures["encoding_ms"] = {name: _encoding_ms(images, name) for name in FORMATS}
        if case["folder"]:
            for seed, image in zip(seeds, images, strict=True):
                image.save(Path(case["folder"]) / f"{seed}.png", compress_level=1)
        return figures

    def forget(self) -> None:
        """Free the memory that a failed case has left on the device."""
        gc.collect()
        if self._device.startswith("cuda") and self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()


def _encoding_ms(images: list[Any], image_format: str) -> float:
    """The median ms of encoding one of these images as the gateway does."""
    from prefect_imagegen.core.images.image import encode

    milliseconds = []
    for image in images:
        started = time.monotonic()
        encode(image, image_format, QUALITY)
        milliseconds.append(1000 * (time.monotonic() - started))
    return median(milliseconds)


def describe(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def main(settings: dict[str, Any], lines: Iterable[str], say: Callable[[dict[str, Any]], None]) -> None:
    """Answer case after case until there are no more."""
    started = time.monotonic()
    try:
        pipeline = Pipeline(settings)
        say({"load_s": time.monotonic() - started, "parameters": pipeline.parameters})
    except Exception as error:  # noqa: BLE001 - files, device and memory fail in many ways
        say({"error": describe(error)})
        return
    for line in lines:
        failure = ""
        try:
            say(pipeline.measure(json.loads(line)))
        except Exception as error:  # noqa: BLE001 - the same: a case that fails is a line of the table
            failure = describe(error)
        if failure:  # only here, where the error no longer keeps its tensors
            pipeline.forget()
            say({"error": failure})


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that prints of libraries do not mix with answers

    def say(message: dict[str, Any]) -> None:
        """Write one answer."""
        print(json.dumps(message), file=answers, flush=True)

    main(json.loads(sys.argv[1]), sys.stdin, say)
