"""What images will cost and how long they will take, as a low-high range. Pure.

From what the store's own ledger measured of the same cost class; else from the averages that Segmind publishes (August
2026), halved and doubled: the price is metered, so it varies with steps, sampler and references.
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
    """US dollars and seconds, low and high; `measured`: so many of the images are of a class that was measured."""

    images: int = 0
    measured: int = 0
    low_usd: float = 0.0
    high_usd: float = 0.0
    low_seconds: float = 0.0
    high_seconds: float = 0.0
    free: bool = False
    """Workers of one's own draw them: there is nothing to pay, and nothing known of their speed."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def forecast(
    to_make: Mapping[str, int],
    costs: Mapping[str, CostStats],
    *,
    in_flight: int,
    per_minute: float | None,
    free: bool = False,
) -> Forecast:
    """The forecast for so many images of each cost class, with so many calls at once and submits a minute."""
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
