"""The families of scenarios: which troubles they draw, and what else they change."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ..world.troubles import Trouble
from .makers import (
    Maker,
    get_json_5xx,
    get_junk,
    get_status,
    history_rows,
    history_shape,
    html,
    poll_fields,
    poll_lie,
    poll_no_output,
    poll_state,
    post_4xx,
    post_5xx,
    post_junk,
    post_lost,
    post_slow,
    rate,
    rate_headers,
    redirect,
    wire,
)
from .scenario import Scenario
from .situations import (
    accounts,
    beside,
    capped,
    clocks,
    damaged,
    failing,
    late_urls,
    lists,
    lost_answers,
    lost_ids,
    many_outputs,
    old,
    parked,
    plain,
    reopened,
    slow,
    store,
    uploads,
)


@dataclass(frozen=True, slots=True)
class Family:
    """A family: how often it is drawn, its troubles, what else it changes, how often it is of v1."""

    weight: int
    makers: tuple[Maker, ...] = ()
    shape: Callable[[Scenario, Random], Scenario] = plain
    v1_share: float = 0.2


_POLL = (
    *(get_json_5xx("poll"), get_json_5xx("poll"), get_status("poll"), get_junk("poll"), html("poll")),
    *(redirect("poll"), wire("poll"), poll_state, poll_lie, poll_no_output, poll_fields),
)
_HISTORY = (
    *(history_shape, history_shape, history_rows, history_rows, get_status("records")),
    *(get_junk("records"), html("history"), wire("records"), redirect("records")),
)
_CDN = (
    *(html("download"), html("download"), get_status("download"), get_junk("download")),
    *(redirect("download"), wire("download")),
)
_SUBMIT = (post_5xx, post_4xx, post_lost, post_junk, post_slow, rate, wire("submit"), rate_headers)
FAMILIES = {
    "calm": Family(2),
    "submit": Family(5, _SUBMIT, v1_share=0.3),
    "poll": Family(5, _POLL, v1_share=0.0),
    "cdn": Family(3, _CDN),
    "history": Family(6, _HISTORY, lost_answers, v1_share=0.3),
    "wire": Family(2, tuple(wire(where) for where in ("get", "any", "poll", "download", "submit", "balance"))),
    "clocks": Family(3, (), clocks),
    "accounts": Family(4, (post_lost, post_5xx, get_status("poll")), accounts),
    "store": Family(4, (post_lost, get_status("poll"), html("download")), store),
    "slow": Family(1, (), slow, v1_share=0.3),
    "outputs": Family(1, (html("download"),), many_outputs, v1_share=0.0),
    "lost-ids": Family(2, (get_status("poll"),), lost_ids, v1_share=0.2),
    "lists": Family(1, (), lists),
    "uploads": Family(1, tuple(make("upload") for make in (get_status, get_junk, html, wire)), uploads),
    "old": Family(1, (*_CDN, post_lost, get_status("poll")), old),
    "damaged": Family(1, (html("download"),), damaged),
    "reopened": Family(2, (), reopened, v1_share=0.0),
    "beside": Family(2, (post_lost, get_status("poll"), post_5xx), beside),
    "capped": Family(1, (), capped, v1_share=0.3),
    "late-urls": Family(1, (), late_urls, v1_share=0.2),
    "parked": Family(1, (), parked, v1_share=0.6),
    "failing": Family(3, (post_5xx, post_5xx, post_4xx), failing, v1_share=0.0),
}


def troubles_of(family: str, scenario: Scenario, rng: Random) -> tuple[Trouble, ...]:
    """One to three troubles of a family."""
    makers = FAMILIES[family].makers
    if not makers:
        return ()
    return tuple(rng.choice(makers)(scenario, rng) for _ in range(rng.choice((1, 1, 2, 3))))
