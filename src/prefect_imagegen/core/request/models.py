"""The models: their fields with types, defaults, ranges and enums, their published prices and latencies.

Source of the facts: Segmind's model pages of flux-2-klein-9b and flux-2-klein-4b (August 2026).
A new model is one row in `MODELS` and one golden payload in the tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

DEFAULT_MODEL = "flux-2-klein-9b"
MATCH_INPUT_IMAGE = "match_input_image"
MAX_SEED = 2**31 - 1
"""Derived seeds lie in 0..MAX_SEED; the API publishes no upper bound of its own."""

FieldType = Literal["string", "integer", "number", "boolean"]


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One scalar field of a model: its type, its default (which is always sent) and its limits.

    `minimum` and `maximum` are inclusive and binding. `choices` is what the API's page shows: the page cuts its
    list of aspect ratios, so a value outside of it is a warning, never an error.
    """

    name: str
    type: FieldType
    default: str | float | bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The scalar fields of one model, by name, and the defaults that its request keys leave out.

    Every model takes `prompt` (string, required), `seed` (integer) and `image_urls` (list of references)
    besides. `key_defaults` is frozen for ever: a field or default that appears later never changes an old key.
    """

    slug: str
    fields: Mapping[str, FieldSpec]
    key_defaults: Mapping[str, str | float | bool]
    advised_references: int = 4
    """More references than this deserve a warning (Segmind publishes no maximum; other hosts take 4 or 5)."""


_KLEIN_FIELDS = (
    FieldSpec("negative_prompt", "string", "low quality, blurry, less details"),
    FieldSpec("cfg", "number", 5, minimum=1, maximum=20),
    FieldSpec("sampler", "string", "euler", choices=("euler", "res_2s")),
    FieldSpec("steps", "integer", 20, minimum=1, maximum=100),
    FieldSpec(
        "aspect_ratio",
        "string",
        "1:1",
        choices=(
            MATCH_INPUT_IMAGE,
            *("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9"),
        ),
    ),
    FieldSpec("go_fast", "boolean", default=True),
    FieldSpec("image_format", "string", "png", choices=("png", "jpeg", "webp")),
    FieldSpec("quality", "integer", 90, minimum=10, maximum=100),
)
# Frozen: request keys of stores in the field depend on these very values.
_KLEIN_KEY_DEFAULTS: Mapping[str, str | float | bool] = MappingProxyType(
    {
        "negative_prompt": "low quality, blurry, less details",
        "cfg": 5,
        "sampler": "euler",
        "steps": 20,
        "aspect_ratio": "1:1",
        "go_fast": True,
        "image_format": "png",
        "quality": 90,
    }
)


def _klein(slug: str) -> ModelSpec:
    return ModelSpec(slug, MappingProxyType({spec.name: spec for spec in _KLEIN_FIELDS}), _KLEIN_KEY_DEFAULTS)


MODELS: Mapping[str, ModelSpec] = MappingProxyType(
    {slug: _klein(slug) for slug in ("flux-2-klein-9b", "flux-2-klein-4b")}
)

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


PUBLISHED_PRICES_USD: Mapping[str, float] = MappingProxyType({"flux-2-klein-9b": 0.04019, "flux-2-klein-4b": 0.03185})
"""Average price of an image at Segmind (published in August 2026; the price is metered, so it varies by request)."""
DEFAULT_PRICE_USD = 0.045
"""The expected price of a model without a published one."""

PUBLISHED_LATENCIES_S: Mapping[str, float] = MappingProxyType({"flux-2-klein-9b": 15.4, "flux-2-klein-4b": 10.65})
"""Average seconds that an image takes at Segmind (published in August 2026)."""
DEFAULT_LATENCY_S = 20.0
"""The expected latency of a model without a published one."""
