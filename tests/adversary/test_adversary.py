"""Thousands of scenarios of a misbehaving world; `run.py` plays any of them by hand."""

import hashlib
from dataclasses import replace

import pytest

from .judge import judge
from .runner import fresh_processes, play, run, summary, trace
from .scenarios.generator import draw

SEEDS = range(2000)
CORES = 2
FOUND_BY_HAND = (2138, 2773, 2886, 2978, 4766, 5305, 21852, 78610, 113021)
"""Seeds beyond those, which found a fault once, or see one that no other seed sees."""


@pytest.mark.timeout(900)
def test_no_scenario_breaks_a_promise():
    """Whatever service, store and machines do: nothing is billed twice, given up, lost or left without an end."""
    failures = run(SEEDS, CORES)
    lines = [f"{failure.seed} ({failure.family}): {text}" for failure in failures for text in failure.findings]
    report = "\n".join([summary(failures), *lines, "Look: python tests/adversary/run.py --seed N --shrink --trace"])
    assert not failures, f"\n{report}"


@pytest.mark.parametrize("seed", FOUND_BY_HAND)
def test_what_was_found_by_hand_stays_mended(seed: int):
    """A seed that broke a promise once breaks none."""
    assert judge(play(draw(seed))) == []


def test_the_same_seed_is_the_same_world():
    """A scenario goes the same way each time: no real time, no chance, no order of hashes."""
    # In a process of its own: other threads of this one may take from the same chance.
    with fresh_processes(1) as pool:
        assert list(pool.map(_digest, range(40))) == list(pool.map(_digest, range(40)))


def test_good_times_deliver():
    """A world without troubles delivers every row in its first run."""
    for seed in range(40):
        scenario = _untroubled(seed)
        world = play(scenario)
        assert judge(world) == []
        assert {call.run for call in world.service.calls} == {1}


def _untroubled(seed: int):
    scenario = draw(seed)
    return replace(
        scenario,
        troubles=(),
        runs=(scenario.last_run,),
        fail_share=0.0,
        failing=frozenset(),
        traits=replace(scenario.traits, cdn_redirect=0, outputs=1),
        list_lag=0.0,
        blind=False,
    )


def _digest(seed: int) -> str:
    return hashlib.sha256(trace(draw(seed)).encode()).hexdigest()
