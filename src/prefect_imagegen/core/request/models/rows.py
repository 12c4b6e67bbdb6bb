"""The table of models. A new model is one row here: docs/extend/model.md.

Where a fact is not published the limit is left out, and a comment says so.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from prefect_imagegen.core.request.models.sizes import MATCH_INPUT_IMAGE
from prefect_imagegen.core.request.models.spec import FieldSpec, ModelSpec, ReferenceSpec, SizeSpec, by_name

DEFAULT_MODEL = "flux-2-klein-9b"

# Source: Segmind's model pages of flux-2-klein-9b and flux-2-klein-4b (August 2026). The price is metered, so it varies
# by request; 4 is advised since no maximum of references is published, and other hosts take 4 or 5.
_KLEIN_9B = ModelSpec(
    "flux-2-klein-9b",
    by_name(
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
    ),
    # Frozen: request keys of stores in the field depend on these very values.
    MappingProxyType(
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
    ),
    ReferenceSpec(advised=4),
    format_field="image_format",
    quality_field="quality",
    size=SizeSpec(ratio="aspect_ratio"),
    price_fields=("steps", "sampler"),
    price_usd=0.04019,
    latency_s=15.4,
    has_weights=True,
)
_KLEIN_4B = replace(_KLEIN_9B, slug="flux-2-klein-4b", price_usd=0.03185, latency_s=10.65)

# Source: Segmind's API page of flux-2-pro (2026): image_urls is listed as required, though the sample call leaves it
# out. Not published there: the ranges of width, height and safety_tolerance, the most references (other hosts take 8),
# and the formats; these are the ones that Replicate's page of the model spells. That the price grows with the
# megapixels is Black Forest Labs' own way to price the model; Segmind publishes an average only.
_FLUX_2_PRO = ModelSpec(
    "flux-2-pro",
    by_name(
        FieldSpec("width", "integer", 1024, minimum=1),
        FieldSpec("height", "integer", 1024, minimum=1),
        FieldSpec("safety_tolerance", "integer", 3),
        FieldSpec("output_format", "string", "png", choices=("jpg", "png", "webp")),
    ),
    MappingProxyType({"width": 1024, "height": 1024, "safety_tolerance": 3, "output_format": "png"}),
    ReferenceSpec(minimum=1, advised=8),
    format_field="output_format",
    size=SizeSpec(width="width", height="height"),
    is_priced_by_size=True,
    price_usd=0.0725,
    latency_s=24.37,
)

# Source: Segmind's API page of qwen-image-edit-plus (2026), whose sample call has these fields and values. Not
# published there: the list of aspect ratios, the formats besides webp (those of the other models of its family at
# Segmind are taken), and a price. An edit needs a picture, so the first is required.
_QWEN_IMAGE_EDIT_PLUS = ModelSpec(
    "qwen-image-edit-plus",
    by_name(
        FieldSpec("aspect_ratio", "string", MATCH_INPUT_IMAGE),
        FieldSpec("go_fast", "boolean", default=True),
        FieldSpec("image_format", "string", "webp", choices=("png", "jpeg", "webp")),
        FieldSpec("quality", "integer", 90),
        FieldSpec("base64", "boolean", default=False),
    ),
    MappingProxyType(
        {
            "aspect_ratio": MATCH_INPUT_IMAGE,
            "go_fast": True,
            "image_format": "webp",
            "quality": 90,
            "base64": False,
        }
    ),
    ReferenceSpec(("image", "image_2", "image_3"), is_list=False, minimum=1),
    format_field="image_format",
    quality_field="quality",
    size=SizeSpec(ratio="aspect_ratio"),
    price_fields=("go_fast",),
    latency_s=12.37,
)

_ROWS = {spec.slug: spec for spec in (_KLEIN_9B, _KLEIN_4B, _FLUX_2_PRO, _QWEN_IMAGE_EDIT_PLUS)}
MODELS: Mapping[str, ModelSpec] = MappingProxyType(_ROWS)
"""The known models, by slug."""

_UNLISTED_FIELDS = by_name(
    *(_KLEIN_9B.fields[name] for name in ("steps", "sampler", "image_format", "quality", "aspect_ratio"))
)
UNLISTED = ModelSpec(
    "",
    _UNLISTED_FIELDS,
    MappingProxyType({}),
    ReferenceSpec(is_always_sent=False),
    format_field="image_format",
    quality_field="quality",
    size=SizeSpec(ratio="aspect_ratio"),
    price_fields=("steps", "sampler"),
)
"""What is assumed of a slug that has no row: fields are called as those of klein, and their values are not checked."""


def spec_of(slug: str) -> ModelSpec:
    """The row of a model, or `UNLISTED`."""
    return MODELS.get(slug, UNLISTED)


def known_fields() -> dict[str, FieldSpec]:
    """The scalar fields of all models by name; of a name that several models have, the first model's."""
    fields: dict[str, FieldSpec] = {}
    for spec in MODELS.values():
        fields = {**spec.fields, **fields}
    return fields


def reference_fields() -> dict[str, bool]:
    """The fields of bodies that carry references, in any model, with whether they hold a list."""
    specs = [spec.references for spec in (*MODELS.values(), UNLISTED)]
    return {name: spec.is_list for spec in specs for name in spec.fields}


def models_with_weights() -> list[str]:
    """The slugs of the models that own GPU workers can run."""
    return [slug for slug, spec in MODELS.items() if spec.has_weights]
