"""What an engine gets and gives."""

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
    """One picture to draw: every parameter resolved; `references` are image bytes, in order. Sizes in pixels.

    `reference_ids` are the SHA-256 of the references. `params` are the model's own fields by name. `identity` stands
    for the whole request: what differs in any parameter differs in it.
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
    """The encoded image, its media type, and what was used in place of parameters that could not be honoured."""

    data: bytes
    content_type: str
    applied: Mapping[str, Any] = field(default_factory=dict)


class UndrawableError(ValueError):
    """The engine cannot draw what is asked for, however often; the message is the API's error text."""


class Engine(Protocol):
    """Draws pictures, for one event loop."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        """Make the engine; what takes long waits for `start`."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `GET /health` tells of the engine besides its name."""
        ...

    async def start(self) -> None:
        """Get ready to draw. Raises RefusedError if that cannot be."""
        ...

    async def draw(self, picture: ImageJob) -> ImageOutput:
        """Draw one picture. Raises UndrawableError."""
        ...

    async def close(self) -> None:
        """Let go of threads and memory."""
        ...


class PaintingEngine(ABC):
    """An engine whose pictures are drawn one by one, in threads, by `paint`."""

    facts: Mapping[str, Any] = {}

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        del settings, metrics  # nothing to set up
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="draw")

    @abstractmethod
    def paint(self, picture: ImageJob) -> ImageOutput:
        """Draw one picture; called from a thread."""

    async def start(self) -> None:  # noqa: B027 - an engine may override it
        """Nothing to get ready."""

    async def draw(self, picture: ImageJob) -> ImageOutput:
        """Draw one picture."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.paint, picture)

    async def close(self) -> None:
        """Wait for what is being drawn; forget the rest."""
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
