"""What a plan will cost and take."""

import pytest

from prefect_imagegen.core.ledger.fold import CostStats
from prefect_imagegen.core.policy.forecast import forecast

CLASS = "flux-2-klein-9b steps=20 sampler=euler references=0"


def test_without_a_history() -> None:
    """The averages that Segmind publishes, halved and doubled; time by the calls at once."""
    found = forecast({CLASS: 1000}, {}, in_flight=16, per_minute=None)
    assert (found.low_usd, found.high_usd) == (pytest.approx(20.095), pytest.approx(80.38))
    assert (found.low_seconds, found.high_seconds) == (pytest.approx(481.25), pytest.approx(1925.0))
    assert (found.images, found.measured) == (1000, 0)


def test_the_store_knows_better() -> None:
    """Costs of the same class are the range; other classes stay guesses, and add up."""
    costs = {CLASS: CostStats(7, 0.03, 0.05, 0.04, 8.0)}
    found = forecast({CLASS: 100, "other steps=9": 10}, costs, in_flight=4, per_minute=None)
    assert (found.low_usd, found.high_usd) == (pytest.approx(3.0 + 0.225), pytest.approx(5.0 + 0.9))
    assert found.low_seconds == pytest.approx((800 + 100) / 4)
    assert (found.images, found.measured) == (110, 100)


def test_a_rate_limit_sets_the_pace() -> None:
    """Where submits a minute are fewer than the calls at once allow, they decide."""
    found = forecast({CLASS: 1000}, {}, in_flight=4096, per_minute=50)
    assert found.low_seconds == found.high_seconds == pytest.approx(1200.0)
