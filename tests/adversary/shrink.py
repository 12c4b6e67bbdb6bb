"""Makes a scenario that breaks a rule smaller, as long as it breaks the same rule: what is left is the reason."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from .scenarios.scenario import RunPlan, Scenario
from .world.api import Traits

Breaks = Callable[[Scenario], bool]


def shrink(scenario: Scenario, breaks: Breaks) -> Scenario:
    """The smallest scenario that can be reached by leaving single things away."""
    going = True
    while going:
        going = False
        for smaller in _smaller(scenario):
            if smaller != scenario and breaks(smaller):
                scenario, going = smaller, True
                break
    return scenario


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """The scenario without one thing."""
    plain = replace(scenario.traits, skew=0.0)
    yield replace(scenario, traits=replace(Traits(), outputs=scenario.traits.outputs))
    yield replace(scenario, traits=plain)
    yield replace(scenario, foreign=())
    yield replace(scenario, partial=())
    yield replace(scenario, most_lag=0.0)
    yield replace(scenario, store_clock=0.0)
    yield replace(scenario, list_lag=0.0)
    yield replace(scenario, blind=False)
    yield replace(scenario, fail_share=0.0)
    yield replace(scenario, failing=frozenset())
    yield replace(scenario, with_reference=frozenset())
    for position in range(len(scenario.troubles)):
        yield replace(scenario, troubles=_without(scenario.troubles, position))
    for position, run in enumerate(scenario.runs):
        if len(scenario.runs) > 1:
            yield replace(scenario, runs=_without(scenario.runs, position))
        for smaller in _smaller_run(run):
            yield replace(scenario, runs=(*scenario.runs[:position], smaller, *scenario.runs[position + 1 :]))
    if scenario.rows > 1:
        fewer = frozenset(row for row in scenario.failing if row < scenario.rows - 1)
        yield replace(scenario, rows=scenario.rows - 1, failing=fewer)


def _smaller_run(run: RunPlan) -> Iterator[RunPlan]:
    yield replace(run, clock=0.0)
    yield replace(run, beside=False)
    yield replace(run, beside_at=None)
    yield replace(run, cap=None)
    yield replace(run, damage=False)
    yield replace(run, resend=False)
    yield replace(run, kill_at=None, stop_at=None)
    for position in range(len(run.store_troubles)):
        yield replace(run, store_troubles=_without(run.store_troubles, position))


def _without(all_of_them: tuple, position: int) -> tuple:
    return (*all_of_them[:position], *all_of_them[position + 1 :])
