"""One row on a service that answers as a script says, and the next run on one that is honest again."""

import asyncio
import io
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
from pyarrow import acero

from prefect_imagegen.core.ledger.events import RANK
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.store.heartbeat import Process

from ..world.api import Plan, Service, Traits
from ..world.images import png
from ..world.loop import MachineClock, Time, VirtualLoop, run_on, simulated_clocks
from ..world.seller import MODEL
from ..world.session import Ended, Options, Order, execute, segmind_settings
from ..world.store import Objects, RunStore
from ..world.wire import Network, Reply, Request, plugged_into
from ..world.world import NETWORK

KEY, ACCOUNT = "SG_the_key_of_this_store", "account"
CAP_USD = 1000.0
LAG_S = 7200.0
COST_USD = 0.04
"""The cost of every job of the service, in US dollars."""
REQUEST = GenerationRequest(
    MODEL,
    {"prompt": "a chair", "negative_prompt": "", "seed": 7, "cfg": 5, "steps": 20, "sampler": "euler"}
    | {"aspect_ratio": "1:1", "go_fast": True, "image_format": "png", "quality": 90},
)
NO_CONNECTION = "no connection"

Spoil = Callable[[Reply], Reply]
Answer = Reply | Spoil | str
"""An answer of a script: raw, and the service never hears of the request; or made of the honest one, which the service
has given; or `NO_CONNECTION`."""
Script = Mapping[str, "Answer | Sequence[Answer]"]
"""Answers by the kind of endpoint: a list is used up, one after the other; a single answer comes each time. All others
are honest."""


@dataclass(frozen=True, slots=True)
class Play:
    """How the first run goes. `shown`: the history shows the calls; `lag`: --history-lag in seconds."""

    script: Script = field(default_factory=dict)
    v1: bool = False
    shown: bool = False
    lag: float = LAG_S
    outputs: int = 1
    fates: tuple[str | None, ...] = ()
    """The errors of the first jobs, in order; None for a job that succeeds."""
    others: int = 0
    """Calls of the account that are not ours."""
    earlier: Script | None = None
    """The script of a run nine days before, which left the row open; the first run goes on with it then."""


class ScriptedService:
    """Answers as the script of a play says, and honestly where it says nothing."""

    def __init__(self, play: Play, true: Time) -> None:
        self.asked: list[str] = []
        """Kinds of endpoints, of the present run; refused connections for a POST count as one."""
        self.hears: Callable[[str], None] = lambda _: None
        """Called with the kind of each request that is answered."""
        self.service = Service(
            true, Traits(outputs=play.outputs, body_form="object"), {KEY: ACCOUNT}, self._fate, play.v1
        )
        for number in range(play.others):
            self.service.add_foreign(ACCOUNT, {"prompt": f"another {number}", "seed": 5}, true.now, MODEL, 1.0)
        self._play = play
        self._is_honest = False
        self.follow(play.script if play.earlier is None else play.earlier)

    def follow(self, script: Script) -> None:
        """Answer by a script from now on."""
        self.asked.clear()
        self._lists = {kind: list(answers) for kind, answers in script.items() if isinstance(answers, list | tuple)}
        self._ever = {kind: answers for kind, answers in script.items() if kind not in self._lists}
        self._struck: set[str] = set()

    def be_honest(self, *, taken: bool) -> None:
        """Drop the script and show all calls in the history. `taken`: whether any call was taken on at all."""
        self.asked.clear()
        self._is_honest = True
        if not taken:
            self.service.jobs.clear()
        for job in self.service.jobs.values():
            job.lag = 0.0

    @property
    def posts(self) -> int:
        return self.asked.count("submit")

    @property
    def unused(self) -> list[str]:
        """Kinds for which the script has answers that were never given."""
        return [kind for kind, left in self._lists.items() if left] + sorted(self._ever.keys() - self._struck)

    def serve(self, request: Request, number: int) -> Reply:
        kind = self.service.kind_of(request)
        self.asked.append(kind)
        self.hears(kind)
        answer = self._next(kind)
        if isinstance(answer, Reply):
            return answer
        reply = self.service.answer(request, number)
        if kind == "balance":
            reply.end = "close"  # the first POST needs a connection of its own
        return reply if answer is None else answer(reply)

    def connecting(self, method: str, host: str, path: str) -> str | None:
        kind = self.service.kind_of(Request(method, host, path, {}, {"x-api-key": KEY}, b"", 0.0))
        waiting = self._lists.get(kind) if not self._is_honest else None
        if not waiting or waiting[0] != NO_CONNECTION:
            return None
        waiting.pop(0)
        self.asked.append(kind)
        return "refused"

    def _next(self, kind: str) -> Any:
        if self._is_honest:
            return None
        if kind in self._lists:
            return self._lists[kind].pop(0) if self._lists[kind] else None
        self._struck.add(kind)
        return self._ever.get(kind)

    def _fate(self, _: Request) -> Plan:
        mine = sum(not job.foreign for job in self.service.jobs.values())
        fails = self._play.fates[mine] if mine < len(self._play.fates) else None
        lag = 0.0 if self._play.shown or self._is_honest else float("inf")
        return Plan(fails_with=fails, lag=lag)


