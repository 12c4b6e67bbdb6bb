"""The memory of a run does not grow with its rows."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def measured(rows: int) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(
        subprocess.run([sys.executable, SCRIPT, "--one", str(rows)], check=True, capture_output=True).stdout
    )
    return figures


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_rows() -> None:
    """Ten times the rows run in the same memory, and it does not grow on the way; a window of the plan is held."""
    small, large = measured(4_000), measured(40_000)
    assert large["steady"] < small["steady"] + 50
    first, second = halves(large["samples"])
    assert second < first + 40
    assert max(large["peaks"].values()) < max(small["peaks"].values()) + 120


def halves(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """The medians of the first and the second half, without the first and the last tenth."""
    megabytes = [mb for _, mb in samples]
    tenth, middle = len(megabytes) // 10, len(megabytes) // 2
    return median(megabytes[tenth:middle]), median(megabytes[middle:-tenth])
