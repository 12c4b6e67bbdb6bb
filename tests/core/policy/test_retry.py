"""When to try again: back-off, the API's own words about waiting, and the pace of polls."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.policy.backoff import backoff, next_poll, pause_seconds

NOW = datetime(2026, 8, 1, 12, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("failures", "longest"), [(0, 1.0), (1, 2.0), (3, 8.0), (5, 32.0), (6, 60.0), (20, 60.0), (10**9, 60.0)]
)
def test_backoff_doubles_up_to_a_minute(failures, longest) -> None:
    """Full jitter: from nothing to the doubled delay, which ends at 60 s."""
    assert (backoff(failures, 0.0), backoff(failures, 0.5), backoff(failures, 1.0)) == (0.0, longest / 2, longest)


@pytest.mark.parametrize(
    "reset",
    [
        str(LATER.timestamp()),
        str(int(LATER.timestamp())),
        str(int(LATER.timestamp() * 1000)),
        LATER.isoformat(),
        "2026-08-01T12:00:30Z",
        "2026-08-01 12:00:30",
        "2026-08-01T14:00:30+02:00",
        " 2026-08-01 12:00:30 ",
    ],
)
def test_the_reset_time_is_read_in_every_form(reset) -> None:
    """The reset header is read as epoch seconds, epoch milliseconds or ISO time; without zone it is UTC."""
    assert pause_seconds(reset=reset, retry_after=None, now=NOW) == 30


@pytest.mark.parametrize("retry_after", ["30", "30.0", format_datetime(LATER, usegmt=True)])
def test_retry_after_is_seconds_or_a_date(retry_after) -> None:
    """Retry-After is read as seconds or as an HTTP date."""
    assert pause_seconds(reset=None, retry_after=retry_after, now=NOW) == 30


def test_the_reset_time_wins_where_it_can_be_read() -> None:
    """The reset header comes first; where it is unreadable, Retry-After counts."""
    assert pause_seconds(reset="2026-08-01 12:00:10", retry_after="50", now=NOW) == 10
    assert pause_seconds(reset="soon", retry_after="50", now=NOW) == 50


@pytest.mark.parametrize(
    ("reset", "retry_after", "pause"),
    [
        ("0", None, 1),
        (str(NOW.timestamp() - 999), None, 1),
        (str(NOW.timestamp() + 86400), None, 120),
        ("2099-01-01T00:00:00Z", None, 120),
        (None, "0", 1),
        (None, "-5", 1),
        (None, "86400", 120),
        (None, "inf", 120),
        ("inf", None, 120),
    ],
)
def test_the_wait_is_clamped(reset, retry_after, pause) -> None:
    """The wait is 1 to 120 s, so that a wrong clock on either side cannot stop a run."""
    assert pause_seconds(reset=reset, retry_after=retry_after, now=NOW) == pause


@pytest.mark.parametrize(("reset", "retry_after"), [(None, None), ("", ""), ("soon", "later"), ("12:00", None)])
def test_unreadable_headers_say_nothing(reset, retry_after) -> None:
    """Where neither header can be read, there is no wait to obey."""
    assert pause_seconds(reset=reset, retry_after=retry_after, now=NOW) is None


header = st.none() | st.text(max_size=40) | st.floats().map(str) | st.datetimes().map(str) | st.integers().map(str)
dates = st.from_regex(
    r"(Mon, )?[0-9]{1,2} Jan [0-9]{1,5} [0-9]{2}:[0-9]{2}:[0-9]{2} ([+-][0-9]{4}|GMT|)", fullmatch=True
)


@given(header | dates, header | dates)
def test_no_header_raises(reset, retry_after) -> None:
    """Whatever the headers hold, the answer is a wait within the limits, or none."""
    wait = pause_seconds(reset=reset, retry_after=retry_after, now=NOW)
    assert wait is None or 1 <= wait <= 120


def test_the_first_poll_waits_for_the_average() -> None:
    """With a known average the first poll comes at 0.6 of it; without one, at once."""
    assert next_poll(0.0, 10.0) == 6.0
    assert next_poll(4.0, 10.0) == 2.0
    assert next_poll(0.0, None) == 0.05


@pytest.mark.parametrize(("elapsed", "wait"), [(0.5, 0.05), (10, 0.3), (60, 1.8), (200, 5.0), (10_000, 5.0)])
def test_later_polls_back_off_to_five_seconds(elapsed, wait) -> None:
    """Later polls come after 3 % of the time so far, at most 5 s."""
    assert next_poll(elapsed, 0.1) == pytest.approx(wait)


@given(st.floats(0, 1e6), st.none() | st.floats(0, 1e4))
def test_polls_never_stand_still(elapsed, average) -> None:
    """There is always a positive wait, so that no job is polled in a tight loop."""
    assert next_poll(elapsed, average) > 0
