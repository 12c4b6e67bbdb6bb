"""How long calls take: the newest thousand, and the limits that follow from them. Pure; all times in seconds."""

import math
from collections import deque
from dataclasses import dataclass, field

WINDOW = 1000
AT_LEAST = 20
"""Fewer measured calls than this say nothing of the 99th percentile."""
FACTOR = 10.0


@dataclass(slots=True)
class Latencies:
    """The newest latencies of one kind of call."""

    _newest: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _p99: float | None = None

    def add(self, seconds: float) -> None:
        """Take one in."""
        self._newest.append(seconds)
        self._p99 = None

    @property
    def p99(self) -> float | None:
        """The 99th percentile; None until 20 are known."""
        if len(self._newest) < AT_LEAST:
            return None
        if self._p99 is None:
            ordered = sorted(self._newest)
            self._p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
        return self._p99

    def limit(self, *, at_least: float, unmeasured: float) -> float:
        """How long a call may take before it counts as stuck: ten times the 99th percentile."""
        return unmeasured if self.p99 is None else max(at_least, FACTOR * self.p99)
