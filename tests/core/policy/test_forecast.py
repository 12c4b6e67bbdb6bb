"""The forecast of what a plan costs, and how long it takes."""

import pytest

from prefect_imagegen.core.ledger.fold import CostStats
from prefect_imagegen.core.policy.forecast import forecast

CLASS = "flux-2-klein-9b steps=20 sampler=euler references=0"


def test_without_a_history() -> None:
    """The averages that Segmind publishes, halved and doubled; time by the calls at once."""
    estimate = forecast({CLASS: 1000}, {}, in_flight=16, per_minute=None)
    assert (estimate.low_usd, estimate.high_usd) == (pytest.approx(20.095), pytest.approx(80.38))
    assert (estimate.low_seconds, estimate.high_seconds) == (pytest.approx(481.25), pytest.approx(1925.0))
    assert (estimate.images, estimate.measured) == (1000, 0)


def test_the_store_knows_better() -> None:
    """Costs of the same class are the range; other classes stay guesses, and add up."""
    costs = {CLASS: CostStats(7, 0.03, 0.05, 0.04, 8.0)}
    estimate = forecast({CLASS: 100, "other steps=9": 10}, costs, in_flight=4, per_minute=None)
    assert (estimate.low_usd, estimate.high_usd) == (pytest.approx(3.0 + 0.225), pytest.approx(5.0 + 0.9))
    assert estimate.low_seconds == pytest.approx((800 + 100) / 4)
    assert (estimate.images, estimate.measured) == (110, 100)


def test_a_rate_limit_sets_the_pace() -> None:
    """Where submits a minute are fewer than the calls at once allow, they decide."""
    estimate = forecast({CLASS: 1000}, {}, in_flight=4096, per_minute=50)
    assert estimate.low_seconds == estimate.high_seconds == pytest.approx(1200.0)
