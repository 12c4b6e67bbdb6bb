"""Rows by request key in sorted runs, and deliveries brought to the groups that ask for them."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.ledger import deliveries
from prefect_imagegen.core.ledger.deliveries import MOST_GROUPS, Deliveries, group_of
from prefect_imagegen.core.ledger.events import Event, ImageFacts
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, KEY_TYPE, events_table
from prefect_imagegen.core.ledger.keyed_table import KeyedTable, SortedRun, sorted_by_key
from prefect_imagegen.core.plan import KeySeen

SCHEMA = pa.schema([("key", KEY_TYPE), ("value", pa.int64())])
ALIKE = [bytes(16), bytes(15) + b"\x01", b"\xff" * 16, b"\xff" * 15 + b"\xfe"]
"""Keys that differ in their last byte only, at the low and the high end of the range."""
keys = st.one_of(st.sampled_from(ALIKE), st.integers(0, 40).map(lambda n: (n * 6_700_417).to_bytes(4, "big") * 4))
parts = st.lists(st.lists(keys, max_size=30), max_size=12)


def table(part, start=0) -> pa.Table:
    return pa.table([pa.array(part, KEY_TYPE), pa.array(range(start, start + len(part)), pa.int64())], schema=SCHEMA)


@given(parts, st.lists(keys, max_size=10))
def test_the_rows_of_keys_are_found(batches, asked) -> None:
    """Whatever parts came in whatever order, the rows of some keys are those of all parts, in the order of arrival."""
    rows, start, naive = KeyedTable(SCHEMA, sorted_by_key), 0, []
    for part in batches:
        rows.add(table(part, start))
        naive += [(key, start + n) for n, key in enumerate(part)]
        start += len(part)
    naive.sort(key=lambda row: row[0])
    wanted = [row for row in naive if row[0] in asked]
    said = rows.of(pa.array(asked, KEY_TYPE))
    assert list(zip(said["key"].to_pylist(), said["value"].to_pylist(), strict=True)) == wanted
    for key in {*asked, *ALIKE}:
        assert rows.rows_of(key)["value"].to_pylist() == [value for row_key, value in naive if row_key == key]
    whole = rows.table()
    assert list(zip(whole["key"].to_pylist(), whole["value"].to_pylist(), strict=True)) == naive
    assert rows.of(pa.array(asked, KEY_TYPE)) == said


@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17, 5_000])
def test_a_run_of_any_length_finds_each_of_its_keys(count) -> None:
    """Every key of a run is found, alone and with others; a key that is not there is not, below, between or above."""
    names = [(n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") * 2 for n in range(1, count + 1)]
    run = SortedRun(table(names).sort_by("key"))
    assert set(run.near(pa.array(names, KEY_TYPE))["key"].to_pylist()) == set(names)
    for n in range(0, count, max(count // 50, 1)):
        assert run.rows_of(names[n])["value"].to_pylist() == [n]
        assert names[n] in run.near(pa.array([names[n]], KEY_TYPE))["key"].to_pylist()
    for key in ALIKE:
        assert len(run.rows_of(key)) == 0
    assert len(run.near(pa.array([], KEY_TYPE))) == 0


@given(st.lists(st.lists(st.one_of(st.none(), keys), max_size=10), max_size=8))
def test_keys_seen_are_told_by_their_number(windows) -> None:
    """A key that came in an earlier window is told by the number that it came with; null never came."""
    index, known = KeySeen(), {}
    for number, window in enumerate(windows):
        assert index.numbers(pa.array(window, KEY_TYPE)) == [known.get(key) for key in window]
        fresh = {key: number for key in window if key is not None and key not in known}
        index.add(pa.array(list(fresh), KEY_TYPE), pa.array(list(fresh.values()), pa.int32()))
        known |= fresh


class Listed(list):
    """A spool that keeps its tables in memory."""

    def write(self, events) -> None:
        self.append(events)


def delivered(key, number) -> Event:
    name = f"{key.hex()}-{number}"
    facts = ImageFacts(f"{name}.png", 1, 1, "png", 5, "ab" * 32)
    return Event("delivered", key, name, "run", datetime(2026, 11, 1, tzinfo=UTC) - timedelta(number), image=facts)


@pytest.mark.parametrize("rows", [2, 1 << 18])
@given(data=st.data())
def test_each_group_gets_the_deliveries_of_its_keys(rows, data) -> None:
    """Each group gets all deliveries of the keys that it asked for, oldest first; keys may be asked for by several."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(deliveries, "_ROWS_AT_ONCE", rows)
        asked = defaultdict(list)
        brought = Deliveries(Listed())
        for group, part in data.draw(st.lists(st.tuples(st.integers(0, 3), st.lists(keys, max_size=8)), max_size=8)):
            brought.ask(group, pa.array(part, KEY_TYPE))
            asked[group] += part
        events = [delivered(key, n) for n, key in enumerate(data.draw(st.lists(keys, max_size=20)))]
        cut = data.draw(st.integers(0, len(events)))
        brought.bring([events_table(events[:cut]), EVENT_SCHEMA.empty_table(), events_table(events[cut:])])
        for group in range(4):
            wanted = [event.attempt_id for event in reversed(events) if event.key in asked[group]]
            assert brought.of(group)["attempt_id"].to_pylist() == wanted


@pytest.mark.parametrize("count", [1, 255, 256, 257, 10_000])
def test_groups_are_few_and_in_order(count) -> None:
    """However many parts there are, their groups are few, and parts that follow each other share them."""
    groups = [group_of(index, count) for index in range(count)]
    assert groups == sorted(groups)
    assert set(groups) == set(range(len(set(groups))))
    assert len(set(groups)) <= MOST_GROUPS
