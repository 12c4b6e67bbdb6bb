"""Situations: what a family changes of a scenario besides the troubles of its answers."""

from dataclasses import replace
from random import Random

from ..world.store import StoreTrouble
from ..world.troubles import Trouble
from .makers import post_5xx, post_lost, rate
from .scenario import Scenario


def plain(scenario: Scenario, rng: Random) -> Scenario:
    return scenario


def lost_answers(scenario: Scenario, rng: Random) -> Scenario:
    """Some POST gets no answer, so that the history has to show what became of it."""
    partial = tuple(name for name in ("body", "url", "time", "model", "id", "status") if rng.random() < 0.25)
    troubles = (post_lost(scenario, rng), *scenario.troubles)
    runs = scenario.runs
    if rng.random() < 0.7:
        # Absence is proven after the lag only: a run then, while the service still misbehaves.
        runs = (*runs[:1], replace(runs[-1], pause=scenario.options.history_lag + 200.0, kill_at=None, stop_at=None))
    return replace(scenario, troubles=troubles, partial=partial, runs=runs)


def clocks(scenario: Scenario, rng: Random) -> Scenario:
    scenario = lost_answers(scenario, rng)
    hours = 3600.0 * rng.choice((-30, -5, -3, 3, 5, 26))
    traits = scenario.traits if rng.random() < 0.6 else replace(scenario.traits, skew=3600.0 * rng.choice((-6, 2, 9)))
    runs = tuple(replace(run, clock=hours if rng.random() < 0.7 else 0.0) for run in scenario.runs)
    return replace(scenario, runs=runs, traits=traits)


def accounts(scenario: Scenario, rng: Random) -> Scenario:
    """A run is killed, and the next one has a key of another account, or another key of the same one."""
    (first, _), (second, _), (rotated, _) = scenario.keys
    key = rng.choice((second, second, rotated))
    moment = rng.choice(((".id.json", rng.randint(1, 3)), ("after POST", rng.randint(1, 3)), ("status", 2)))
    start = replace(scenario.runs[0], kill_at=moment, stop_at=None)
    following = replace(scenario.runs[-1], key=key, pause=rng.choice((100.0, scenario.options.history_lag + 200.0)))
    following = replace(following, kill_at=rng.choice((None, None, ("", 25))), stop_at=None)
    if rng.random() < 0.3:
        start, following = (replace(run, clock=3600.0 * rng.choice((-5, 0, 3))) for run in (start, following))
    last = replace(scenario.last_run, key=rng.choice((first, first, rotated)))
    traits = replace(scenario.traits, open_records=rng.random() < 0.3)
    return replace(scenario, runs=(replace(start, key=first), following), last_run=last, traits=traits)


def store(scenario: Scenario, rng: Random) -> Scenario:
    """The store hiccups, or its lists lag."""

    def trouble() -> StoreTrouble:
        op, part = rng.choice(
            (
                ("create", ".id.json"),
                ("create", ".id.json"),
                ("create", "claims/"),
                ("create", "images/"),
                ("create", "segments/"),
                ("put", "heartbeat"),
                ("head", ""),
                ("get", ""),
                ("list", ""),
                ("any", ""),
            )
        )
        return StoreTrouble(op, part, rng.choice((0, 0, 1, 3)), rng.choice((1, 2, 4)), rng.random() < 0.3)

    runs = tuple(
        replace(run, store_troubles=tuple(trouble() for _ in range(rng.choice((1, 1, 2))))) for run in scenario.runs
    )
    return replace(scenario, runs=runs, list_lag=rng.choice((0.0, 0.0, 0.0, 1.0, 20.0)))


def slow(scenario: Scenario, rng: Random) -> Scenario:
    """Many fast answers lower the run's latency estimate; then answers come slowly."""
    skip = rng.choice((21, 22))
    slow = Trouble("submit", "slow", rng.choice((7.0, 12.0, 40.0)), skip=skip)
    run = replace(scenario.runs[0], kill_at=None, stop_at=None)
    options = replace(scenario.options, in_flight=4, deadline=200.0)
    return replace(scenario, rows=skip + 3, runs=(run,), troubles=(slow,), options=options, latency=(0.2, 0.6))


