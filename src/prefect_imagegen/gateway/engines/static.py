"""The engine `static`, for benchmarks: one encoded image of a chosen size, made distinct by a text chunk."""

import io
import random
import struct
import zlib
from functools import lru_cache

from PIL import Image

from prefect_imagegen.core.images.image import CONTENT_TYPES
from prefect_imagegen.gateway.engines.base import ImageJob, ImageOutput, PaintingEngine
from prefect_imagegen.gateway.jobs.metrics import Metrics
from prefect_imagegen.gateway.settings import GatewaySettings

_SIDE = 1024
_PNG_HEADER = 33
"""Bytes of the PNG signature and IHDR, after which text chunks go."""


class StaticEngine(PaintingEngine):
    """Returns the same image of about `static_bytes` bytes and 1024x1024 pixels for every request."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        self._format = settings.static_format
        self._data = _encoded(settings.static_format, settings.static_bytes)

    def paint(self, job: ImageJob) -> ImageOutput:
        """The image with the request's id in a text chunk; it still decodes in full."""
        data = _with_text(self._format, self._data, job.request_id.encode())
        return ImageOutput(data, CONTENT_TYPES[self._format])


@lru_cache(maxsize=8)
def _encoded(image_format: str, size: int) -> bytes:
    """An encoded image of about `size` bytes, by a binary search over the number of noisy rows."""
    if image_format not in ("png", "jpeg", "webp"):
        raise ValueError(f"no static image of format {image_format!r}: png, jpeg or webp")
    noise = random.Random(0).randbytes(_SIDE * _SIDE * 3)  # noqa: S311 - test pixels
    low, high = 0, _SIDE
    data = b""
    for _ in range(10):
        rows = (low + high) // 2
        image = Image.frombytes("RGB", (_SIDE, _SIDE), noise[: rows * _SIDE * 3] + bytes((_SIDE - rows) * _SIDE * 3))
        sink = io.BytesIO()
        image.save(sink, image_format.upper(), **({"compress_level": 1} if image_format == "png" else {"quality": 90}))
        data = sink.getvalue()
        low, high = (rows, high) if len(data) < size else (low, rows)
    return data


def _with_text(image_format: str, data: bytes, text: bytes) -> bytes:
    if image_format == "png":
        chunk = b"tEXtrequest\0" + text
        whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return data[:_PNG_HEADER] + whole + data[_PNG_HEADER:]
    if image_format == "jpeg":
        return data[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + data[2:]
    # An unknown chunk at the end of the RIFF file, padded to even length.
    chunk = b"reqi" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    return data[:4] + struct.pack("<I", len(data) + len(chunk) - 8) + data[8:] + chunk
