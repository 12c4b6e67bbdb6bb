"""Named points at which a process can be told to die, so that tests can prove that a crash costs nothing.

`PREFECT_IMAGEGEN_CRASH_AT=POINT[:N]` kills the process with SIGKILL the N-th time (default: the first) that it hits
the point. Without the variable the points do nothing.
"""

import os
import signal
from collections import Counter

_POINT, _, _TIMES = os.environ.get("PREFECT_IMAGEGEN_CRASH_AT", "").partition(":")
_hits: Counter[str] = Counter()


def hit(point: str) -> None:
    """Kill this process if the environment names this point."""
    if point and point == _POINT:
        _hits[point] += 1
        if _hits[point] >= int(_TIMES or 1):
            os.kill(os.getpid(), signal.SIGKILL)
