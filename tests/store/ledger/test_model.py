"""The ledger against a model in plain Python."""

from hypothesis import settings
from hypothesis.stateful import (
    run_state_machine_as_test,
)

from tests.store.ledger.model import LedgerModel


def test_the_ledger_agrees_with_the_model(timed_store) -> None:
    """Whatever runs, writers, compactors and readers do and wherever they die, no durable event is lost or doubled.

    Every state is what the rule says, no attempt number is used twice, and no claim that matters is removed.
    """
    machine = type("Machine", (LedgerModel,), {"store_class": type(timed_store)})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
