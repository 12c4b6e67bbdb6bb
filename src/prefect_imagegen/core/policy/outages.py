"""When something that a run needs is away, and when it is back: each is to be said once, however often it is tried.

Pure: the caller brings the time, in seconds of a clock that never goes back, and says what is to be said.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

QUIET_S = 300.0
"""So long after the end of an outage that was told, brief ones are not."""
LONG_S = 30.0
"""What is no brief outage."""


@dataclass(slots=True)
class Outage:
    """The outages of one thing, one after the other.

    `after`: so many failures without a success between them are an outage. `patience`: seconds that it has to last
    before it is told at all.
    """

    after: int = 1
    patience: float = 0.0
    _failures: int = 0
    _since: float = 0.0
    _is_told: bool = False
    _quiet_until: float = float("-inf")

    @property
    def is_on(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def failed(self, now: float) -> float | None:
        """A try failed: the seconds since the first one that did, where the outage is to be told now; else None."""
        if not self._failures:
            self._since = now
        self._failures += 1
        lasted = now - self._since
        is_brief = lasted < (LONG_S if now < self._quiet_until else self.patience)
        if self._is_told or is_brief or self._failures < self.after:
            return None
        self._is_told = True
        return lasted

    def worked(self, now: float) -> float | None:
        """A try succeeded: how many seconds the outage lasted, where one was told that has ended; else None."""
        was_told, self._failures, self._is_told = self._is_told, 0, False
        if not was_told:
            return None
        self._quiet_until = now + QUIET_S
        return now - self._since


def since_text(seconds: float, now: datetime) -> str:
    """The time of day at which something began so many seconds before `now`, as `since 14:03:07 UTC`."""
    return f"since {(now.astimezone(UTC) - timedelta(seconds=seconds)):%H:%M:%S} UTC"
