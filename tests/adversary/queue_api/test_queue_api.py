"""Hundreds of scenarios of a seller without a request history; `run.py --seller queue` plays any of them by hand."""

from dataclasses import replace

import pytest

from ..runner import run, summary
from .game import AT_QUEUE, draw, judge, play_at_queue

SEEDS = range(250)
CORES = 2
FOUND_BY_HAND = (506,)
"""Seeds beyond those, which found a fault once."""


@pytest.mark.timeout(300)
def test_no_scenario_breaks_a_promise():
    """Whatever happens to calls that nobody can look up: none is bought twice or forgotten, and every row is told."""
    failures = run(SEEDS, CORES, game=AT_QUEUE)
    lines = [f"{failure.seed} ({failure.family}): {text}" for failure in failures for text in failure.findings]
    report = "\n".join(
        [summary(failures), *lines, "Look: python tests/adversary/run.py --seller queue --seed N --shrink --trace"]
    )
    assert not failures, f"\n{report}"


@pytest.mark.parametrize("seed", FOUND_BY_HAND)
def test_what_was_found_by_hand_stays_mended(seed: int):
    """A seed that broke a promise once breaks none."""
    assert judge(play_at_queue(draw(seed))) == []


def test_good_times_deliver():
    """A world without troubles delivers every row in its first run, with one call each."""
    for seed in range(20):
        scenario = draw(seed)
        scenario = replace(
            scenario, troubles=(), runs=(scenario.last_run,), fail_share=0.0, failing=frozenset(), list_lag=0.0
        )
        world = play_at_queue(replace(scenario, blind=False))
        first = world.runs[0].ended
        assert judge(world) == []
        assert first is not None
        assert {result.status for result in first.results.values()} == {"generated"}
        assert len(world.service.calls) == scenario.rows


def test_the_seeds_meet_what_matters():
    """The seeds hold unanswered calls that were taken, rows that a person gave free, and lost outputs of old calls."""
    answers, kinds, freed = set(), set(), 0
    for seed in range(60):
        world = play_at_queue(draw(seed))
        answers |= {(call.answer, call.job is not None) for call in world.service.calls}
        kinds |= {result.error_kind for run in world.runs if run.ended for result in run.ended.results.values()}
        freed += len(world.freed)
    assert {("none", True), ("none", False), ("5xx", True), ("5xx", False), ("3xx", True), ("4xx", False)} <= answers
    assert {"no_history", "submitted", "output_lost", "other_account", "generation_failed"} <= kinds
    assert freed > 0
