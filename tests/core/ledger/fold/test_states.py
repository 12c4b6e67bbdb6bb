"""The ledger's fold: the state of every request key, from its events in whatever order they come."""

import pyarrow as pa
import pytest

from prefect_imagegen.core.ledger import compacting_table as growing
from prefect_imagegen.core.ledger import fold as ledger
from prefect_imagegen.core.ledger.delivery_columns import image_facts
from prefect_imagegen.core.ledger.events import RANK, RETRY_ASKED, RETRY_ASKED_RANK
from prefect_imagegen.core.ledger.fold import (
    EVENT_SCHEMA,
    KEY_TYPE,
    LedgerFold,
    LedgerView,
    events_table,
    fold,
)
from tests.core.ledger.fold.conftest import KEY, OTHER, START, THIRD, TYPES, attempt, event, summary


def state(*events, key=KEY):
    return fold([events_table(events)]).states(pa.array([key], KEY_TYPE)).to_pylist()[0]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], None),
        (["claimed"], "open"),
        (["claimed", "submitted"], "open"),
        (["claimed", "failed"], "failed"),
        (["claimed", "submitted", "failed"], "failed"),
        (["claimed", "submitted", "delivered"], "delivered"),
        (["failed", "delivered"], "delivered"),
        (["delivered", "claimed"], "delivered"),
        (["failed", "claimed"], "failed"),
        (["delivered", "quarantined"], "failed"),
        (["quarantined", "delivered"], "failed"),
    ],
)
def test_rank_decides_inside_an_attempt(kinds, expected) -> None:
    """Inside one attempt the higher rank wins: quarantined, delivered, failed, submitted, claimed; never the clock."""
    assert state(*(event(kind, minute=-n) for n, kind in enumerate(kinds))) == expected


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        (["failed", "delivered"], "delivered"),
        (["delivered", "claimed"], "delivered"),
        (["delivered", "failed"], "delivered"),
        (["delivered", "quarantined"], "delivered"),
        (["failed", "claimed"], "open"),
        (["failed", "submitted"], "open"),
        (["quarantined", "claimed"], "open"),
        (["failed", "failed"], "failed"),
        (["quarantined", "failed"], "failed"),
        # Its end was lost in a crash, but nobody claims n+1 before n has ended.
        (["claimed", "failed"], "failed"),
        (["submitted", "quarantined"], "failed"),
        ([*["claimed"] * 9, "failed", "failed"], "failed"),
        ([*["failed"] * 10, "claimed"], "open"),
    ],
)
@pytest.mark.parametrize("clock", [1, -1])
def test_the_highest_attempt_decides(attempts, expected, clock) -> None:
    """A key is delivered if any attempt is, else its attempt with the highest number says it, never the clock."""
    steps = [event(kind, attempt(KEY, n), minute=clock * n) for n, kind in enumerate(attempts, 1)]
    assert state(*steps) == expected


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ({"a": "failed", "b": "delivered"}, "delivered"),
        ({"a": "claimed", "b": "delivered"}, "delivered"),
        ({"a": "failed", "b": "claimed"}, "open"),
        ({"b": "claimed", "a": "failed"}, "open"),
        ({"a": "submitted", "b": "quarantined"}, "open"),
        ({"a": "failed", "b": "failed"}, "failed"),
        ({1: "failed", "a": "claimed"}, "open"),
        ({1: "failed", "a": "failed", 2: "submitted"}, "open"),
        ({1: "claimed", 2: "failed", "a": "failed"}, "failed"),
        ({1: "claimed", "a": "delivered"}, "delivered"),
    ],
)
def test_an_attempt_without_a_number_is_below_none(attempts, expected) -> None:
    """An attempt whose id has no number is ended by no other: while it is open its key is, whatever else is known."""
    steps = [event(kind, attempt(KEY, n) if isinstance(n, int) else n) for n, kind in attempts.items()]
    assert state(*steps) == state(*reversed(steps)) == expected


def test_keys_do_not_mix() -> None:
    """Each key has its own state, and a key that nobody asked for has none."""
    view = fold([events_table([event("delivered"), event("failed", "b", OTHER)])])
    assert view.states(pa.array([OTHER, THIRD, KEY], KEY_TYPE)).to_pylist() == ["failed", None, "delivered"]


def test_an_empty_ledger_knows_nothing() -> None:
    """Before the first event there are no states, facts or failures."""
    for view in (LedgerView.empty(), fold([]), fold([EVENT_SCHEMA.empty_table()])):
        assert view.states(pa.array([KEY], KEY_TYPE)).to_pylist() == [None]
        assert view.states(pa.array([], KEY_TYPE)).to_pylist() == []
        assert view.facts(pa.array([KEY], KEY_TYPE)) == {}
        assert view.failure(KEY)[0] == "unknown"
        assert not (view.rank_of("a") >= RANK["failed"])


def test_the_last_failure_is_told() -> None:
    """The reason of a failed key is that of its failure with the highest number, whatever the clocks said."""
    view = fold(
        [
            events_table(
                [event("failed", attempt(KEY, 10), minute=-9, error_kind="content_policy", error_message="no")]
            ),
            events_table([event("failed", attempt(KEY, 9), minute=9, error_kind="server_error", error_message="500")]),
            events_table([event("failed", "odd", minute=99, error_kind="server_error", error_message="500")]),
            events_table([event("failed", "c", OTHER, minute=3, error_kind="unsent")]),
        ]
    )
    assert view.failure(KEY) == ("content_policy", "no")
    assert view.failure(OTHER) == ("unsent", "")


