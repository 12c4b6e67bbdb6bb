"""How long to wait: back-off before retries, pauses that the API asks for, and the time between polls. Pure."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BASE_DELAY_S = 1.0
MAX_DELAY_S = 60.0
MIN_PAUSE_S = 1.0
MAX_PAUSE_S = 120.0
_FIRST_POLL = 0.6
_POLL_SHARE = 0.03
_MIN_POLL_S = 0.05
_MAX_POLL_S = 5.0
_EPOCH_MS = 1e11


def backoff(failures: int, draw: float) -> float:
    """Seconds before the next try after so many failures, with full jitter; `draw` is a random number in 0..1."""
    return float(draw * min(MAX_DELAY_S, BASE_DELAY_S * 2.0 ** min(failures, 16)))


def pause_seconds(*, reset: str | None, retry_after: str | None, now: datetime) -> float | None:
    """Seconds to wait, from `x-rate-limit-reset-at-utc` or `Retry-After`; None if neither can be read.

    The format of the reset header is unpublished: epoch seconds, epoch milliseconds and ISO forms are understood.
    The wait is clamped to 1..120 s, so that a wrong clock on either side cannot stop a run.
    """
    seconds = _until(reset, now) if reset else None
    if seconds is None and retry_after:
        seconds = _delay(retry_after, now)
    return None if seconds is None else min(MAX_PAUSE_S, max(MIN_PAUSE_S, seconds))


def next_poll(elapsed: float, usual: float | None) -> float:
    """Seconds until the next poll of a job submitted `elapsed` seconds ago; `usual` is the usual latency, if known.

    The first poll comes at 0.6 of the usual latency; the next ones follow after 3 % of the time elapsed, at most 5 s.
    So a result is noticed within about 3 % of its latency.
    """
    start = _FIRST_POLL * usual if usual else 0.0
    if elapsed < start:
        return start - elapsed
    return min(_MAX_POLL_S, max(_MIN_POLL_S, _POLL_SHARE * elapsed))


def _until(text: str, now: datetime) -> float | None:
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        return number / (1000 if number > _EPOCH_MS else 1) - now.timestamp()
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now.timestamp()


def _delay(text: str, now: datetime) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text).timestamp() - now.timestamp()
    except ValueError:
        return None