def many_outputs(scenario: Scenario, rng: Random) -> Scenario:
    shape = rng.choice(("full", "images", "nested", "list"))
    return replace(scenario, traits=replace(scenario.traits, outputs=rng.choice((2, 3)), result_shape=shape))


def failing(scenario: Scenario, rng: Random) -> Scenario:
    """Rows that fail for good, after attempts that do not, with kills: a closed attempt must stay closed."""
    failing = frozenset(row for row in range(scenario.rows) if rng.random() < 0.5)
    options = replace(scenario.options, max_attempts=5)
    scenario = replace(scenario, fail_share=rng.choice((0.3, 0.8)), options=options, failing=failing)
    moments = (None, ("", int(rng.triangular(10, 120, 30))), ("after POST", rng.randint(2, 4)))
    runs = tuple(replace(run, kill_at=rng.choice(moments), stop_at=None) for run in scenario.runs)
    return replace(scenario, runs=(*runs, replace(runs[-1], kill_at=None, pause=300.0)))


def reopened(scenario: Scenario, rng: Random) -> Scenario:
    """The end of an attempt is lost in a crash, and the next attempt fails for good."""
    slow = Trouble("submit", "slow", rng.choice((16.0, 20.0)), times=1)
    refused = post_5xx(scenario, rng) if rng.random() < 0.5 else rate(scenario, rng)
    refused = replace(refused, times=1, skip=0, accepts=False, where="submit")
    run = replace(scenario.runs[0], kill_at=("after POST", rng.choice((2, 2, 3))), stop_at=None)
    runs = (run, *(replace(run, kill_at=None, pause=rng.choice((100.0, 300.0))) for _ in range(2)))
    failing = frozenset(range(0, scenario.rows, 2))
    return replace(
        scenario, runs=runs, troubles=(slow, refused, *scenario.troubles), failing=failing, latency=(0.3, 2.0)
    )


def beside(scenario: Scenario, rng: Random) -> Scenario:
    """Two runs of the same rows at once, some of which fail for good."""
    scenario = replace(scenario, failing=frozenset(row for row in range(scenario.rows) if rng.random() < 0.5))
    if rng.random() < 0.4:
        runs = tuple(replace(run, beside=True, stop_at=None) for run in scenario.runs[:2])
        return replace(scenario, runs=runs)
    if rng.random() < 0.3:
        return ending(scenario, rng)
    # The second one begins amid the first: just when something is written that it reads, say.
    event = rng.choice(("after GET", "after GET", "answered", "before create", "after create", "POST"))
    at = rng.choice(((event, int(rng.triangular(1, 20, 4))), ("/status", 2 * rng.randint(1, 6))))
    hiccups = tuple(StoreTrouble("list", "ledger/segments", n) for n in (0, 1) if rng.random() < 0.4)
    run = replace(scenario.runs[0], beside_at=at, stop_at=None, kill_at=None, store_troubles=hiccups)
    runs = (run, *scenario.runs[1:2])
    return replace(scenario, runs=runs)


def ending(scenario: Scenario, rng: Random) -> Scenario:
    """A run reads the ledger, slowly, just when another one writes the last of it and ends."""
    run = replace(scenario.runs[0], beside_at=("/status", 2 * rng.randint(1, 3)), stop_at=None, kill_at=None)
    run = replace(run, store_troubles=(StoreTrouble("list", "ledger/segments", 1),))
    options = replace(scenario.options, v1=False)
    calm = replace(scenario, troubles=(), failing=frozenset(), fail_share=0.0, rows=1, options=options)
    return replace(calm, runs=(run,), latency=(0.3, 0.9))


