"""A run in which too much fails stops before it has spent more."""

import pytest

from prefect_imagegen.core.policy.breaker import Breaker


def feed(breaker: Breaker, *, failed: int, fine: int = 0) -> list[bool]:
    return [breaker.record(failed=False) for _ in range(fine)] + [breaker.record(failed=True) for _ in range(failed)]


def test_it_waits_for_twenty_rows() -> None:
    """Nineteen failures say nothing yet; the twentieth stops the run."""
    assert feed(Breaker(0.5), failed=20) == [False] * 19 + [True]


def test_the_rate_itself_is_allowed() -> None:
    """The run stops above the rate, not at it."""
    assert feed(Breaker(0.5), fine=10, failed=10)[-1] is False
    assert feed(Breaker(0.5), fine=10, failed=11)[-1] is True


def test_only_the_last_hundred_count() -> None:
    """Old successes do not hide a fresh series of failures."""
    results = feed(Breaker(0.5), fine=10_000, failed=51)
    assert results.index(True) == 10_050


@pytest.mark.parametrize(("rate", "failed", "trips"), [(1.0, 500, False), (0.0, 1, True)])
def test_the_ends_of_the_scale(rate, failed, trips) -> None:
    """A rate of 1 never stops a run, a rate of 0 stops at the first failure among twenty."""
    assert feed(Breaker(rate), fine=19, failed=failed)[-1] is trips
