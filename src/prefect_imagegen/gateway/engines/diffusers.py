"""FLUX.2 [klein] on this machine, through diffusers: the model is loaded once, and makes one batch at a time.

Facts of diffusers 0.42.1: one call takes many prompts and generators, but one size, one number of steps, one guidance
and one list of references. A negative prompt goes in as embeddings, and only a checkpoint that is not distilled
uses it. Noise is made on the CPU, so that a seed gives the same noise on every kind of GPU.
"""

import asyncio
import importlib.util
import inspect
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.images.image import CONTENT_TYPES, encode, upright_size
from prefect_imagegen.core.images.reference_pictures import plain_picture
from prefect_imagegen.core.request.profiles import PROFILES, Profile, weights_label
from prefect_imagegen.gateway.engines.base import ImageJob, ImageOutput, UndrawableError
from prefect_imagegen.gateway.jobs.batching import Batcher
from prefect_imagegen.gateway.jobs.metrics import Metrics
from prefect_imagegen.gateway.settings import GatewaySettings

_NEEDED = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
_PIPELINES = ("Flux2KleinPipeline", "Flux2KleinKVPipeline")
_WARM_UP_SIDE = 64
_MIN_SIDE = 64
_MAX_RATIO = 8


class DiffusersEngine:
    """Makes images of equal size, steps, guidance and references in batches; encodes them while the next batch runs."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._pipe: Any = None
        self._profile: Profile | None = None
        """The profile of the checkpoint, once it is loaded and has made its first image."""
        # One thread for the model; others decode and encode.
        self._gpu = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="encode")
        self._batcher = Batcher[ImageJob, Image.Image](
            self._run, _group, most=settings.max_batch, delay=settings.batch_delay_s
        )

    @property
    def facts(self) -> Mapping[str, Any]:
        """The checkpoint, its licence, its profile, and the largest batch."""
        return {
            "weights": weights_label(self._settings.model_path or ""),
            "weights_license": self._settings.weights_license,
            "profile": self._profile.name if self._profile else None,
            "max_batch": self._settings.max_batch,
        }

    async def start(self) -> None:
        """Load the checkpoint and make one small image. Raises RefusedError."""
        await asyncio.get_running_loop().run_in_executor(self._gpu, self._load)

    async def draw(self, job: ImageJob) -> ImageOutput:
        """Make one image, in a batch with others like it. Raises UndrawableError."""
        for position, data in enumerate(job.references, 1):
            width, height = await asyncio.to_thread(upright_size, data)
            if min(width, height) < _MIN_SIDE or max(width, height) > _MAX_RATIO * min(width, height):
                raise UndrawableError(
                    f"image {position} of image_urls has {width}x{height} pixels: a side must have at least "
                    f"{_MIN_SIDE}, and be at most {_MAX_RATIO} times the other"
                )
        profile = self._profile
        assert profile is not None  # noqa: S101 - `start` has set it
        params = profile.applied(job.params)
        image = await self._batcher.submit(replace(job, params=params))
        data = await asyncio.get_running_loop().run_in_executor(
            self._threads, encode, image, job.image_format, job.quality
        )
        changed = profile.ignored(job.params)
        return ImageOutput(data, CONTENT_TYPES[job.image_format], {name: params[name] for name in changed})

    async def close(self) -> None:
        """Wait for the batch under way and release the model."""
        await self._batcher.close()
        for pool in (self._gpu, self._threads):
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)
        self._pipe = None

    async def _run(self, batch: Sequence[ImageJob]) -> Sequence[Image.Image]:
        started = time.monotonic()
        images: list[Image.Image] = await asyncio.get_running_loop().run_in_executor(self._gpu, self._draw, batch)
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_seconds.observe(time.monotonic() - started)
        return images

    def _load(self) -> None:
        import torch  # noqa: PLC0415 - heavy, and an extra
        from diffusers import DiffusionPipeline  # noqa: PLC0415 - heavy, and an extra

        settings, name = self._settings, self._settings.model_path or ""
        device = settings.device or _best_device(torch)
        dtype = settings.dtype or ("float32" if device == "cpu" else "bfloat16")
        try:
            pipe = DiffusionPipeline.from_pretrained(
                name, dtype=getattr(torch, dtype), local_files_only=Path(name).is_dir()
            )
            if type(pipe).__name__ not in _PIPELINES:
                raise TypeError(f"it is a {type(pipe).__name__}, not a {' or '.join(_PIPELINES)}")
            if settings.offload:
                pipe.enable_model_cpu_offload(device=device)
            else:
                pipe.to(device)
            pipe.set_progress_bar_config(disable=True)
            self._pipe = pipe
            side = _WARM_UP_SIDE
            self._draw([ImageJob("", "a", 0, side, side, "png", 90, "", params={"steps": 1, "cfg": 1})])
            # A pipeline with a reference cache has no such entry, and is always distilled.
            self._profile = PROFILES["klein-distilled" if pipe.config.get("is_distilled", True) else "klein-base"]
        except Exception as error:  # files, device and memory fail in many ways: the user gets it in words
            raise RefusedError(
                "model_unusable",
                f"The checkpoint {name} cannot be used: {error}.",
                remedy="Check --model (a folder of a Flux2KleinPipeline, or a model id you have access to), --device, "
                "--dtype and --offload.",
            ) from error

    def _draw(self, batch: Sequence[ImageJob]) -> list[Image.Image]:
        """Make a batch with one call of the pipeline; runs in the model's thread."""
        import torch  # noqa: PLC0415 - heavy, and an extra

        first, params = batch[0], batch[0].params
        options: dict[str, Any] = {}
        if first.references:
            options["image"] = [plain_picture(data) for data in first.references]
        if "guidance_scale" in inspect.signature(self._pipe.__call__).parameters:  # not with reference caching (KV)
            options["guidance_scale"] = float(params["cfg"])
        if params["cfg"] > 1:
            negatives = [str(job.params.get("negative_prompt") or "") for job in batch]
            with torch.no_grad():
                options["negative_prompt_embeds"], _ = self._pipe.encode_prompt(prompt=negatives)
        result = self._pipe(
            prompt=[job.prompt for job in batch],
            width=first.width,
            height=first.height,
            num_inference_steps=int(params["steps"]),
            generator=[torch.Generator("cpu").manual_seed(job.seed) for job in batch],
            **options,
        )
        return list(result.images)


def check_diffusers(settings: GatewaySettings) -> None:
    """Raise RefusedError for settings that cannot work, before anything heavy is loaded."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise RefusedError(
            "extra_missing",
            f"The engine diffusers needs {', '.join(missing)}.",
            remedy="pip install 'prefect-imagegen[diffusers]'",
        )
    if not settings.model_path:
        raise RefusedError(
            "no_model",
            "The engine diffusers needs a checkpoint.",
            remedy="Give --model a folder or a model id, such as black-forest-labs/FLUX.2-klein-4B.",
        )
    if settings.dtype not in (None, *DTYPES):
        raise RefusedError("bad_dtype", f"There is no dtype {settings.dtype!r}.", remedy=f"Use {', '.join(DTYPES)}.")


DTYPES = ("bfloat16", "float16", "float32")


def _group(job: ImageJob) -> Hashable:
    """The values that all jobs of one batch share."""
    return job.width, job.height, job.params["steps"], job.params["cfg"], tuple(job.reference_ids)


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
