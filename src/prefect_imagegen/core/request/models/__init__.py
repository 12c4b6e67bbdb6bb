"""The models: one row each says all that is known of a model, and everything that depends on a model reads it."""

from prefect_imagegen.core.request.models.prices import DEFAULT_LATENCY_S, DEFAULT_PRICE_USD, latency_of, price_of
from prefect_imagegen.core.request.models.rows import (
    DEFAULT_MODEL,
    MODELS,
    UNLISTED,
    known_fields,
    models_with_weights,
    reference_fields,
    spec_of,
)
from prefect_imagegen.core.request.models.sizes import ASPECT_SIZES, MATCH_INPUT_IMAGE, pixels_of, size_of
from prefect_imagegen.core.request.models.spec import (
    REFERENCES,
    SPELLINGS,
    FieldSpec,
    ModelSpec,
    ReferenceSpec,
    SizeSpec,
    by_name,
)

MAX_SEED = 2**31 - 1
"""Derived seeds lie in 0..MAX_SEED; the API publishes no upper bound of its own."""

__all__ = [
    "ASPECT_SIZES",
    "DEFAULT_LATENCY_S",
    "DEFAULT_MODEL",
    "DEFAULT_PRICE_USD",
    "MATCH_INPUT_IMAGE",
    "MAX_SEED",
    "MODELS",
    "REFERENCES",
    "SPELLINGS",
    "UNLISTED",
    "FieldSpec",
    "ModelSpec",
    "ReferenceSpec",
    "SizeSpec",
    "by_name",
    "known_fields",
    "latency_of",
    "models_with_weights",
    "pixels_of",
    "price_of",
    "reference_fields",
    "size_of",
    "spec_of",
]
