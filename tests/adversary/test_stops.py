"""Runs that are told to stop while the history hangs, made by hand: situations that the generator draws seldom."""

import pytest

from .judge import judge
from .runner import play
from .scenarios.scenario import RunPlan, Scenario
from .world.api import Traits
from .world.session import Options
from .world.troubles import Trouble

KEY = "SG_0123456789abcdef"
LOOK = "before GET /inference-request"
REFUSED = (500, {"error": "internal"})


def scenario(troubles, *runs):
    options = Options(in_flight=2, deadline=200.0)
    return Scenario(
        seed=1,
        family="stops",
        rows=3,
        options=options,
        traits=Traits(),
        keys=((KEY, "first"),),
        runs=runs,
        last_run=RunPlan(KEY),
        last_pause=options.history_lag + 300.0,
        troubles=troubles,
        latency=(0.3, 2.0),
    )


SITUATIONS = {
    "the look after a 5xx": scenario(
        (Trouble("submit", "status", REFUSED, times=1), Trouble("history", "hang", times=3)),
        RunPlan(KEY, stop_at=(LOOK, 1)),
    ),
    "the look before a call is sent again": scenario(
        (Trouble("submit", "status", REFUSED, times=15, accepts=False), Trouble("history", "hang", skip=9, times=3)),
        RunPlan(KEY),
        RunPlan(KEY, pause=500.0, stop_at=(LOOK, 1)),
    ),
    "the look for what an earlier run left": scenario(
        (Trouble("submit", "gone", (1.0, "reset"), times=1), Trouble("history", "hang", skip=1, times=3)),
        RunPlan(KEY),
        RunPlan(KEY, pause=8000.0, stop_at=(LOOK, 1)),
    ),
    "the cost of an image that no ledger knows": scenario(
        (Trouble("detail", "hang"),),
        RunPlan(KEY, kill_at=("after create images", 1)),
        RunPlan(KEY, pause=100.0, stop_at=(LOOK, 1)),
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS.keys())
def test_a_stop_waits_for_nothing_that_hangs(situation):
    """A run that is told to stop while the history hangs ends within the stop clock, and the next one delivers all."""
    world = play(situation)
    assert world.runs[len(situation.runs) - 1].stopped_at is not None
    assert judge(world) == []
