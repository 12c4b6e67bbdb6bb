"""Draws scenarios of the queue API from seeds: families of troubles, kills, keys, and `resend` by a person."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from ..scenarios.generator import draw_runs
from ..scenarios.makers import (
    Maker,
    get_junk,
    get_status,
    html,
    lasting,
    poll_fields,
    poll_state,
    post_4xx,
    post_5xx,
    post_junk,
    post_lost,
    post_slow,
    rate,
    redirect,
    wire,
)
from ..scenarios.scenario import RunPlan, Scenario
from ..scenarios.situations import (
    accounts,
    beside,
    failing,
    lists,
    lost_ids,
    many_outputs,
    old,
    parked,
    plain,
    slow,
    store,
)
from ..world.api import Traits
from ..world.session import Options
from ..world.troubles import Trouble

GETS = ("status", "result", "download")
_IMAGES = (
    ...,
    None,
    [],
    "",
    {},
    [None],
    [{}],
    [{"url": None}],
    [{"url": 5}],
    [{"url": ""}],
    [{"url": "/relative.png"}],
)
_ADDRESSES = ("http://127.0.0.1:1/x.png", "http://169.254.169.254/latest", "file:///etc/passwd", "https://", "data:,x")
_REFUSALS = ({}, [], None, {"error": "gateway"}, b"<html>Unprocessable</html>", {"detail": ""}, {"detail": None})
"""Bodies of a 422 that do not say, as the API documents it, that the job has failed."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family of scenarios: how often it is drawn, its troubles, and what else it changes."""

    weight: int
    makers: tuple[Maker, ...] = ()
    shape: Callable[[Scenario, Random], Scenario] = plain


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = Random(f"queue {seed}")
    family = rng.choices(list(FAMILIES), [entry.weight for entry in FAMILIES.values()])[0]
    scenario = FAMILIES[family].shape(_base(seed, family, rng), rng)
    runs = tuple(replace(run, resend=number > 0 and rng.random() < 0.25) for number, run in enumerate(scenario.runs))
    last = replace(scenario.last_run, resend=rng.random() < 0.25)
    troubles = tuple(trouble for trouble in scenario.troubles if not _says_failed(trouble))
    return replace(scenario, runs=runs, last_run=last, troubles=troubles)


def _base(seed: int, family: str, rng: Random) -> Scenario:
    """Rows, options and runs, with the family's own troubles and some that are not of it."""
    options = Options(
        in_flight=rng.randint(1, 4),
        deadline=rng.choice((90.0, 200.0, 600.0)),
        history_lag=120.0,
        on_unknown=rng.choices(("reconcile", "hold", "retry-once"), (6, 1, 1))[0],
        max_attempts=rng.choice((2, 5)),
        drain_seconds=rng.choice((2.0, 20.0)),
        with_check=rng.random() < 0.1,
    )
    rows = rng.choices((1, 2, 3, 4, 6), (4, 4, 3, 2, 1))[0]
    keys = tuple((f"SG_{rng.getrandbits(64):016x}", account) for account in ("first", "second", "first"))
    scenario = Scenario(
        seed=seed,
        family=family,
        rows=rows,
        options=options,
        traits=Traits(date=rng.choice(("right", "absent", "garbage"))),
        keys=keys,
        runs=draw_runs(rng, keys[0][0], options.history_lag),
        last_run=RunPlan(keys[0][0]),
        last_pause=rng.choice((150.0, 700.0, 5000.0)),
        latency=rng.choice(((0.3, 2.0), (0.3, 2.0), (1.0, 6.0), (5.0, 20.0))),
        fail_share=rng.choice((0.0, 0.0, 0.0, 0.15)),
        failing=frozenset(row for row in range(rows) if rng.random() < 0.06),
        store_clock=rng.choice((0.0, 0.0, -4.0, 40.0)),
        with_reference=frozenset(row for row in range(rows) if rng.random() < 0.1),
    )
    troubles = _troubles_of(family, scenario, rng)
    if rng.random() < 0.3:
        troubles += _troubles_of(rng.choice(("posts", "lost", "polls", "outputs")), scenario, rng)[:1]
    return replace(scenario, troubles=troubles)


def _troubles_of(family: str, scenario: Scenario, rng: Random) -> tuple[Trouble, ...]:
    makers = FAMILIES[family].makers
    if not makers:
        return ()
    return tuple(rng.choice(makers)(scenario, rng) for _ in range(rng.choice((1, 1, 2, 3))))


def _says_failed(trouble: Trouble) -> bool:
    """Whether a trouble has a result say, as the API documents it, that a job has failed: nobody could know better."""
    if trouble.fault != "status" or not trouble.meets("result"):
        return False
    status, body = trouble.arg
    return status == 422 and isinstance(body, dict) and bool(body.get("detail"))


def _no_images(scenario: Scenario, rng: Random) -> Trouble:
    return Trouble("result", "fields", {"images": rng.choice(_IMAGES)}, **lasting(rng, scenario))


def _other_address(scenario: Scenario, rng: Random) -> Trouble:
    """A result whose image lies where it cannot, or must not, be fetched from."""
    return Trouble("result", "fields", {"images": [{"url": rng.choice(_ADDRESSES)}]}, **lasting(rng, scenario))


def _no_verdict(scenario: Scenario, rng: Random) -> Trouble:
    """A 422 that does not say what the API says of a job that has failed."""
    return Trouble("result", "status", (422, rng.choice(_REFUSALS)), **lasting(rng, scenario))


_GET_TROUBLES = tuple(make(where) for where in GETS for make in (get_status, get_junk, html, redirect, wire))
_POSTS = (post_lost, post_5xx, post_junk, post_4xx, post_slow, rate, wire("submit"), redirect("submit"))

FAMILIES: dict[str, Family] = {
    "lost": Family(5, (post_lost, post_lost, post_5xx, post_junk)),
    "posts": Family(5, _POSTS),
    "polls": Family(4, (get_status("poll"), get_junk("poll"), html("poll"), wire("poll"), poll_state, poll_fields)),
    "results": Family(3, (_no_images, _other_address, _no_verdict, get_junk("result"), redirect("result"))),
    "outputs": Family(3, tuple(make("download") for make in (get_status, get_junk, html, redirect, wire))),
    "gets": Family(3, _GET_TROUBLES),
    "wire": Family(2, (wire("any"), wire("get"), redirect("get"), rate)),
    "store": Family(3, (post_lost, get_junk("download")), store),
    "accounts": Family(2, (post_lost, wire("get")), accounts),
    "failing": Family(2, (post_lost, post_5xx), failing),
    "beside": Family(2, (post_lost, wire("get")), beside),
    "lost-ids": Family(2, (post_lost,), lost_ids),
    "lists": Family(1, (post_lost,), lists),
    "outputs-many": Family(1, (wire("download"), get_status("download")), many_outputs),
    "parked": Family(1, (), parked),
    "slow": Family(1, (), slow),
    "old": Family(2, (get_status("download"), get_status("poll"), post_lost, html("download")), old),
}
