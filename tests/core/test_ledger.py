"""The ledger's fold: what a pile of events says of every request key, in whatever order they come."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.events import RANK, Event, ImageFacts
from prefect_imagegen.core.ledger import EVENT_SCHEMA, KEY_TYPE, LedgerView, events_table, fold, image_facts

START = datetime(2026, 8, 1, tzinfo=UTC)
KEY, OTHER, THIRD = bytes(16), b"\x01" * 16, b"\x02" * 16
TYPES = list(RANK)


def event(kind, attempt="a", key=KEY, minute=0, **facts) -> Event:
    if kind == "delivered":
        facts.setdefault("image", ImageFacts(f"images/{attempt}.png", 1024, 768, "png", 5, attempt * 8, ("blank",)))
    return Event(kind, key, attempt, "run-1", START + timedelta(minutes=minute), **facts)


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
        ({"a": "failed", "b": "delivered"}, "delivered"),
        ({"a": "delivered", "b": "claimed"}, "delivered"),
        ({"a": "delivered", "b": "quarantined"}, "delivered"),
        ({"a": "failed", "b": "claimed"}, "open"),
        ({"a": "failed", "b": "submitted"}, "open"),
        ({"a": "failed", "b": "failed"}, "failed"),
        ({"a": "quarantined", "b": "claimed"}, "open"),
        ({"a": "quarantined", "b": "failed"}, "failed"),
    ],
)
def test_a_key_is_delivered_else_open_else_failed(attempts, expected) -> None:
    """A key is delivered if any attempt is, else open if any attempt is open, else failed."""
    assert state(*(event(kind, attempt) for attempt, kind in attempts.items())) == expected


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
        assert not view.is_closed("a")


def test_the_last_failure_is_told() -> None:
    """The reason of a failed key is that of its latest failure."""
    view = fold(
        [
            events_table([event("failed", "b", minute=2, error_kind="content_policy", error_message="no")]),
            events_table([event("failed", "a", minute=1, error_kind="server_error", error_message="500")]),
            events_table([event("failed", "c", OTHER, minute=3, error_kind="unsent")]),
        ]
    )
    assert view.failure(KEY) == ("content_policy", "no")
    assert view.failure(OTHER) == ("unsent", "")


def test_the_facts_of_an_image_come_back_whole() -> None:
    """What was recorded of a delivered image is what the ledger gives back."""
    one = event("delivered", cost_usd=0.04, latency_s=15.4, seed=2**63 - 1, model="m", applied='{"seed": 7}')
    row = fold([events_table([event("claimed"), one])]).facts(pa.array([KEY], KEY_TYPE))[KEY]
    assert image_facts(row) == one.image
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
    assert (view.is_closed("a"), view.is_closed("b")) == (closed, False)


def test_an_event_type_of_the_future_changes_nothing() -> None:
    """A type that this version does not know leaves the states as they are."""
    known = events_table([event("delivered")])
    odd = known.set_column(0, "type", pa.array(["reviewed"]))
    assert fold([known, odd]).states(pa.array([KEY], KEY_TYPE)).to_pylist() == ["delivered"]


def recorded(kind, attempt, key, minute) -> Event:
    return event(kind, attempt, key, minute, error_kind=f"kind {attempt}{minute}")


events = st.lists(
    st.builds(
        recorded,
        st.sampled_from(TYPES),
        st.sampled_from("abc"),
        st.sampled_from([KEY, OTHER]),
        st.integers(0, 3),
    ),
    max_size=14,
)


def summary(*tables):
    keys = pa.array([KEY, OTHER, THIRD], KEY_TYPE)
    view = fold(tables)
    return (
        view.states(keys).to_pylist(),
        {key: view.failure(key) for key in (KEY, OTHER)},
        view.facts(keys),
        [view.is_closed(attempt) for attempt in "abc"],
    )


@given(events, st.randoms(), st.integers(0, 14))
def test_the_order_of_events_does_not_matter(found, random, cut) -> None:
    """Events in any order, in any number of segments, some of them twice, fold to the same view."""
    shuffled = [*found, *found[: cut // 2]]
    random.shuffle(shuffled)
    assert summary(events_table(found)) == summary(events_table(shuffled[:cut]), events_table(shuffled[cut:]))


def naive(found, key):
    """The rule in words, one event at a time."""
    ranks = {}
    for one in found:
        if one.key == key:
            ranks[one.attempt_id] = max(ranks.get(one.attempt_id, 0), RANK[one.type])
    if RANK["delivered"] in ranks.values():
        return "delivered"
    if any(rank <= RANK["submitted"] for rank in ranks.values()):
        return "open"
    return "failed" if ranks else None


@given(events)
def test_the_fold_agrees_with_the_rule(found) -> None:
    """The vectorised fold says what the rule says, event by event."""
    assert summary(events_table(found))[0] == [naive(found, key) for key in (KEY, OTHER, THIRD)]
