"""Orders: what earlier executions have spent, each call counted once."""

import random
from datetime import UTC, datetime

import pytest

from prefect_imagegen.core.ledger.events import Event
from prefect_imagegen.core.ledger.fold import CostStats, events_table
from prefect_imagegen.core.ledger.orders import Spending, SpendingFold, cap_is_used
from prefect_imagegen.core.policy.budget import Budget
from tests.support.builders.ledger import event_of

START = datetime(2026, 11, 1, tzinfo=UTC)
CLASS = "flux-2-klein-9b steps=4 sampler=- references=0"


def event(kind, attempt="a", run="one", **facts) -> Event:
    if kind == "delivered":
        facts = {"request_id": "r", "http_status": 200} | facts
    facts |= {"cost_class": CLASS, "model": "flux-2-klein-9b"}
    return event_of(kind, bytes(16), attempt, run_id=run, time=START, **facts)


def spending(*events: Event, runs=("one", "two"), queues=True, claimed=(), ours=None) -> Spending:
    fold = SpendingFold(runs, queues=queues, claimed=claimed)
    for record in events:
        fold.add(events_table([record]))
    return fold.spending(fold.unheard if ours is None else ours)


CLAIMED = event("claimed")


@pytest.mark.parametrize(
    ("events", "cost", "unpriced"),
    [
        ([], 0.0, []),
        ([CLAIMED, event("delivered", cost_usd=0.04)], 0.04, []),
        ([CLAIMED], 0.0, ["a"]),
        ([CLAIMED, event("submitted", request_id="r")], 0.0, ["a"]),
        ([CLAIMED, event("delivered")], 0.0, ["a"]),
        ([CLAIMED, event("failed", error_kind="unsent")], 0.0, []),
        ([CLAIMED, event("failed", error_kind="server_error")], 0.0, ["a"]),
        ([CLAIMED, event("failed", error_kind="output_lost")], 0.0, ["a"]),
        ([CLAIMED, event("failed", error_kind="output_lost", cost_usd=0.03)], 0.03, []),
        ([CLAIMED, event("failed", error_kind="a kind of tomorrow")], 0.0, ["a"]),
        ([CLAIMED, event("failed", error_kind="not_accepted", run="two")], 0.0, []),
        ([CLAIMED, event("failed", error_kind="retry_asked", run="a retry command")], 0.0, ["a"]),
        ([CLAIMED, event("delivered", request_id=None, http_status=None)], 0.0, []),
        ([CLAIMED, event("delivered", request_id=None, http_status=None, run="two")], 0.0, ["a"]),
        ([event("claimed", run="another order"), event("delivered", cost_usd=0.04, run="two")], 0.04, []),
        ([event("claimed", run="another order"), event("delivered", run="two")], 0.0, []),
        ([event("claimed", run="another order"), event("delivered", cost_usd=9.0, run="another order")], 0.0, []),
    ],
)
def test_what_a_call_counts(events, cost, unpriced) -> None:
    """A call counts with its cost; one that may be billed and named none waits for its price; others count nothing.

    In the order: none, paid, claimed, accepted, delivered without a cost, not sent, an answered 5xx, paid and lost
    (without and with its cost), a kind that nobody knows, found not to have been accepted, given free by hand, an image
    that was there already when the claim was won (by the same run: no call; by the next one: a call), what this order
    settles of another one, and what another one pays.
    """
    total = spending(*events)
    assert total.cost_usd == pytest.approx(cost)
    assert list(total.unpriced) == unpriced
    assert total.executions == 2


def test_a_blocking_call_answered_with_an_error_costs_nothing() -> None:
    """Where work is not queued, only an answer of 200 is billed; a call without an answer may be."""
    failed = [CLAIMED, event("failed", error_kind="server_error")]
    assert list(spending(*failed, queues=False).unpriced) == []
    lost = [CLAIMED, event("failed", error_kind="sent_again")]
    assert list(spending(*lost, queues=False).unpriced) == ["a"]


def test_order_and_repetition_of_events_do_not_matter() -> None:
    """A call that several runs tell of, in whatever order and however often, counts once."""
    events = [
        event("claimed", "a"),
        event("submitted", "a", request_id="r"),
        event("delivered", "a", run="two", cost_usd=0.04),
        event("delivered", "a", cost_usd=0.04),
        event("claimed", "b", run="two"),
        event("claimed", "c", run="two"),
        event("failed", "c", run="two", error_kind="content_policy"),
    ]
    for seed in range(20):
        random.Random(seed).shuffle(events)
        total = spending(*events, *events[:3])
        assert total.cost_usd == pytest.approx(0.04)
        assert dict(total.unpriced) == {"b": CLASS}


def test_claims_without_an_event_are_calls() -> None:
    """A claim that no event of any run tells of is reported; as a call of these runs it waits for its price."""
    fold = SpendingFold(["one"], queues=True, claimed=["a", "b", "c"])
    fold.add(events_table([CLAIMED, event("claimed", "b", run="another order")]))
    assert fold.unheard == {"c"}
    assert dict(fold.spending(["c"]).unpriced) == {"a": CLASS, "c": None}


def test_reservations_are_the_worst_that_is_known() -> None:
    """A call is reserved for at the worst cost of its class, else the published price; unknown ones at the dearest."""
    calls = Spending(1, 0.0, {"a": CLASS, "b": "nobody's steps=1", "c": None})
    assert calls.reservations({}) == {"a": 0.04019, "b": 0.045, "c": 0.045}
    assert calls.reservations({CLASS: 0.05, "other": 0.2}) == {"a": 0.05, "b": 0.045, "c": 0.2}


def test_a_carried_call_turns_into_its_cost_once() -> None:
    """What earlier executions spent counts against the cap; settling one of their calls replaces its reservation."""
    budget = Budget.of(0.20, {CLASS: CostStats(9, 0.04, 0.04, 0.04, None)})
    budget.carry(0.08, {"a": 0.04, "b": 0.04})
    assert budget.reserve(CLASS, 0.04) != "over"
    assert budget.reserve(CLASS, 0.04) == "wait"
    assert budget.uncarry("a") == pytest.approx(0.04)
    assert budget.uncarry("a") == 0.0
    budget.spent += 0.03
    assert (budget.spent, budget.reserved) == (pytest.approx(0.11), pytest.approx(0.08))


def test_whether_the_cap_is_used() -> None:
    """A cap is used if no image of any class fits below it any more; without a cap nothing is ever used."""
    budget = Budget.of(0.20, {CLASS: CostStats(9, 0.04, 0.04, 0.04, None)})
    budget.carry(0.12, {"a": 0.04})
    assert not cap_is_used(budget, [CLASS])
    budget.spent += 0.01
    assert cap_is_used(budget, [CLASS])
    budget.worst["cheap"] = 0.01
    assert not cap_is_used(budget, [CLASS, "cheap"])
    assert not cap_is_used(Budget.of(None, {}), [CLASS])
