"""What a row of the table of models says: fields, references, format, size, and what the price depends on."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

FieldType = Literal["string", "integer", "number", "boolean"]
Scalar = str | float | bool
REFERENCES = "image_urls"
"""The one field of a manifest and of a request key that holds references, however a model wants them sent."""
SPELLINGS: Mapping[str, str] = MappingProxyType({"jpg": "jpeg"})
"""Other spellings of image formats, with the name that decoding gives them."""
_MEGAPIXEL = 1024 * 1024
_SIDES = re.compile(r"([0-9]{1,6}) ?[x*] ?([0-9]{1,6})", re.IGNORECASE)
_WORDS: Mapping[FieldType, str] = MappingProxyType(
    {"string": "text", "boolean": "true or false", "integer": "a whole number", "number": "a number"}
)


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One scalar field of a model: its type, its default (which is always sent) and its limits.

    `minimum` and `maximum` are inclusive and binding. `choices` is what the API's page shows: the page of klein cuts
    its list of aspect ratios, so for the API a value outside of it is a warning, never an error.
    """

    name: str
    type: FieldType
    default: Scalar | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> str | None:
        """Why a value, as JSON has it, cannot be that of the field; None where it can.

        The text follows the name of the field. A whole number may come as a float (20.0).
        """
        if not self._has_type(value):
            return f"it must be {_WORDS[self.type]}"
        low, high = self.minimum, self.maximum
        if low is not None and high is not None:
            return None if low <= value <= high else f"it must lie in {low:g} to {high:g}"
        if low is not None:
            return None if low <= value else f"it must be at least {low:g}"
        return None if high is None or value <= high else f"it must be at most {high:g}"

    def _has_type(self, value: Any) -> bool:
        if self.type in ("string", "boolean"):
            return isinstance(value, str if self.type == "string" else bool)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return isinstance(value, int) or (math.isfinite(value) and (self.type == "number" or value.is_integer()))


