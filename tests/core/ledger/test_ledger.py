"""The ledger's fold: the state of every request key, from its events in whatever order they come."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.ledger import compacting_table as growing
from prefect_imagegen.core.ledger import fold as ledger
from prefect_imagegen.core.ledger.delivery_columns import image_facts
from prefect_imagegen.core.ledger.events import RANK, RETRY_ASKED, RETRY_ASKED_RANK, Event, ImageFacts
from prefect_imagegen.core.ledger.fold import (
    EVENT_SCHEMA,
    KEY_TYPE,
    CostStats,
    LedgerFold,
    LedgerView,
    events_table,
    fold,
)

START = datetime(2026, 8, 1, tzinfo=UTC)
KEY, OTHER, THIRD = bytes(16), b"\x01" * 16, b"\x02" * 16
TYPES = list(RANK)


def event(kind, attempt="a", key=KEY, minute=0, **facts) -> Event:
    if kind == "delivered":
        facts.setdefault("image", ImageFacts(f"images/{attempt}.png", 1024, 768, "png", 5, attempt * 8, ("blank",)))
    return Event(kind, key, attempt, "run-1", START + timedelta(minutes=minute), **facts)


def attempt(key: bytes, n: object) -> str:
    return f"{key.hex()}-{n}"


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


def recorded(kind, name, key, minute) -> Event:
    name = attempt(key, name) if isinstance(name, int) else name
    if kind == RETRY_ASKED:
        return event("failed", name, key, minute, error_kind=kind)
    return event(kind, name, key, minute, error_kind=f"kind {name}{minute}")


NAMES = ["a", "b", *(attempt(key, n) for key in (KEY, OTHER) for n in (1, 2, 10))]
event_lists = st.lists(
    st.builds(
        recorded,
        st.sampled_from([*TYPES, RETRY_ASKED]),
        st.sampled_from([*"ab", 1, 2, 10]),
        st.sampled_from([KEY, OTHER]),
        st.integers(0, 3),
    ),
    max_size=14,
)


def set_of(rows):
    """Rows without duplicates: a segment may be read twice."""
    return [dict(items) for items in {tuple(sorted(row.items(), key=str)) for row in rows}]


def summary(*tables):
    keys = pa.array([KEY, OTHER, THIRD], KEY_TYPE)
    view = fold(tables)
    return (
        view.states(keys).to_pylist(),
        {key: view.failure(key) for key in (KEY, OTHER)},
        view.facts(keys),
        [view.rank_of(name) for name in NAMES],
        [sorted(row["attempt_id"] for row in set_of(view.course(key))) for key in (KEY, OTHER)],
        [view.next_attempt(key) for key in (KEY, OTHER)],
        view.costs(),
    )


@given(event_lists, st.randoms(), st.integers(0, 14))
def test_the_order_of_events_does_not_matter(events, random, cut) -> None:
    """Events in any order, in any number of segments, some of them twice, fold to the same view."""
    shuffled = [*events, *events[: cut // 2]]
    random.shuffle(shuffled)
    assert summary(events_table(events)) == summary(events_table(shuffled[:cut]), events_table(shuffled[cut:]))


def rank_of(record) -> int:
    return RETRY_ASKED_RANK if record.error_kind == RETRY_ASKED else RANK[record.type]


def naive(events, key):
    """The state of a key by the rule, computed event by event."""
    ranks = {}
    for record in events:
        if record.key == key:
            ranks[record.attempt_id] = max(ranks.get(record.attempt_id, 0), rank_of(record))
    if RANK["delivered"] in ranks.values():
        return "delivered"
    numbered = {int(name.split("-")[1]): rank for name, rank in ranks.items() if "-" in name}
    deciding = [rank for name, rank in ranks.items() if "-" not in name]
    deciding += [numbered[max(numbered)]] if numbered else []
    if any(rank <= RANK["submitted"] for rank in deciding):
        return "open"
    return "failed" if ranks else None


def naive_failure(events, key):
    """The error kind of the failure with the highest attempt number.

    Within one attempt a person's `retry_asked` comes last; else the latest time decides.
    """

    def order(record):
        number = int(record.attempt_id.split("-")[1]) if "-" in record.attempt_id else -1
        return (number, record.error_kind == RETRY_ASKED, record.time, record.attempt_id)

    failures = [record for record in events if record.key == key and record.type == "failed"]
    delivered = naive(events, key) == "delivered"
    return max(failures, key=order).error_kind if failures and not delivered else "unknown"


@given(event_lists)
def test_the_fold_agrees_with_the_rule(events) -> None:
    """The vectorised fold says what the rule says, event by event."""
    said = summary(events_table(events))
    assert said[0] == [naive(events, key) for key in (KEY, OTHER, THIRD)]
    assert {key: kind for key, (kind, _) in said[1].items()} == {
        key: naive_failure(events, key) for key in (KEY, OTHER)
    }


@given(event_lists)
def test_one_key_is_told_as_many_are(events) -> None:
    """The state of a key by itself is that which it has among others."""
    view = fold([events_table(events)])
    keys = [KEY, OTHER, THIRD]
    assert [view.state(key) for key in keys] == view.states(pa.array(keys, KEY_TYPE)).to_pylist()
