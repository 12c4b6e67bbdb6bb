"""Outages of something that a run needs: its loss and its return are each reported once, however often it is tried.

Pure: the caller gives the time, in seconds of a monotonic clock, and writes the messages.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

QUIET_S = 300.0
"""Seconds after the end of a reported outage in which brief outages are not reported."""
LONG_S = 30.0
"""Seconds from which an outage is not brief."""


@dataclass(slots=True)
class Outage:
    """The outages of one thing, one after the other.

    An outage begins after `after` failures in succession, and is reported once it has lasted `patience` seconds.
    """

    after: int = 1
    patience: float = 0.0
    _failures: int = 0
    _since: float = 0.0
    _is_reported: bool = False
    _quiet_until: float = float("-inf")

    @property
    def is_on(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def failed(self, now: float) -> float | None:
        """Note a failed try: the seconds since the first failure if the outage has to be reported now, else None."""
        if not self._failures:
            self._since = now
        self._failures += 1
        lasted = now - self._since
        is_brief = lasted < (LONG_S if now < self._quiet_until else self.patience)
        if self._is_reported or is_brief or self._failures < self.after:
            return None
        self._is_reported = True
        return lasted

    def worked(self, now: float) -> float | None:
        """Note a successful try: the length in seconds of a reported outage that ends with it, else None."""
        was_reported, self._failures, self._is_reported = self._is_reported, 0, False
        if not was_reported:
            return None
        self._quiet_until = now + QUIET_S
        return now - self._since


def since_text(seconds: float, now: datetime) -> str:
    """The time of day at which something began so many seconds before `now`, as `since 14:03:07 UTC`."""
    return f"since {(now.astimezone(UTC) - timedelta(seconds=seconds)):%H:%M:%S} UTC"
