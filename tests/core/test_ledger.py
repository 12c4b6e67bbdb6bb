"""The ledger's fold: what a pile of events says of every request key, in whatever order they come."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core import growing, ledger
from prefect_imagegen.core.events import RANK, Event, ImageFacts
from prefect_imagegen.core.ledger import (
    EVENT_SCHEMA,
    KEY_TYPE,
    CostStats,
    LedgerFold,
    LedgerView,
    events_table,
    fold,
    image_facts,
)

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
        assert not (view.rank_of("a") >= RANK["failed"])


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
    assert ((view.rank_of("a") >= RANK["failed"]), (view.rank_of("b") >= RANK["failed"])) == (closed, False)


def test_an_event_type_of_the_future_changes_nothing() -> None:
    """A type that this version does not know leaves the states as they are."""
    known = events_table([event("delivered")])
    odd = known.set_column(0, "type", pa.array(["reviewed"]))
    assert fold([known, odd]).states(pa.array([KEY], KEY_TYPE)).to_pylist() == ["delivered"]
    assert fold([odd]).states(pa.array([KEY], KEY_TYPE)).to_pylist() == [None]


def attempt(key: bytes, n: object) -> str:
    return f"{key.hex()}-{n}"


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


def test_calls_of_keys_without_an_image_are_known() -> None:
    """Every request id of a key without an image is told, by any of its events; keys with one need none."""
    view = fold(
        [
            events_table([event("submitted", "a", request_id="id-1"), event("failed", "a", request_id="id-1")]),
            events_table([event("claimed", "b"), event("submitted", "c", request_id="id-2")]),
            events_table([event("delivered", "d", OTHER, request_id="id-3")]),
            events_table([event("delivered", "e", THIRD, request_id="id-4"), event("quarantined", "e", THIRD)]),
        ]
    )
    assert [view.request_ids(key) for key in (KEY, OTHER, THIRD)] == [{"id-1", "id-2"}, set(), {"id-4"}]


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
    found = fold(tables).costs()
    assert found == {"x": CostStats(3, 0.01, 0.04, pytest.approx(0.02), 3.0), "y": CostStats(1, 0.25, 0.25, 0.25, None)}
    assert LedgerView.empty().costs() == {}


class Nowhere(list):
    """Keeps nothing of what is kept elsewhere."""

    def write(self, events) -> None:
        """Let it go."""


def test_an_attempt_takes_few_bytes() -> None:
    """A ledger of finished requests takes less than 40 bytes for each of them, whatever its events hold."""
    before = pa.total_allocated_bytes()
    folding, requests = LedgerFold(Nowhere()), 60_000
    for start in range(0, requests, 2_000):
        steps = []
        for n in range(start, start + 2_000):
            key = n.to_bytes(16, "little")
            steps += [event(kind, attempt(key, 1), key, applied="x" * 200) for kind in ("claimed", "delivered")]
        folding.add(events_table(steps))
    view = folding.view()
    del folding
    assert len(view.delivered_keys) == requests
    assert pa.total_allocated_bytes() - before < 40 * requests


def test_many_attempts_fold_as_few_do(monkeypatch) -> None:
    """Putting what came in in order now and then changes nothing of what is said."""
    monkeypatch.setattr(growing, "_MIN_ROWS", 2)
    monkeypatch.setattr(ledger, "_GATHERED_ROWS", 3)
    steps = [event(TYPES[n % 5], "abc"[n % 3], (KEY, OTHER)[n % 2], n % 7, error_kind=f"{n % 7}") for n in range(60)]
    assert summary(*(events_table([step]) for step in steps)) == summary(events_table(steps))


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
        [(view.rank_of(attempt) >= RANK["failed"]) for attempt in "abc"],
        [view.request_ids(key) for key in (KEY, OTHER)],
        view.costs(),
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
