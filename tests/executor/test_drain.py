"""How long calls in flight may go on after an interruption."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_imagegen.executor.control import STOP_CLOCK_S


@pytest.mark.parametrize(("drain", "whole"), [(20.0, 20.0), (0.0, 0.0), (60.0, STOP_CLOCK_S)])
def test_the_drain_counts_once(bench: Any, drain: float, whole: float, tmp_path: Path) -> None:
    """POSTs, answers and deferred requests share one drain from the interruption on, within the stop clock."""
    bench = type(bench)(tmp_path, bench.ledger.view, policy={"drain_seconds": drain})
    assert (bench.context.drain_left, bench.control.time_left()) == (drain, None)
    bench.control.interrupt("signal", "told to")
    assert bench.context.drain_left == whole
    bench.clock.time += timedelta(seconds=15)
    assert bench.context.drain_left == max(0.0, whole - 15)
    assert bench.control.time_left() == STOP_CLOCK_S - 15
    bench.clock.time += timedelta(seconds=15)
    assert (bench.context.drain_left, bench.control.time_left()) == (0.0, 0.0)
