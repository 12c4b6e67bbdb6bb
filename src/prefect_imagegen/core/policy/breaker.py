"""The circuit breaker: it stops a run in which too many rows fail, before more is spent."""

from collections import deque
from dataclasses import dataclass, field

WINDOW = 100
AT_LEAST = 20


@dataclass(slots=True)
class Breaker:
    """Trips when more than `max_failure_rate` of the last 100 finished rows failed, once 20 have finished."""

    max_failure_rate: float
    _last: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def record(self, *, failed: bool) -> bool:
        """Count one finished row; True if the run has to stop."""
        self._last.append(failed)
        return len(self._last) >= AT_LEAST and sum(self._last) / len(self._last) > self.max_failure_rate
