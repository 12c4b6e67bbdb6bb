"""Each outage is reported once."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.policy.outages import LONG_S, QUIET_S, Outage, since_text

STEPS = st.lists(st.tuples(st.floats(0.0, 400.0), st.booleans()), max_size=100)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=100), st.integers(1, 9))
def test_however_often_it_is_tried(pauses: list[float], after: int) -> None:
    """Of one outage the beginning is told once, after so many failures, and the end once, with its length."""
    outage, now, reports = Outage(after), 0.0, []
    for pause in pauses:
        now += pause
        reports.append(outage.failed(now))
    assert [number for number, report in enumerate(reports) if report is not None] == [after - 1][
        : len(pauses) >= after
    ]
    ended = outage.worked(now + 1.0)
    assert ended == (pytest.approx(now + 1.0 - pauses[0]) if len(pauses) >= after else None)
    assert outage.worked(now + 2.0) is None


@given(STEPS, st.integers(1, 5))
def test_told_in_pairs(tries: list[tuple[float, bool]], after: int) -> None:
    """Whatever fails and works, beginnings and ends take turns, and come no more often than long outages do."""
    outage, now, reports = Outage(after), 0.0, []
    for pause, works in tries:
        now += pause
        report = outage.worked(now) if works else outage.failed(now)
        if report is not None:
            reports.append((now, works))
    assert [works for _, works in reports] == [number % 2 == 1 for number in range(len(reports))]
    begun = [at for at, works in reports if not works]
    assert all(later - earlier >= LONG_S for earlier, later in pairwise(begun))


@given(STEPS)
def test_no_long_outage_is_kept_quiet(tries: list[tuple[float, bool]]) -> None:
    """What has failed for longer than a brief outage is told, also right after another one."""
    outage, now, since, is_told = Outage(), 0.0, None, False
    for pause, works in tries:
        now += pause
        if works:
            outage.worked(now)
            since, is_told = None, False
        else:
            since = now if since is None else since
            is_told = outage.failed(now) is not None or is_told
            assert is_told or now - since < LONG_S


def test_brief_ones_after_another_are_not_told() -> None:
    """A thing that comes and goes does not fill the log; when it has been well for long, it is told of anew."""
    outage = Outage()
    assert outage.failed(0.0) == 0.0
    assert outage.worked(5.0) == 5.0
    for number in range(100):
        assert outage.failed(10.0 + number) is None
        assert outage.worked(10.5 + number) is None
    assert outage.failed(5.0 + QUIET_S) == 0.0


def test_patience() -> None:
    """What may take a while is told only once it has taken longer."""
    outage = Outage(patience=60.0)
    assert [outage.failed(at) for at in (0.0, 59.0, 60.0, 65.0)] == [None, None, 60.0, None]
    assert outage.worked(70.0) == 70.0


def test_the_time_of_day() -> None:
    """The beginning is named by the clock, in UTC."""
    assert since_text(90.0, datetime(2026, 11, 1, 0, 1, tzinfo=UTC)) == "since 23:59:30 UTC"
