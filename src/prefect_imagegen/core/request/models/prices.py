"""What an image is expected to cost and take before any was measured, by its cost class. Pure.

A cost class is a text that begins with the slug and goes on with `name=value` pairs: `GenerationRequest.cost_class`.
"""

import re

from prefect_imagegen.core.request.models.rows import spec_of

DEFAULT_PRICE_USD = 0.045
"""The expected price of a model without a published one."""
DEFAULT_LATENCY_S = 20.0
"""The expected latency of a model without a published one."""
_MEGAPIXELS = re.compile(r" megapixels=(\d+)")


def price_of(cost_class: str) -> float:
    """US dollars: the price that is published for the model, else the default.

    Where the size counts, the published average is taken for that of one megapixel and multiplied: an estimate on the
    high side, since a cap must not be blind to the size.
    """
    published = spec_of(_slug(cost_class)).price_usd
    match = _MEGAPIXELS.search(cost_class)
    return (DEFAULT_PRICE_USD if published is None else published) * (int(match[1]) if match else 1)


def latency_of(cost_class: str) -> float:
    """Seconds: the latency that is published for the model, else the default."""
    published = spec_of(_slug(cost_class)).latency_s
    return DEFAULT_LATENCY_S if published is None else published


def _slug(cost_class: str) -> str:
    return cost_class.split(" ", 1)[0]
