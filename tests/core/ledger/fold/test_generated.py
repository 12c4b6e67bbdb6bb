"""The ledger's fold against the rule in plain Python, on events of any kind in any order."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.ledger.events import RANK, RETRY_ASKED, RETRY_ASKED_RANK, Event
from prefect_imagegen.core.ledger.fold import (
    KEY_TYPE,
    events_table,
    fold,
)
from tests.core.ledger.fold.conftest import KEY, OTHER, THIRD, TYPES, attempt, event, summary


def recorded(kind, name, key, minute) -> Event:
    name = attempt(key, name) if isinstance(name, int) else name
    if kind == RETRY_ASKED:
        return event("failed", name, key, minute, error_kind=kind)
    return event(kind, name, key, minute, error_kind=f"kind {name}{minute}")


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
