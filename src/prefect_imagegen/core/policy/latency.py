"""Latencies of the newest thousand calls, and the time limits that follow from them. Pure; all times in seconds."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

WINDOW = 1000
AT_LEAST = 20
"""The least number of measured calls from which percentiles are computed."""
LOST = 10.0
LATER = 2.0
"""A call may take this many times the longest recent latency."""
STUCK = 5.0


@dataclass(slots=True)
class Latencies:
    """The newest latencies of one kind of call."""

    _newest: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _ordered: list[float] | None = None

    def add(self, seconds: float) -> None:
        """Add one latency."""
        self._newest.append(seconds)
        self._ordered = None

    @property
    def p99(self) -> float | None:
        """The 99th percentile; None until 20 are known."""
        return self._quantile(0.99)

    @property
    def median(self) -> float | None:
        """The 50th percentile, which a few stuck calls do not move; None until 20 are known."""
        return self._quantile(0.5)

    @property
    def longest(self) -> float:
        """The longest latency; 0 if none is known."""
        return max(self._newest, default=0.0)

    def limit(self, *, at_least: float, unmeasured: float) -> float:
        """How long a call may take before it counts as lost: ten times the 99th percentile."""
        return unmeasured if self.p99 is None else max(at_least, LOST * self.p99)

    def patience(self, *, at_least: float, unmeasured: float) -> float:
        """How long others should wait for a call's slot: five times the median."""
        return unmeasured if self.median is None else max(at_least, STUCK * self.median)

    def _quantile(self, share: float) -> float | None:
        if len(self._newest) < AT_LEAST:
            return None
        if self._ordered is None:
            self._ordered = sorted(self._newest)
        return self._ordered[math.ceil(share * len(self._ordered)) - 1]


@dataclass(slots=True)
class WorkLatencies:
    """The latencies of one worker, by the cost class of the work."""

    _classes: dict[str, Latencies] = field(default_factory=dict)

    def add(self, cost_class: str, seconds: float) -> None:
        """Add one latency. For a call that was given up, it is the time until then: the call took at least as long."""
        self._classes.setdefault(cost_class, Latencies()).add(seconds)

    def overdue(self, queue: Iterable[str], *, at_least: float, unmeasured: float) -> float:
        """How long a call may take while the worker has calls of these classes, its own among them.

        Only the worker knows their order, so their times add up.
        """
        total = 0.0
        for cost_class in queue:
            known = self._classes.get(cost_class)
            if known is None or known.p99 is None:
                return unmeasured
            total += max(LOST * known.p99, LATER * known.longest)
        return max(at_least, total)
