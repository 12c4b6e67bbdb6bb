"""What the bytes of an image say: decoded in full, since anything less lets truncated files pass."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageStat, UnidentifiedImageError

from prefect_imagegen.core.events import ImageFacts

MAX_PIXELS = 64 * 1024 * 1024
"""Refuse to decode more: no model delivers it, and a decompression bomb might. Below Pillow's own limit."""
CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_BLANK_STDDEV = 2.0
_ORIENTATION = 0x0112
_TURNED = 5
"""From this EXIF orientation on, a picture lies on its side."""
_PNG_LEVEL = 1
"""Higher ones cost many times the CPU for files hardly smaller."""
_PNG_END = b"IEND\xaeB`\x82"


class BadImageError(ValueError):
    """The bytes are empty, truncated or no image; the message says which."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Width and height in pixels, the format by content (`png`, `jpeg`, `webp`, ...), SHA-256 (hex) and flags."""

    width: int
    height: int
    format: str
    sha256: str
    flags: tuple[str, ...]

    @property
    def content_type(self) -> str:
        """The media type that the bytes really are."""
        return CONTENT_TYPES.get(self.format, f"image/{self.format}")


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of an image as it is seen, from its head alone. Raises BadImageError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= _TURNED
    except Exception as error:  # Pillow raises many types on hostile bytes; all mean the same here
        raise BadImageError(f"not an image ({len(data)} bytes): {_said(error)}") from error
    return (height, width) if turned else (width, height)


def encode(image: Image.Image, image_format: str, quality: int, **options: Any) -> bytes:
    """The file of a picture: PNG without loss, JPEG and WebP at this quality; CPU-bound, so call it in a thread."""
    sink = io.BytesIO()
    options |= {"compress_level": _PNG_LEVEL} if image_format == "png" else {"quality": quality}
    image.save(sink, image_format.upper(), **options)
    return sink.getvalue()


def decode(data: bytes) -> Decoded:
    """Decode fully and describe; CPU-bound, so call it in a thread.

    A decodable but (nearly) one-coloured picture is flagged `blank`: typical of a safety filter that answers
    with HTTP 200. Raises BadImageError.
    """
    if not data:
        raise BadImageError("the answer is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{image.width}x{image.height} pixels are more than any model draws")
            image.load()
            small = image.convert("RGB").reduce(8) if min(image.size) >= 16 else image.convert("RGB")
            blank = max(ImageStat.Stat(small).stddev) < _BLANK_STDDEV
            width, height, kind = image.width, image.height, (image.format or "").lower()
            if kind == "png" and _PNG_END not in data[-4096:]:
                raise BadImageError(f"the PNG of {len(data)} bytes is truncated: its end is missing")
    except BadImageError:
        raise
    except Exception as error:  # Pillow raises many types on hostile bytes; all mean the same here
        start = data[:24].decode("latin-1")
        raise BadImageError(f"not a whole image ({len(data)} bytes beginning {start!r}): {_said(error)}") from error
    return Decoded(width, height, kind, hashlib.sha256(data).hexdigest(), ("blank",) if blank else ())


def _said(error: Exception) -> str:
    """What Pillow says, without the address of an object in memory: reasons are told, and counted, by their text."""
    return "its format is unknown" if isinstance(error, UnidentifiedImageError) else str(error)


def facts_of(path: str, decoded: Decoded, size: int) -> ImageFacts:
    """The facts of an image of so many bytes."""
    return ImageFacts(path, decoded.width, decoded.height, decoded.format, size, decoded.sha256, decoded.flags)
