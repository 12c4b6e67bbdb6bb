"""Draws scenarios from seeds: a family of troubles, some of another, kills, machines, keys."""

from dataclasses import replace
from random import Random

from ..world.api import Traits
from ..world.session import Options
from ..world.troubles import Trouble
from .catalogue import FAMILIES, troubles_of
from .scenario import At, RunPlan, Scenario

_DAY = 86400.0
_OTHER_PAGES = 0.15


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = Random(seed)
    family = rng.choices(list(FAMILIES), [entry.weight for entry in FAMILIES.values()])[0]
    return _with_pages(FAMILIES[family].shape(_base(seed, family, rng), rng))


def _with_pages(scenario: Scenario) -> Scenario:
    """The scenario, for some with a history whose pages change their order, or that pages by cursors.

    Drawn from a generator of its own, so that what other seeds draw does not change.
    """
    rng = Random(f"pages of {scenario.seed}")
    has_pages = any(trouble.fault.startswith("page-") for trouble in scenario.troubles)
    if scenario.family != "history" or has_pages or rng.random() > _OTHER_PAGES:
        return scenario
    pages = Trouble("history", rng.choice(("page-scrambled", "page-cursor")))
    foreign = tuple((rng.uniform(-600.0, 60.0), None) for _ in range(12))
    return replace(scenario, troubles=(*scenario.troubles, pages), foreign=(*scenario.foreign, *foreign))


def _base(seed: int, family: str, rng: Random) -> Scenario:
    """Rows, options, traits and runs; the family's own troubles with some that are not of it."""
    v1 = rng.random() < FAMILIES[family].v1_share
    lag = rng.choice((120.0, 600.0, 1800.0, 7200.0))
    options = Options(
        v1=v1,
        in_flight=rng.randint(1, 4),
        deadline=rng.choice((90.0, 200.0, 600.0)),
        history_lag=lag,
        on_unknown=rng.choices(("reconcile", "hold", "retry-once"), (17, 2, 1))[0],
        max_attempts=rng.choice((2, 5, 5)),
        drain_seconds=rng.choice((2.0, 20.0)),
        with_check=rng.random() < 0.2,
    )
    rows = rng.choices((1, 2, 3, 4, 6), (4, 4, 3, 2, 1))[0]
    keys = tuple((f"SG_{rng.getrandbits(64):016x}", account) for account in ("first", "second", "first"))
    runs = draw_runs(rng, keys[0][0], lag)
    last = RunPlan(keys[0][0], machine="here")
    scenario = Scenario(
        seed=seed,
        family=family,
        rows=rows,
        options=options,
        traits=_traits(rng),
        keys=keys,
        runs=runs,
        last_run=last,
        last_pause=lag + rng.choice((150.0, 700.0, 5000.0)),
        latency=rng.choice(((0.3, 2.0), (0.3, 2.0), (1.0, 6.0), (5.0, 20.0))),
        fail_share=rng.choice((0.0, 0.0, 0.0, 0.15)),
        failing=frozenset(row for row in range(rows) if rng.random() < 0.06),
        most_lag=lag * rng.choice((0.0, 0.3, 0.9)),
        store_clock=rng.choice((0.0, 0.0, -4.0, 40.0)),
    )
    foreign = rng.choice((0, 0, 3, 9))
    spread = rng.choice((2 * _DAY, 3600.0))
    calls = tuple((rng.uniform(-spread, min(spread, lag)), None) for _ in range(foreign))
    troubles = troubles_of(family, scenario, rng)
    if rng.random() < 0.25:
        troubles += troubles_of(rng.choice(("submit", "poll", "cdn", "history", "wire")), scenario, rng)[:1]
    lies = [trouble for trouble in troubles if _says_failed(trouble)]
    troubles = tuple(trouble for trouble in troubles if trouble not in lies[1:])
    return replace(scenario, foreign=calls, troubles=troubles)


def _says_failed(trouble: Trouble) -> bool:
    """Whether a trouble makes a GET call a job FAILED.

    A world has one such trouble at most: if both GETs said so, nobody could know that the job has not failed.
    """
    if trouble.fault == "state":
        return str(trouble.arg).upper() == "FAILED"
    status, body = trouble.arg if trouble.fault == "status" else (0, None)
    return status == 422 and isinstance(body, dict) and str(body.get("status")).upper() == "FAILED"


def _moment(rng: Random) -> At:
    """Draw the event at which a run is killed: any, or one of those where a crash does most harm."""
    if rng.random() < 0.4:
        return ("", int(rng.triangular(2, 90, 12)))
    events = ("after create ledger/segments", "create images", "create ledger/claims", ".id.json", "POST", "status")
    return (rng.choice(events), int(rng.triangular(1, 8, 1)))


def _traits(rng: Random) -> Traits:
    skew = rng.choice((0.0, 0.0, 0.0, -40.0, 300.0))
    return _history_traits(
        rng,
        Traits(
            skew=skew,
            date=rng.choice(("right", "right", "right", "absent", "garbage")),
            result_shape=rng.choice(
                ("full", "full", "output", "images", "nested", "list", "base64", "data-url", "json-text")
            ),
            cdn_redirect=rng.choice((0,) * 14 + (302, 307)),
            outputs=1,
        ),
    )


def draw_runs(rng: Random, key: str, lag: float) -> tuple[RunPlan, ...]:
    """One run, and up to two more after kills."""
    runs = []
    for number in range(rng.choices((1, 2, 3), (5, 4, 2))[0]):
        pause = 0.0 if not number else rng.choice((1.0, 30.0, 100.0, 300.0, lag + 200.0))
        runs.append(RunPlan(key, pause, machine=rng.choice(("here", f"machine {number}"))))
    ends = [rng.choice(("kill", "kill", "stop", "end")) for _ in runs]
    if len(runs) > 1:
        ends[0] = "kill"
    plans = []
    for run, end in zip(runs, ends, strict=True):
        at = _moment(rng)
        plans.append(replace(run, kill_at=at if end == "kill" else None, stop_at=at if end == "stop" else None))
    return tuple(plans)


def _history_traits(rng: Random, traits: Traits) -> Traits:
    """Draw the form in which this world's history shows its rows."""
    return replace(
        traits,
        list_wrap=rng.choice(("data", "data", "total")),
        detail_wrap=rng.choice(("data", "bare")),
        body_form=rng.choice(("repr", "json", "object")),
        created_name=rng.choice(("model_created", "created_at", "created", "when")),
        created_form=rng.choice(("iso", "z", "naive", "sql")),
    )
