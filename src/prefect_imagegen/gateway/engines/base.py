"""The port of engines: what an engine gets, what it returns, and what it must do."""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefect_imagegen.gateway.jobs.metrics import Metrics
from prefect_imagegen.gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class ImageJob:
    """One image to make, with every parameter resolved. Sizes in pixels.

    `references` are the bytes of the reference images, in order, and `reference_ids` their SHA-256. `params` are the
    model's own fields by name. `identity` differs whenever any parameter of the request differs.
    """

    model: str
    prompt: str
    seed: int
    width: int
    height: int
    image_format: str
    quality: int
    request_id: str
    identity: bytes = b""
    references: Sequence[bytes] = ()
    reference_ids: Sequence[str] = ()
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageOutput:
    """The encoded image and its media type; `applied`: the values used in place of parameters not honoured."""

    data: bytes
    content_type: str
    applied: Mapping[str, Any] = field(default_factory=dict)


class UndrawableError(ValueError):
    """The engine cannot make this image, and never will; the message is the API's error text."""


class Engine(Protocol):
    """Makes images, for one event loop."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        """Create the engine; slow preparations wait for `start`."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """The fields that `GET /health` shows for the engine besides its name."""
        ...

    async def start(self) -> None:
        """Prepare to make images. Raises RefusedError if that is impossible."""
        ...

    async def draw(self, job: ImageJob) -> ImageOutput:
        """Make one image. Raises UndrawableError."""
        ...

    async def close(self) -> None:
        """Release threads and memory."""
        ...


class PaintingEngine(ABC):
    """An engine that makes its images one by one, in threads, by `paint`."""

    facts: Mapping[str, Any] = {}

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        del settings, metrics  # nothing to set up
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="draw")

    @abstractmethod
    def paint(self, job: ImageJob) -> ImageOutput:
        """Make one image; called in a thread."""

    async def start(self) -> None:  # noqa: B027 - an engine may override it
        """Nothing to prepare."""

    async def draw(self, job: ImageJob) -> ImageOutput:
        """Make one image in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.paint, job)

    async def close(self) -> None:
        """Wait for the images being made; drop those that wait."""
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