@dataclass(frozen=True, slots=True)
class ReferenceSpec:
    """How many references a model takes, and in which fields of the body they are sent.

    `fields` is one name if they travel as a list (`is_list`), else one name for each reference, in order; a model
    without references has none. `advised`: more than so many deserve a warning. `is_always_sent`: whether an empty
    list is sent too.
    """

    fields: tuple[str, ...] = (REFERENCES,)
    is_list: bool = True
    minimum: int = 0
    published_maximum: int | None = None
    advised: int | None = None
    is_always_sent: bool = True

    @property
    def maximum(self) -> int | None:
        """The most references that can be sent; None where no limit is published."""
        return self.published_maximum if self.is_list else len(self.fields)

    def check(self, count: int) -> str | None:
        """Why so many references cannot be sent; None where they can. The text follows the name of the model."""
        if count < self.minimum:
            return f"needs at least {_references(self.minimum)}, and there {'is' if count == 1 else 'are'} {count}"
        if self.maximum is not None and count > self.maximum:
            return f"takes at most {_references(self.maximum)}, and there are {count}"
        return None

    def bind(self, urls: Sequence[str]) -> dict[str, Any]:
        """The fields of the body that carry references. Raises ValueError for more than there are fields for."""
        if self.is_list:
            return {self.fields[0]: list(urls)} if urls or self.is_always_sent else {}
        if len(urls) > len(self.fields):
            raise ValueError(f"{len(urls)} references for {len(self.fields)} fields")
        return dict(zip(self.fields, urls, strict=False))

    def values_in(self, body: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """The references in a body with their places for messages (`image 2 of image_urls`, `image_2`), unchecked.

        A list field that holds no list gives nothing.
        """
        if not self.is_list:
            return [(name, body[name]) for name in self.fields if body.get(name) is not None]
        values = body.get(self.fields[0])
        items = values if isinstance(values, list) else []
        return [(f"image {number} of {self.fields[0]}", value) for number, value in enumerate(items, 1)]


@dataclass(frozen=True, slots=True)
class SizeSpec:
    """Which fields give the size of the image: an aspect ratio, width and height in pixels, or both sides in one text.

    `pixels` is the name of a text field that holds both, as `1024x768` or `1024*768`.
    """

    ratio: str | None = None
    width: str | None = None
    height: str | None = None
    pixels: str | None = None

    def sides(self, params: Mapping[str, Any]) -> tuple[int, int] | None:
        """Width and height as a body names them in pixels; None where it does not."""
        if self.pixels is not None:
            match = _SIDES.fullmatch(str(params.get(self.pixels)))
            return (int(match[1]), int(match[2])) if match else None
        width, height = (params.get(name) if name else None for name in (self.width, self.height))
        if not isinstance(width, int | float) or not isinstance(height, int | float):
            return None
        return int(width), int(height)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: all that validation, gateway, budget, forecast and file names know of it.

    Every model takes `prompt` (string, required) and `seed` (integer) besides `fields`. `key_defaults` is frozen for
    ever: a field or default that appears later never changes an old key. `format_field` and `quality_field` name the
    fields of the output's format and quality. The price depends on `price_fields`, on the number of references, and
    where `is_priced_by_size` on the megapixels. `price_usd` and `latency_s` are published averages, None if there are
    none. `has_weights`: whether own GPU workers can run it (profiles.py).

    Raises ValueError for a row that contradicts itself.
    """

    slug: str
    fields: Mapping[str, FieldSpec]
    key_defaults: Mapping[str, Scalar]
    references: ReferenceSpec = ReferenceSpec()
    format_field: str | None = None
    default_format: str = "png"
    """The format of a model whose body does not name one."""
    quality_field: str | None = None
    size: SizeSpec = SizeSpec()
    price_fields: tuple[str, ...] = ()
    is_priced_by_size: bool = False
    price_usd: float | None = None
    latency_s: float | None = None
    has_weights: bool = False

    def __post_init__(self) -> None:
        """Check the row against itself."""
        size = (self.size.ratio, self.size.width, self.size.height, self.size.pixels)
        named = {name for name in (self.format_field, self.quality_field, *size, *self.price_fields) if name}
        wrong = [f"it has no field {name}" for name in sorted(named - self.fields.keys())]
        wrong += [f"{name} is the name of {field.name}" for name, field in self.fields.items() if name != field.name]
        wrong += [
            f"limits of {name}, which is no number"
            for name, field in self.fields.items()
            if field.type in ("string", "boolean") and (field.minimum, field.maximum) != (None, None)
        ]
        wrong += [
            f"the default of {name}: {field.check(field.default)}"
            for name, field in self.fields.items()
            if not wrong and field.default is not None and field.check(field.default)
        ]
        wrong += [f"key default of no field: {name}" for name in sorted(self.key_defaults.keys() - self.fields.keys())]
        if self.references.is_list and len(self.references.fields) != 1:
            wrong.append("a list of references has one field")
        if (self.size.width is None) != (self.size.height is None):
            wrong.append("width and height belong together")
        if self.is_priced_by_size and not (self.size.width or self.size.pixels):
            wrong.append("priced by a size that no field names in pixels")
        if wrong:
            raise ValueError(f"{self.slug}: {'; '.join(wrong)}")

    def format_of(self, params: Mapping[str, Any]) -> str:
        """The requested format in the API's spelling, in lower case: `jpg` stays `jpg`."""
        value = params.get(self.format_field) if self.format_field else None
        return str(value or self.default_format).lower()

    def quality_of(self, params: Mapping[str, Any], default: int = 90) -> int:
        """The requested quality of JPEG and WebP, or the default."""
        value = params.get(self.quality_field) if self.quality_field else None
        return default if value is None else int(value)

    def megapixels(self, params: Mapping[str, Any]) -> int | None:
        """The size in whole megapixels (of 1024x1024), rounded up; None where the body does not give the size."""
        sides = self.size.sides(params)
        return max(1, math.ceil(sides[0] * sides[1] / _MEGAPIXEL)) if sides else None


def by_name(*fields: FieldSpec) -> Mapping[str, FieldSpec]:
    """Fields by their names."""
    return MappingProxyType({field.name: field for field in fields})


def _references(count: int) -> str:
    return f"{count} reference image{'' if count == 1 else 's'}"