def lost_ids(scenario: Scenario, rng: Random) -> Scenario:
    """The store does not take a request_id, while it takes all else; and then the process dies, or not."""
    times = rng.choice((1, 4, 5, 9))
    trouble = StoreTrouble("create", ".id.json", rng.choice((0, 0, 1)), times, rng.random() < 0.2)
    moment = ("after create ledger/segments", 1) if rng.random() < 0.7 else None
    run = replace(scenario.runs[0], store_troubles=(trouble,), kill_at=moment, stop_at=None)
    after = replace(run, store_troubles=(), kill_at=None, pause=scenario.options.history_lag + 200.0)
    return replace(scenario, runs=(run, after), latency=rng.choice(((0.3, 2.0), (16.0, 20.0))))


def lists(scenario: Scenario, rng: Random) -> Scenario:
    """A run dies and the next one comes at once, on a store whose lists lag, or show nothing at all below claims."""
    run = replace(scenario.runs[0], kill_at=("after create ledger/claims", rng.randint(1, 2)), stop_at=None)
    after = replace(run, kill_at=None, pause=1.0, machine="here")
    return replace(scenario, runs=(run, after), list_lag=rng.choice((3.0, 20.0)), blind=rng.random() < 0.4)


def capped(scenario: Scenario, rng: Random) -> Scenario:
    """A run may spend so much and no more, and the answers name a cost, or none."""
    enough = rng.random() < 0.5
    run = replace(scenario.runs[0], cap=50.0 if enough else rng.uniform(0.03, 0.5), kill_at=None, stop_at=None)
    options = replace(scenario.options, in_flight=4, deadline=600.0)
    traits = replace(scenario.traits, costs=rng.random() < 0.3)
    latency = (5.0, 20.0) if enough else scenario.latency
    return replace(
        scenario, rows=14 if enough else 8, runs=(run,), options=options, traits=traits, latency=latency, fail_share=0.0
    )


def late_urls(scenario: Scenario, rng: Random) -> Scenario:
    """A run dies; when the next one comes the record has expired, and the history has the row without its address."""
    run = replace(scenario.runs[0], kill_at=rng.choice((("after POST", 1), (".id.json", 2))), stop_at=None)
    after = replace(run, kill_at=None, pause=rng.uniform(3650.0, 5000.0))
    options = replace(scenario.options, history_lag=7200.0)
    partial = ("url", *rng.choice(((), (), ("status",), ("body",))))
    last_pause = max(scenario.last_pause, 7400.0)
    return replace(
        scenario, runs=(run, after), options=options, partial=partial, most_lag=6500.0, last_pause=last_pause
    )


def parked(scenario: Scenario, rng: Random) -> Scenario:
    """Answers take so long that they are awaited without a slot, and SIGTERM comes while image bytes are in memory."""
    at = rng.choice((("before create images", rng.randint(1, 3)), ("answered", rng.randint(2, 12))))
    hiccup = StoreTrouble("create", "images/", rng.choice((0, 0, 1)), rng.choice((1, 1, 2)))
    run = replace(scenario.runs[0], kill_at=None, stop_at=at, store_troubles=(hiccup,) if rng.random() < 0.7 else ())
    options = replace(scenario.options, deadline=rng.choice((200.0, 600.0)), drain_seconds=20.0)
    return replace(scenario, runs=(run,), options=options, latency=(61.0, 90.0))


def uploads(scenario: Scenario, rng: Random) -> Scenario:
    return replace(scenario, with_reference=frozenset(range(scenario.rows)))


def old(scenario: Scenario, rng: Random) -> Scenario:
    """The last run comes when the files are gone."""
    return replace(scenario, last_pause=86400.0 * rng.choice((6.0, 8.5, 9.0, 40.0)))


def damaged(scenario: Scenario, rng: Random) -> Scenario:
    """A crash leaves an image that no ledger knows, and it is damaged before the next run."""
    run = replace(scenario.runs[0], kill_at=("after create images", rng.choice((1, 2))), stop_at=None)
    after = replace(run, kill_at=None, pause=100.0, damage=True)
    return replace(scenario, runs=(run, after))