def test_an_event_without_a_key_hides_no_failure() -> None:
    """What names no key is no failure of any key, and the others are told as if it were not there."""
    view = fold([events_table([event("failed", "a", error_kind="bad_output"), event("failed", "b", None)])])
    assert view.failure(KEY) == ("bad_output", "")
    assert state(event("failed"), event("failed", "b", None)) == "failed"


@pytest.mark.parametrize("minutes", [(0, 1), (1, 0), (0, 0)])
def test_a_persons_word_outranks_the_failure(minutes) -> None:
    """`retry_asked` counts whatever the clocks of the two machines said, but not against a later attempt."""
    failed = event("failed", attempt(KEY, 2), minute=minutes[0], error_kind="content_policy", error_message="no")
    asked = event("failed", attempt(KEY, 2), minute=minutes[1], error_kind=RETRY_ASKED, error_message="asked")
    for steps in ([failed, asked], [asked, failed]):
        view = fold([events_table(steps)])
        assert view.failure(KEY) == (RETRY_ASKED, "asked")
        assert view.rank_of(attempt(KEY, 2)) == view.ranks(KEY)[2] == RETRY_ASKED_RANK
        assert view.states(pa.array([KEY], KEY_TYPE)).to_pylist() == ["failed"]
        assert view.next_attempt(KEY) == 3
    later = fold([events_table([asked, event("failed", attempt(KEY, 3), minute=-5, error_kind="invalid_request")])])
    assert later.failure(KEY)[0] == "invalid_request"
    image = fold([events_table([asked, event("delivered", attempt(KEY, 2))])])
    assert image.states(pa.array([KEY], KEY_TYPE)).to_pylist() == ["delivered"]


def test_the_facts_of_an_image_come_back_whole() -> None:
    """What was recorded of a delivered image is what the ledger gives back."""
    delivery = event("delivered", cost_usd=0.04, latency_s=15.4, seed=2**63 - 1, model="m", applied={"seed": 7})
    row = fold([events_table([event("claimed"), delivery])]).facts(pa.array([KEY], KEY_TYPE))[KEY]
    assert image_facts(row) == delivery.image
    assert (row["cost_usd"], row["latency_s"], row["seed"], row["time"]) == (0.04, 15.4, 2**63 - 1, START)
    assert image_facts({"image_path": None}) is None


def test_a_quarantined_image_gives_no_facts() -> None:
    """An image that was quarantined is not offered again; a second delivery of the key is."""
    events = [event("delivered", "a"), event("quarantined", "a"), event("delivered", "b", minute=1)]
    row = fold([events_table(events)]).facts(pa.array([KEY], KEY_TYPE))[KEY]
    assert row["attempt_id"] == "b"
    assert fold([events_table(events[:2])]).facts(pa.array([KEY], KEY_TYPE)) == {}


@pytest.mark.parametrize(
    ("kind", "closed"),
    [("claimed", False), ("submitted", False), ("failed", True), ("delivered", True), ("quarantined", True)],
)
def test_an_attempt_is_closed_by_its_end(kind, closed) -> None:
    """An attempt that failed, delivered or was quarantined has ended; one that was only sent has not."""
    view = fold([events_table([event("claimed"), event(kind)])])
    assert ((view.rank_of("a") >= RANK["failed"]), (view.rank_of("b") >= RANK["failed"])) == (closed, False)


def test_an_event_type_of_the_future_changes_nothing() -> None:
    """A type that this version does not know leaves the states as they are."""
    known = events_table([event("delivered")])
    odd = known.set_column(0, "type", pa.array(["reviewed"]))
    assert fold([known, odd]).states(pa.array([KEY], KEY_TYPE)).to_pylist() == ["delivered"]
    assert fold([odd]).states(pa.array([KEY], KEY_TYPE)).to_pylist() == [None]


class Nowhere(list):
    """A spool that drops its tables, so that only the fold itself takes memory."""

    def write(self, events) -> None:
        """Drop the events."""


def test_an_attempt_takes_few_bytes() -> None:
    """A ledger of finished requests takes less than 40 bytes for each of them, whatever its events hold."""
    before = pa.total_allocated_bytes()
    folding, requests = LedgerFold(Nowhere()), 60_000
    for start in range(0, requests, 2_000):
        steps = []
        for n in range(start, start + 2_000):
            key = n.to_bytes(16, "little")
            steps += [event(kind, attempt(key, 1), key, applied={"x": "x" * 200}) for kind in ("claimed", "delivered")]
        folding.add(events_table(steps))
    view = folding.view()
    del folding
    assert len(view.delivered_keys) == requests
    assert pa.total_allocated_bytes() - before < 40 * requests


def test_many_attempts_fold_as_few_do(monkeypatch) -> None:
    """Putting what came in in order now and then changes nothing of what is said."""
    monkeypatch.setattr(growing, "_MIN_ROWS", 2)
    monkeypatch.setattr(ledger, "_GATHERED_ROWS", 3)
    names = ["a", attempt(KEY, 1), attempt(OTHER, 2)]
    steps = [event(TYPES[n % 5], names[n % 3], (KEY, OTHER)[n % 2], n % 7, error_kind=f"{n % 7}") for n in range(60)]
    assert summary(*(events_table([step]) for step in steps)) == summary(events_table(steps))
