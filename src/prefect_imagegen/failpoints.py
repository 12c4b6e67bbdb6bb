"""Named points at which a process can be told to die, so that drills can prove what a crash costs: nothing.

`PREFECT_IMAGEGEN_CRASH_AT=POINT[:N]` kills the process with SIGKILL the N-th time (default: the first) that it reaches
the point. Without the variable nothing happens.
"""

import os
import signal
from collections import Counter

_POINT, _, _TIMES = os.environ.get("PREFECT_IMAGEGEN_CRASH_AT", "").partition(":")
_reached: Counter[str] = Counter()


def hit(point: str) -> None:
    """Die here, if that is what the environment asks for."""
    if point and point == _POINT:
        _reached[point] += 1
        if _reached[point] >= int(_TIMES or 1):
            os.kill(os.getpid(), signal.SIGKILL)
