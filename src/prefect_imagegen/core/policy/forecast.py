"""The forecast of cost and time for a number of images, as a range from low to high. Pure.

It uses the costs that the store's ledger measured of the same cost class; else the averages that are published for the
model (August 2026), halved and doubled, since the metered price varies with steps, sampler and references.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prefect_imagegen.core.ledger.fold import CostStats
from prefect_imagegen.core.request.models import (
    DEFAULT_LATENCY_S,
    DEFAULT_PRICE_USD,
    PUBLISHED_LATENCIES_S,
    PUBLISHED_PRICES_USD,
)

_LOW, _HIGH = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """A range of cost (US dollars) and time (seconds); `measured` is the number of images of a measured class."""

    images: int = 0
    measured: int = 0
    low_usd: float = 0.0
    high_usd: float = 0.0
    low_seconds: float = 0.0
    high_seconds: float = 0.0
    free: bool = False
    """Whether own workers make the images: they cost nothing, and their speed is not forecast."""

    def as_dict(self) -> dict[str, Any]:
        """The forecast as a dict for JSON, rounded to 4 places."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def forecast(
    to_make: Mapping[str, int],
    costs: Mapping[str, CostStats],
    *,
    in_flight: int,
    per_minute: float | None,
    free: bool = False,
) -> Forecast:
    """The forecast for a number of images of each cost class, at most `in_flight` at once and `per_minute` a minute."""
    if free:
        return Forecast(sum(to_make.values()), free=True)
    images = measured = 0
    low_usd = high_usd = low_busy = high_busy = 0.0
    for name, count in to_make.items():
        images += count
        stats = costs.get(name)
        slug = name.split(" ", 1)[0]
        price = PUBLISHED_PRICES_USD.get(slug, DEFAULT_PRICE_USD)
        latency = PUBLISHED_LATENCIES_S.get(slug, DEFAULT_LATENCY_S)
        measured += count if stats else 0
        low_usd += count * (stats.low if stats else _LOW * price)
        high_usd += count * (stats.high if stats else _HIGH * price)
        known = stats.latency_s if stats else None
        low_busy += count * (known if known is not None else _LOW * latency)
        high_busy += count * (known if known is not None else _HIGH * latency)
    submits = 60.0 * images / per_minute if per_minute else 0.0
    return Forecast(
        images, measured, low_usd, high_usd, max(low_busy / in_flight, submits), max(high_busy / in_flight, submits)
    )
