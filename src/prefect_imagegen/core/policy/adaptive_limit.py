"""The adaptive limit on concurrent calls: additive increase, one cut per burst of refusals (429 or 503). Pure."""

from collections import deque
from dataclasses import dataclass, field

_STEPS = 8
"""The floor is this fraction (1/8) of the highest limit; it takes as many rounds to return to the highest."""
_BURST = 0.2
"""A larger share of refusals among the last answers is a burst; a single refusal is not."""
_AT_LEAST = 5


@dataclass(slots=True)
class AdaptiveLimit:
    """A limit between an eighth of `most` and `most`; it starts at `most`. Times are of one monotonic clock."""

    most: int
    cuts: int = 0
    _limit: float = 0.0
    _answers: deque[bool] = field(default_factory=deque)
    _cut_at: float = float("-inf")

    def __post_init__(self) -> None:
        self._limit = float(self.most)

    @property
    def now(self) -> int:
        """The present limit on concurrent calls."""
        return max(1, int(self._limit))

    def raise_to(self, most: int) -> None:
        """Raise the highest limit; the present limit grows towards it with the next answers."""
        self.most = max(self.most, most)

    def answered(self, *, refused: bool, sent: float, at: float) -> None:
        """Adjust the limit to an answer at the time `at` to a call sent at the time `sent`."""
        self._answers.append(refused)
        while len(self._answers) > max(_AT_LEAST, self.now):
            self._answers.popleft()
        if not refused:
            self._limit = min(float(self.most), self._limit + max(1.0, self.most / _STEPS) / self._limit)
        elif sent > self._cut_at and self._bursting:
            # Calls that were sent before the last cut belong to its burst.
            self._limit = max(1.0, self.most / _STEPS, self._limit / 2)
            self._cut_at = at
            self.cuts += 1

    @property
    def _bursting(self) -> bool:
        return len(self._answers) >= _AT_LEAST and sum(self._answers) > _BURST * len(self._answers)
