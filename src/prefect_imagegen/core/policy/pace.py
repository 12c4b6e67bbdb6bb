"""The rate at which an API may be called: pauses, and a rate learned from its refusals (429). Pure.

Times are seconds of one monotonic clock. A single refusal causes a pause and nothing more. Refusals that follow each
other mean a limit: the rate then stays below that of the answers before, and is raised a little from time to time, so
that a limit that no longer exists is forgotten. The API publishes no limit for GETs, and several for POSTs.
"""

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 60.0
"""Rates are counted over the last minute, as APIs do."""
RELATED_S = 120.0
"""A refusal within so many seconds after the last one's pause is not a single one."""
DEFAULT_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
_SAFE = 0.9
"""The learned rate as a share of the rate at which calls were answered."""
_GROWTH = 1.25
_GROW_EVERY_S = 20.0
_TRY_AFTER_S, _TRY_AT_LAST_S = 30.0, 240.0
"""Seconds for which a learned rate is kept before a higher one is tried; doubled after each try that was refused."""
_FORGOTTEN = 4.0
"""A rate that has grown to this many times the learned one without a refusal counts as unlimited."""
_LEAST_PER_S = 0.2


@dataclass(slots=True)
class Pace:
    """Decides when the next call may be sent. `rate` is in calls per second; None means no known limit."""

    rate: float | None = None
    _learned: float = 0.0
    _paused_until: float = 0.0
    _next: float = 0.0
    _began: float | None = None
    _answered: deque[float] = field(default_factory=deque)
    """The times of the answers of the last minute that were no refusals."""
    _refused_at: float = float("-inf")
    _in_a_row: int = 0
    """Refusals since the last answer that was none."""
    _grow_at: float = 0.0
    _try_after: float = _TRY_AFTER_S

    def due(self, now: float) -> float:
        """The time from which on the next call may be sent."""
        return max(now, self._paused_until, self._next)

    @property
    def is_free(self) -> bool:
        """Whether calls need not wait: no limit is known, and the last answer was no refusal."""
        return self.rate is None and not self._in_a_row

    def sent(self, at: float) -> None:
        """Note that a call is sent."""
        self._began = at if self._began is None else self._began
        if self._in_a_row:
            # One call tests whether the API still refuses; the others wait for its answer.
            self._next = at + DEFAULT_PAUSE_S
        elif self.rate is not None:
            self._next = at + 1 / self.rate

    def answered(self, *, sent: float, at: float) -> None:
        """Note an answer other than a refusal to a call sent at the time `sent`."""
        self._answered.append(at)
        self._forget(at)
        if sent <= self._refused_at:
            return  # sent before the last refusal: it says nothing about the limit since then
        if self._in_a_row:
            self._in_a_row, self._next = 0, at
        if self.rate is None or at < self._grow_at:
            return
        self.rate, self._grow_at = self.rate * _GROWTH, at + _GROW_EVERY_S
        if self.rate >= _FORGOTTEN * self._learned:
            self.rate, self._try_after = None, _TRY_AFTER_S

    def refused(self, *, sent: float, at: float, pause: float | None) -> None:
        """Note the refusal of a call sent at the time `sent`; `pause` is the pause it asks for, in seconds."""
        if sent <= self._refused_at:
            # It was on its way already when the last refusal came: nothing new but its pause.
            self._paused_until = max(self._paused_until, at + (pause or 0.0))
            return
        recent = at - max(self._refused_at, self._paused_until) <= RELATED_S
        if not self._in_a_row and (recent or self.rate is not None):
            self._learn(at)
        self._in_a_row += 1
        own = min(LONGEST_PAUSE_S, DEFAULT_PAUSE_S * 2.0 ** min(self._in_a_row - 1, 8))
        self._paused_until = max(self._paused_until, at + (own if pause is None else pause))
        self._refused_at = at

    def _learn(self, at: float) -> None:
        self._forget(at)
        span = min(WINDOW_S, at - (at if self._began is None else self._began))
        usual = _SAFE * len(self._answered) / span if span else 0.0
        if self.rate is not None and self.rate > self._learned:
            self._try_after = min(_TRY_AT_LAST_S, 2 * self._try_after)
        if self.rate is not None:
            usual = min(usual, self.rate)
        self.rate = self._learned = max(_LEAST_PER_S, usual)
        self._grow_at = at + self._try_after

    def _forget(self, at: float) -> None:
        while self._answered and self._answered[0] <= at - WINDOW_S:
            self._answered.popleft()