@dataclass(slots=True)
class Observation:
    """What a run did about the row. `asked` are the kinds of its requests, in order."""

    result: RequestResult
    budget: Budget
    asked: list[str]
    stop: str | None
    """Why the run stopped."""

    @property
    def posts(self) -> int:
        return self.asked.count("submit")


class OneRow:
    """A store, a service and the runs of one row."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.true = Time()
        self.objects = Objects(self.true)
        self.service = ScriptedService(play, self.true)
        self._runs = 0

    def first_run(self) -> Observation:
        """The run in which the service answers as the script says."""
        options, budget = Options(v1=self.play.v1, history_lag=self.play.lag), Budget(CAP_USD)
        if self.play.earlier is not None:
            before = self._run(options, Budget(CAP_USD)).budget
            # Both runs are of one order: the later one begins with what the call may have cost.
            budget.carry(before.spent, {f"{REQUEST.key.hex()}-1": before.reserved})
            self.true.now += 9 * 86400.0
            self.service.follow(self.play.script)
        observation = self._run(options, budget)
        assert not self.service.unused, f"the scenario never came to {self.service.unused}"
        return observation

    def next_run(self, *, taken: bool = True) -> Observation:
        """A run a minute later, on a service that is honest. `taken`: whether it had taken any call on."""
        self.true.now += 60.0
        self.service.be_honest(taken=taken)
        return self._run(Options(v1=self.play.v1, history_lag=LAG_S), Budget(CAP_USD))

    def events(self) -> dict[int, str]:
        """The last event of each attempt, by attempt number: its type and error kind."""
        rows_by_attempt: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for path, (data, _, _) in self.objects.contents.items():
            if path.startswith("ledger/segments/"):
                for row in pq.read_table(io.BytesIO(data)).to_pylist():
                    rows_by_attempt[int(row["attempt_id"].rsplit("-", 1)[1])].append(row)
        last = {n: max(rows, key=lambda row: RANK[row["type"]]) for n, rows in rows_by_attempt.items()}
        return {n: " ".join(filter(None, (row["type"], row["error_kind"]))) for n, row in last.items()}

    @property
    def lost_outputs(self) -> set[str]:
        """Outputs of finished jobs of ours that are not in the store."""
        stored = {data for path, (data, _, _) in self.objects.contents.items() if path.startswith("images/")}
        jobs = [job for job in self.service.service.jobs.values() if not job.foreign and job.fails_with is None]
        return {path for job in jobs for path in job.outputs if png(path) not in stored}

    def _run(self, options: Options, budget: Budget) -> Observation:
        self._runs += 1
        loop = VirtualLoop(self.true)
        network = Network(self.service.serve, self.service.connecting, lambda _: None, _nothing, number=self._runs)
        clock, rng = MachineClock(self.true), Random(self._runs)
        # A process of this boot that later runs see as ended.
        process = Process(f"nonce{self._runs}", "this boot", os.getpid(), -self._runs)
        store = RunStore(self.objects, (), _nothing, rng, self._runs)
        settings = segmind_settings(options, KEY)
        order = Order(f"run-{self._runs}", [REQUEST], options, settings, process, store, clock, rng, budget=budget)
        asyncio.set_event_loop(loop)
        threads = patch.object(acero, "_group_by", partial(acero._group_by, use_threads=False))
        with simulated_clocks(), plugged_into(NETWORK.get), threads:
            task = loop.drive(_in_process(network, clock, order))
            faults = list(loop.faults)
            loop.bury()
        asyncio.set_event_loop(None)
        network.die()
        ended = task.result()
        assert not faults
        assert ended.refused is None
        return Observation(ended.results[REQUEST.key], budget, list(self.service.asked), ended.stop_reason)


async def _in_process(network: Network, clock: MachineClock, order: Order) -> Ended:
    NETWORK.set(network)
    run_on(clock)
    return await execute(order)


def _nothing(_: str, __: int) -> None:
    """Ignore an event: these runs are not killed."""
