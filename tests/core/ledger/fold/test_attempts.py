"""The ledger's fold: attempts, calls and costs, with any names."""

from datetime import timedelta

import pyarrow as pa
import pytest

from prefect_imagegen.core.ledger.events import RANK
from prefect_imagegen.core.ledger.fold import (
    KEY_TYPE,
    CostStats,
    LedgerView,
    events_table,
    fold,
)
from tests.core.ledger.fold.conftest import KEY, OTHER, START, THIRD, attempt, event


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "a",
        "1",
        f"{KEY.hex()}-0",
        f"{KEY.hex()}-01",
        f"{KEY.hex()}-",
        f"{KEY.hex()}-1x",
        f"{OTHER.hex()}-1",
        "ä" * 40,
    ],
)
def test_attempts_with_any_name_are_told_apart(odd) -> None:
    """An attempt is its name: one that is no `<key>-<n>` is another attempt than all others of its key."""
    view = fold([events_table([event("claimed", odd), event("failed", attempt(KEY, 1))])])
    assert view.states(pa.array([KEY], KEY_TYPE)).to_pylist() == ["open"]
    assert (
        (view.rank_of(odd) >= RANK["failed"]),
        (view.rank_of(attempt(KEY, 1)) >= RANK["failed"]),
        (view.rank_of(attempt(KEY, 2)) >= RANK["failed"]),
    ) == (
        False,
        True,
        False,
    )
    closed = fold([events_table([event("claimed", attempt(KEY, 1))]), events_table([event("quarantined", odd)])])
    assert ((closed.rank_of(odd) >= RANK["failed"]), (closed.rank_of(attempt(KEY, 1)) >= RANK["failed"])) == (
        True,
        False,
    )


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], 1),
        (["claimed"], 1),
        (["failed"], 2),
        (["delivered"], 2),
        (["failed", "claimed"], 2),
        (["failed", "failed", "quarantined"], 4),
    ],
)
def test_numbers_of_attempts_go_on(kinds, expected) -> None:
    """The next claim has the number of the last attempt while that is open, else the one after it."""
    steps = [event(kind, attempt(KEY, n)) for n, kind in enumerate(kinds, 1)]
    view = fold([events_table([*steps, event("failed", "odd"), event("failed", attempt(OTHER, 7), OTHER)])])
    assert view.next_attempt(KEY) == expected


def test_the_course_of_keys_without_an_image_is_told() -> None:
    """What the ledger knows of the ids, ends, accounts and endpoints of a key's attempts is told."""
    call_facts = {"account": "acc", "endpoint": "https://api", "request_id": "id-1"}
    view = fold(
        [
            events_table(
                [event("submitted", "a", **call_facts), event("failed", "a", error_kind="unsent", **call_facts)]
            ),
            events_table([event("claimed", "b"), event("submitted", "c", request_id="id-2")]),
            events_table([event("delivered", "d", OTHER, request_id="id-3")]),
            events_table([event("delivered", "e", THIRD, request_id="id-4"), event("quarantined", "e", THIRD)]),
        ]
    )
    ids = [{row["request_id"] for row in view.course(key)} for key in (KEY, OTHER, THIRD)]
    assert ids == [{"id-1", "id-2"}, set(), {"id-4"}]
    (ended,) = (row for row in view.course(KEY) if row["type"] == "failed")
    assert {name: ended[name] for name in call_facts} == call_facts
    assert (ended["error_kind"], ended["run_id"], ended["time"]) == ("unsent", "run-1", START)
    assert view.course(bytes(15) + b"\x09") == LedgerView.empty().course(KEY) == []


def test_calls_are_known_by_account_and_by_run() -> None:
    """The newest calls of an account, or of a run, come newest first, at most three, by the first event of each."""
    steps = [
        event("submitted", f"{n}", n.to_bytes(16, "big"), n, request_id=f"id-{n}", account="acc" if n % 2 else None)
        for n in range(10)
    ]
    late = event("delivered", "1", (1).to_bytes(16, "big"), 99, request_id="id-1", account="acc")
    view = fold([events_table(steps[:4]), events_table([*steps[4:], late, event("claimed", account="acc", minute=50)])])
    assert [name for name, _ in view.newest_calls(account="acc")] == ["id-9", "id-7", "id-5"]
    assert view.newest_calls(run_id="run-1", most=1) == [("id-9", START + timedelta(minutes=9))]
    assert len(view.newest_calls(run_id="run-1", most=99)) == 10
    before = START + timedelta(minutes=5)
    assert [name for name, _ in view.newest_calls(account="acc", before=before)] == ["id-3", "id-1"]
    assert view.newest_calls(account="other") == view.newest_calls(run_id="other") == []


def test_calls_are_looked_up_among_others() -> None:
    """Of some request ids those are told that are calls of an account, of a run, or of the store at all."""
    view = fold(
        [
            events_table([event("submitted", "a", request_id="id-1", account="acc")]),
            events_table([event("submitted", "b", OTHER, request_id="id-2"), event("failed", "c", request_id="id-3")]),
        ]
    )
    asked = ["id-1", "id-2", "id-3", "strange"]
    assert view.known_ids(asked) == view.calls_among(asked, run_id="run-1") == {"id-1", "id-2", "id-3"}
    assert view.calls_among(asked, account="acc") == {"id-1"}
    assert view.calls_among(asked, account="other") == view.calls_among([], account="acc") == set()
    assert view.known_ids([]) == LedgerView.empty().known_ids(asked) == frozenset()


def test_costs_are_counted_by_class() -> None:
    """Of every cost class the measured costs and the mean latency are told; what nobody measured counts for nothing."""

    def paid(name, cost, latency, cost_class="x"):
        return event("delivered", name, cost_usd=cost, latency_s=latency, cost_class=cost_class)

    tables = [
        events_table([paid("a", 0.01, 2.0), paid("b", 0.04, None), paid("c", 0.25, None, "y"), paid("d", None, 9.0)]),
        events_table(
            [event("failed", "e", cost_usd=9.0, cost_class="x"), paid("f", 0.01, 4.0), paid("g", 1.0, 1.0, None)]
        ),
        events_table(
            [event("submitted", "h", cost_usd=9.0, cost_class="x", request_id="id-1"), event("quarantined", "f")]
        ),
    ]
    costs = fold(tables).costs()
    assert costs == {"x": CostStats(3, 0.01, 0.04, pytest.approx(0.02), 3.0), "y": CostStats(1, 0.25, 0.25, 0.25, None)}
    assert LedgerView.empty().costs() == {}
