"""The size in pixels that our own engines draw."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prefect_imagegen.core.request.models.spec import SizeSpec

MATCH_INPUT_IMAGE = "match_input_image"
"""The aspect ratio that means that of the first reference."""
ASPECT_SIZES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "1:1": (1024, 1024),
        "2:3": (832, 1248),
        "3:2": (1248, 832),
        "3:4": (880, 1184),
        "4:3": (1184, 880),
        "4:5": (912, 1152),
        "5:4": (1152, 912),
        "9:16": (768, 1360),
        "16:9": (1360, 768),
        "21:9": (1568, 672),
        "9:21": (672, 1568),
    }
)
"""Width and height in pixels that our own engines draw: about one megapixel, in multiples of 16.

Segmind publishes no sizes; the size of its images is read from the decoded bytes.
"""

_MEGAPIXEL = 1024 * 1024
_GRID = 16


def pixels_of(aspect_ratio: str, first: tuple[int, int] | None, megapixels: float = 1.0) -> tuple[int, int]:
    """Width and height to draw: of the table, or of the first reference, scaled down to so many megapixels.

    Multiples of 16, as the model wants them. Raises KeyError for an aspect ratio that is not in `ASPECT_SIZES`.
    """
    if aspect_ratio == MATCH_INPUT_IMAGE and first is not None:
        width, height = first
        scale = min(1.0, (megapixels * _MEGAPIXEL / (width * height)) ** 0.5)
    else:
        width, height = ASPECT_SIZES[aspect_ratio]
        scale = megapixels**0.5
    return max(_GRID, int(width * scale) // _GRID * _GRID), max(_GRID, int(height * scale) // _GRID * _GRID)


def size_of(
    size: SizeSpec, params: Mapping[str, Any], first: tuple[int, int] | None, megapixels: float = 1.0
) -> tuple[int, int]:
    """Width and height to draw for a body: exactly as it names them, else by its aspect ratio, else a square.

    `first` is the size of the first reference. Raises KeyError for an aspect ratio without a known size.
    """
    sides = size.sides(params)
    if sides is not None:
        return sides
    ratio = params.get(size.ratio) if size.ratio else None
    return pixels_of("1:1" if ratio is None else ratio, first, megapixels)
