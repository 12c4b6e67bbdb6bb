"""The budget: a hard cap that is kept by reservations, and wholly used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.ledger.fold import CostStats
from prefect_imagegen.core.policy.budget import Budget, Reservation


def reserved(budget: Budget, name: str = "a", default: float = 0.04) -> Reservation:
    reservation = budget.reserve(name, default)
    assert isinstance(reservation, Reservation)
    return reservation


def measured(cap: float | None, worst: float = 0.04) -> Budget:
    return Budget.of(cap, {"a": CostStats(9, 0.01, worst, 0.03, None)})


def test_what_earlier_runs_measured_counts() -> None:
    """A class measured before reserves its worst cost from the first call, however many are in flight."""
    budget = measured(1.0, worst=0.1)
    assert [reserved(budget).amount for _ in range(10)] == [0.1] * 10
    assert budget.reserve("a", 0.04) == "wait"


def test_an_unmeasured_class_goes_two_at_a_time() -> None:
    """Until five costs are known two calls are out at most; another class has its own two."""
    budget = Budget(cap=10.0)
    first = [reserved(budget), reserved(budget)]
    assert budget.reserve("a", 0.04) == "wait"
    reserved(budget, "b")
    for _ in range(5):
        budget.settle(first.pop(), 0.05)
        first.append(reserved(budget))
    assert reserved(budget).amount == 0.05


def test_the_whole_cap_can_be_used() -> None:
    """A call that fits exactly goes out; the next one does not, and nobody waits for nothing."""
    budget = measured(0.12)
    for _ in range(3):
        budget.settle(reserved(budget), 0.04)
    assert budget.reserve("a", 0.04) == "over"
    assert budget.spent == pytest.approx(0.12)


def test_what_comes_back_can_be_spent() -> None:
    """While calls are out, one that does not fit waits: they may cost less, or nothing."""
    budget = measured(0.04)
    reservation = reserved(budget)
    assert budget.reserve("a", 0.04) == "wait"
    budget.release(reservation)
    assert reserved(budget).amount == 0.04


def test_a_missing_cost_counts_as_its_reservation() -> None:
    """What no answer told is taken to have cost what was set aside."""
    budget = measured(1.0)
    budget.settle(reserved(budget), None)
    assert (budget.spent, budget.reserved) == (pytest.approx(0.04), pytest.approx(0.0))
    assert (budget.measured["a"], budget.unnamed["a"]) == (9, 1)


def test_an_api_that_names_no_cost_is_not_slow_for_ever() -> None:
    """After five answers without a cost, more than two calls are out, each reserving the published price."""
    budget = Budget(cap=1.0)
    for _ in range(5):
        first, second = reserved(budget), reserved(budget)
        assert budget.reserve("a", 0.04) == "wait"
        budget.settle(first, None)
        budget.release(second)
    assert [reserved(budget).amount for _ in range(20)] == [0.04] * 20
    assert budget.spent == pytest.approx(0.2)
    assert budget.reserve("a", 0.04) == "wait"
    assert budget.reserve("b", 0.04) == "wait"


def test_answers_with_and_without_a_cost_count_together() -> None:
    """Five answers are enough to be known by, whether they name a cost or not; another class has its own five."""
    budget = Budget(cap=9.0)
    for cost in (0.01, None, 0.02, None, 0.01):
        first, second = reserved(budget), reserved(budget)
        assert budget.reserve("a", 0.04) == "wait"
        budget.settle(first, cost)
        budget.release(second)
    assert [reserved(budget).amount for _ in range(5)] == [0.02] * 5
    assert [reserved(budget, "b").amount, reserved(budget, "b").amount] == [0.04] * 2
    assert budget.reserve("b", 0.04) == "wait"


@pytest.mark.parametrize(("worst", "amount"), [(0.1, 0.1), (0.01, 0.04)])
def test_an_assumed_price_is_the_higher_one(worst: float, amount: float) -> None:
    """Once an API names no cost, a call reserves the published price or the worst seen, whichever is more."""
    budget = measured(9.0, worst)
    for count in range(5):
        assert budget.assumed is False
        assert reserved(budget).amount == worst
        budget.settle(reserved(budget), None)
        assert budget.unnamed["a"] == count + 1
    assert reserved(budget).amount == amount
    assert budget.assumed is True


def test_an_assumed_price_is_said() -> None:
    """A cap that is held against a price that nobody measured says so, from the first image; without a cap, nothing."""
    for cap, expected in ((1.0, True), (None, False)):
        budget = Budget(cap=cap)
        assert budget.assumed is False
        budget.settle(reserved(budget), None)
        assert budget.assumed is expected
    budget = measured(1.0)
    budget.settle(reserved(budget), 0.04)
    assert budget.assumed is False
    assert budget.unnamed == {}


def test_stranded_money_stays_reserved_and_is_not_waited_for() -> None:
    """A call of unknown fate keeps its money; when nothing else is out the run is at its end."""
    budget = measured(0.05)
    reservation = reserved(budget)
    budget.detach(reservation)
    assert budget.reserve("a", 0.04) == "over"
    budget.settle(reservation, 0.01)
    assert reserved(budget).amount == 0.04


def test_without_a_cap_nothing_waits() -> None:
    """No cap, no limit; what is spent is counted all the same."""
    budget = Budget()
    for _ in range(100):
        reserved(budget)
    budget.settle(reserved(budget), 7.0)
    assert (budget.spent, budget.overshoot) == (7.0, 0.0)


@given(
    st.floats(0.05, 2.0),
    st.lists(st.tuples(st.sampled_from("rsmx"), st.floats(0.001, 0.2)), max_size=200),
)
def test_the_overshoot_is_bounded(cap: float, steps: list[tuple[str, float]]) -> None:
    """Whatever comes back, spent exceeds the cap by no more than calls cost above what was reserved for them."""
    budget, out, excess = Budget(cap=cap), [], 0.0
    for step, cost in steps:
        if step == "x" or not out:
            answer = budget.reserve("a", 0.04)
            if isinstance(answer, Reservation):
                out.append(answer)
            continue
        reservation = out.pop()
        if step == "r":
            budget.release(reservation)
        elif step == "m":
            budget.settle(reservation, None)
        else:
            excess += max(0.0, cost - reservation.amount)
            budget.settle(reservation, cost)
    assert budget.overshoot <= excess + 1e-6
    assert budget.reserved == pytest.approx(sum(unsettled.amount for unsettled in out))
