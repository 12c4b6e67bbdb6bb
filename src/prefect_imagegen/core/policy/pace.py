"""How fast an API lets itself be asked: pauses, and a rate that is learned from its refusals (429). Pure.

Times are seconds of one monotonic clock. A stray refusal costs its pause and nothing more. Refusals that follow each
other mean a limit: then no more is asked than was answered before, and a little more is tried from time to time, so
that a limit which is gone is forgotten. Segmind publishes no limit for GETs, and several for POSTs.
"""

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 60.0
"""Rates are counted over the last minute, as APIs do."""
RELATED_S = 120.0
"""A refusal so soon after the pause of the last one is no stray one."""
DEFAULT_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
_SAFE = 0.9
"""Part of what was answered that is asked for afterwards."""
_GROWTH = 1.25
_GROW_EVERY_S = 20.0
_TRY_AFTER_S, _TRY_AT_LAST_S = 30.0, 240.0
"""How long a learned rate is kept before more is tried: twice as long after each try that was refused."""
_FORGOTTEN = 4.0
"""A learned rate that has grown so many times without a refusal is no limit any more."""
_LEAST_PER_S = 0.2


@dataclass(slots=True)
class Pace:
    """When the next call may go out. `rate` is in calls per second, None where no limit is known."""

    rate: float | None = None
    _learned: float = 0.0
    _paused_until: float = 0.0
    _next: float = 0.0
    _began: float | None = None
    _answered: deque[float] = field(default_factory=deque)
    """Times of the good answers of the last minute."""
    _refused_at: float = float("-inf")
    _in_a_row: int = 0
    """Refusals since the last good answer."""
    _grow_at: float = 0.0
    _try_after: float = _TRY_AFTER_S

    def due(self, now: float) -> float:
        """The time from which the next call may go out."""
        return max(now, self._paused_until, self._next)

    @property
    def is_free(self) -> bool:
        """Whether no call waits for another: no limit is known, and the last answer was no refusal."""
        return self.rate is None and not self._in_a_row

    def sent(self, at: float) -> None:
        """A call goes out."""
        self._began = at if self._began is None else self._began
        if self._in_a_row:
            # Whether the refusal still holds is asked once, not by everybody at the same time.
            self._next = at + DEFAULT_PAUSE_S
        elif self.rate is not None:
            self._next = at + 1 / self.rate

    def answered(self, *, sent: float, at: float) -> None:
        """A call that was sent at a time was answered, with anything but a refusal."""
        self._answered.append(at)
        self._forget(at)
        if sent <= self._refused_at:
            return  # it says nothing of what holds since
        if self._in_a_row:
            self._in_a_row, self._next = 0, at
        if self.rate is None or at < self._grow_at:
            return
        self.rate, self._grow_at = self.rate * _GROWTH, at + _GROW_EVERY_S
        if self.rate >= _FORGOTTEN * self._learned:
            self.rate, self._try_after = None, _TRY_AFTER_S

    def refused(self, *, sent: float, at: float, pause: float | None) -> None:
        """A call that was sent at a time was refused; `pause` is what the refusal asks for, in seconds."""
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
