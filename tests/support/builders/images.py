"""Pictures that tests send and receive, as bytes and as data URLs."""

import base64
import io
from typing import Any

from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file of a format that Pillow writes."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def png(side: int = 64, spread: int = 50) -> bytes:
    """A square PNG of grey noise: no two are the same, and none is blank."""
    return encoded(Image.effect_noise((side, side), spread))


def data_url(data: bytes, kind: str = "png") -> str:
    """Bytes as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
