"""Plays many scenarios, on several cores, and reports their findings."""

import argparse
import logging
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

from pyarrow import acero

from prefect_imagegen.core.ledger import accounts
from prefect_imagegen.core.policy import backoff as retry
from prefect_imagegen.providers.segmind import history as segmind_history

from .judge import judge
from .scenarios.generator import draw
from .scenarios.scenario import Scenario
from .shrink import shrink
from .transitions import watched
from .world.loop import simulated_clocks
from .world.seller import SEGMIND, Seller
from .world.wire import plugged_into
from .world.world import NETWORK, World


@dataclass(frozen=True, slots=True)
class Failure:
    """What one seed found."""

    seed: int
    family: str
    findings: tuple[str, ...]


def play(scenario: Scenario, seller: Seller = SEGMIND) -> World:
    """Play a scenario at a seller."""
    # Rarer polls are the same polls, and most of what a scenario costs.
    pace = patch.multiple(retry, _MIN_POLL_S=0.4, _POLL_SHARE=0.15)
    # And pages of a few rows are walked as pages of a hundred are.
    pages = patch.object(segmind_history, "PAGE_SIZE", 4)
    # A fingerprint is slow on purpose.
    cost = patch.object(accounts, "_COST", 2)
    # Many threads for three rows cost more than the rows.
    threads = patch.object(acero, "_group_by", partial(acero._group_by, use_threads=False))
    with simulated_clocks(), plugged_into(NETWORK.get), pace, pages, cost, threads, _silence():
        random.seed(scenario.seed)
        return World(scenario, seller).play()


@dataclass(frozen=True, slots=True)
class Game:
    """What is played at one seller, and by which rules it is judged."""

    draw: Callable[[int], Scenario]
    play: Callable[[Scenario], World]
    judge: Callable[[World], list[str]]


AT_SEGMIND = Game(draw, play, judge)


@contextmanager
def _silence() -> Iterator[None]:
    """Within: nothing is logged, as thousands of worlds would log the same lines."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def play_seed(seed: int, game: Game = AT_SEGMIND) -> Failure | None:
    """Play the scenario of a seed; its failure, or None."""
    scenario = game.draw(seed)
    with watched() as watch:
        findings = game.judge(game.play(scenario))
    findings += [f"undrawn: {transition}" for transition in watch.undrawn]
    return Failure(seed, scenario.family, tuple(findings)) if findings else None


@contextmanager
def fresh_processes(cores: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that share nothing with this one: whoever calls may have threads, which do not live through a fork."""
    here = patch.object(sys, "path", [*sys.path, *map(str, Path(__file__).parents[1:3])])
    with here, ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        yield pool


def run(
    seeds: Iterable[int], cores: int = 1, tell: Callable[[Failure], None] = lambda _: None, game: Game = AT_SEGMIND
) -> list[Failure]:
    """Play the scenarios of many seeds and return the failures; `tell` is called with each one at once."""
    failures = []
    with fresh_processes(cores) as pool:
        for failure in pool.map(partial(play_seed, game=game), seeds, chunksize=10):
            if failure is not None:
                tell(failure)
                failures.append(failure)
    return failures


def rules(scenario: Scenario, game: Game = AT_SEGMIND) -> list[str]:
    """The rules that a scenario breaks."""
    return sorted({finding.split(":", 1)[0] for finding in game.judge(game.play(scenario))})


def reason(seed: int, rule: str | None = None, game: Game = AT_SEGMIND) -> Scenario:
    """The scenario of a seed without everything that its (first) finding does not need."""
    scenario = game.draw(seed)
    wanted = rule or rules(scenario, game)[0]
    return shrink(scenario, lambda smaller: wanted in rules(smaller, game))


def trace(scenario: Scenario, game: Game = AT_SEGMIND) -> str:
    """The log of a scenario and its findings, as text."""
    world = game.play(scenario)
    lines = [*world.scenario.describe(), "", *world.log, "", "findings:", *(game.judge(world) or ["none"])]
    return "\n".join(lines)


def summary(failures: Iterable[Failure]) -> str:
    """Findings by rule: how many, and the first seeds."""
    seeds: dict[str, list[int]] = defaultdict(list)
    for failure in failures:
        for rule in sorted({finding.split(":", 1)[0] for finding in failure.findings}):
            seeds[rule].append(failure.seed)
    return "\n".join(f"{rule:14} {len(failing):6}   {failing[:12]}" for rule, failing in sorted(seeds.items()))


def _tell(failure: Failure) -> None:
    print(failure.seed, failure.family, *failure.findings, sep="\n    ", flush=True)  # noqa: T201


def main(games: Mapping[str, Game], arguments: Sequence[str] | None = None) -> int:
    """The command line. `games`: what can be played, by the name of the seller."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seller", choices=games, default=next(iter(games)))
    parser.add_argument("--seed", type=int, help="play one scenario")
    parser.add_argument("--trace", action="store_true", help="tell how it went")
    parser.add_argument(
        "--shrink", metavar="RULE", nargs="?", const="", help="leave away what the finding does not need"
    )
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="tell every failure")
    options = parser.parse_args(arguments)
    game = games[options.seller]
    if options.seed is not None:
        scenario = game.draw(options.seed) if options.shrink is None else reason(options.seed, options.shrink, game)
        findings = [] if options.trace else game.judge(game.play(scenario))
        print(trace(scenario, game) if options.trace else "\n".join([*scenario.describe(), *findings]))  # noqa: T201
        return 0
    began = time.perf_counter()
    seeds = range(options.first, options.first + options.count)
    failures = run(seeds, options.cores, _tell if options.verbose else lambda _: None, game)
    seconds = time.perf_counter() - began
    print(summary(failures))  # noqa: T201
    families = Counter(failure.family for failure in failures)
    print(f"{len(failures)} of {options.count} failed in {seconds:.1f} s; {dict(families)}")  # noqa: T201
    return 1 if failures else 0
