"""Plays one scenario: runs that may be killed on a service that misbehaves, then a last run in good times."""

import asyncio
import os
from collections import Counter
from collections.abc import Coroutine
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from prefect_imagegen.core import layout
from prefect_imagegen.core.request.request import GenerationRequest, Reference
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.store.heartbeat import Process

from ..played import Played, inner, short
from ..scenarios.scenario import At, RunPlan, Scenario
from .api import Plan
from .loop import DeadlockError, LivelockError, MachineClock, Time, VirtualLoop, run_on
from .resending import give_free
from .seller import SEGMIND, Seller
from .session import Ended, Order, execute
from .store import Objects, RunStore
from .troubles import Troubles, rewrite, spoil
from .wire import Network, Reply, Request

NETWORK: ContextVar[Network] = ContextVar("network")
"""The network of the process that is running now."""
MOST_LISTINGS = 300
"""A run of a few rows that asks for more pages of the history than this goes round in circles."""
_HERE = "this machine"
_TAKEN = ("NSFW content detected", "the sampler is wrong")


class World:
    """The service, the store and the runs of one scenario, at one seller."""

    def __init__(self, scenario: Scenario, seller: Seller = SEGMIND) -> None:
        self.scenario = scenario
        self.seller = seller
        self.true = Time()
        self.log: list[str] = []
        self.runs: list[Played] = []
        self.requests = [_request(scenario, seller, row) for row in range(scenario.rows)]
        self.objects = Objects(self.true, scenario.store_clock, scenario.list_lag, scenario.blind)
        self.rng = Random(scenario.seed * 7919 + 1)
        self.service = seller.serve(self.true, scenario, self._fate)
        self.unsafe_polls: list[str] = []
        self.unclaimed_posts: list[str] = []
        """POSTs that arrived before the store had a claim of their own."""
        self.strangers: list[str] = []
        """Requests that showed a key to a host that is not the seller's."""
        self.damaged: set[str] = set()
        self.freed: list[tuple[bytes, float]] = []
        """The rows that a person gave free to be sent again, and when."""
        self._troubles = Troubles(list(scenario.troubles), self.rng)
        self._refusing = False
        self._ticks: Counter[str] = Counter()
        self._loop: VirtualLoop | None = None
        self._going: list[tuple[Played, asyncio.Task[Ended]]] = []
        self._good_times = False

    def play(self) -> "World":
        """Play all runs; their ends are in `runs`, the truth in `service` and `objects`."""
        self._foreign_calls()
        for plan in self.scenario.runs:
            self._run(plan)
        self._good_times = True
        self.objects.list_lag, self.objects.blind = 0.0, False
        self._run(replace(self.scenario.last_run, pause=self.scenario.last_pause))
        return self

    def note(self, text: str) -> None:
        """One line of the trace."""
        self.log.append(f"{self.true.now:10.3f}  {text}")

    def _run(self, plan: RunPlan) -> None:
        """One run to its end or its death; with another one beside it where that is planned."""
        self.true.now += plan.pause
        if plan.damage:
            self._damage()
        if plan.resend and self.runs:
            self._give_free(self.runs[-1])
        self._ticks.clear()
        self._going = going = []
        self._loop = loop = VirtualLoop(self.true)
        asyncio.set_event_loop(loop)
        self._begin(plan, loop)
        if plan.beside:
            self._begin(replace(plan, machine="another machine"), loop)
        try:
            loop.drive(_until_all_have_ended(going))
        except (DeadlockError, LivelockError) as error:
            going[0][0].broke.append(f"broke: {error!r}")
            loop.halted = True
        for played, task in going:
            self._end(played, task, loop)
        loop.bury()
        asyncio.set_event_loop(None)

    def _begin(self, plan: RunPlan, loop: VirtualLoop) -> None:
        number = len(self.runs) + 1
        network = Network(self._serve, self._connecting, self._abandoned, self._tick, number=number)
        store = RunStore(self.objects, plan.store_troubles, self._tick, self.rng, number)
        played = Played(number, plan, network, store, self.true.now, self.true.now)
        self.runs.append(played)
        self.note(f"RUN {number} begins: key {plan.key[-4:]}, machine clock {plan.clock:+.0f} s, {plan.describe()}")
        # A process of this boot that later runs see as ended, or one of another machine.
        process = Process(f"nonce{number}", _HERE if plan.machine == "here" else plan.machine, os.getpid(), -number)
        clock = MachineClock(self.true, plan.clock)
        options = self.scenario.options
        settings = self.seller.settings(options, plan.key)
        order = Order(f"run-{number}", self.requests, options, settings, process, store, clock, self.rng)
        order.cap = plan.cap
        order.opened = partial(self._opened, played)
        task = loop.create_task(_in_process(network, clock, execute(order)))
        task.add_done_callback(lambda _: setattr(played, "over", self.true.now))
        self._going.append((played, task))

    def _opened(self, played: Played, control: RunControl) -> None:
        played.control, played.moved = control, self.true.now

    def _end(self, played: Played, task: "asyncio.Task[Ended]", loop: VirtualLoop) -> None:
        if loop.halted:
            played.over = self.true.now
            self.note(f"RUN {played.number} is killed")
        elif (error := task.exception()) is not None:
            played.broke.append(f"broke: the run raised {error!r}{inner(error)}")
        else:
            played.ended = ended = task.result()
            left = [leftover for leftover in asyncio.all_tasks(loop) if not leftover.done()]
            names = [leftover.get_coro().__qualname__ for leftover in left]
            played.broke += [f"left-behind: run {played.number} left {name}" for name in names]
            played.broke += [f"broke: the loop was told: {fault}" for fault in loop.faults]
            stop = f", stopped: {ended.stop_reason} ({ended.stop_message})" if ended.stop_reason else ""
            self.note(f"RUN {played.number} ends{stop} {ended.refused or ''}")
            for request in self.requests:
                self.note(f"    {request.prompt}: {short(ended.results.get(request.key))}")
        played.store.dead = True
        played.network.die()

    def _tick(self, event: str, number: int) -> None:
        """Handle an event of a run: kill or stop it, or begin another run beside it, where the plan says so."""
        played = self.runs[number - 1]
        if event.startswith(("after create images", "after create ledger/claims")):
            played.moved = self.true.now
        if event.startswith(("after create", "after put")) and "heartbeat" not in event:
            self.note(f"store: {event}")
        plan = played.plan
        if plan.beside_at and self._loop is not None and self._is_now(plan.beside_at, event, "beside"):
            self._begin(
                replace(plan, machine="another machine", beside_at=None, kill_at=None, stop_at=None), self._loop
            )
        if event == "hammering":
            played.broke.append(f"hammering: run {number} asks the store over and over")
            self._kill()
        elif self._is_now(plan.kill_at, event):
            self.note(f"kill -9 {event}")
            self._kill()
        elif self._is_now(plan.stop_at, event) and played.control is not None:
            self.note(f"SIGTERM {event}")
            played.stopped_at = self.true.now
            played.control.interrupt("signal", "SIGTERM was received")

    def _kill(self) -> None:
        for played in self.runs:
            played.store.dead = played.network.dead = True
        if self._loop is not None:
            self._loop.halt()

    def _is_now(self, at: At | None, event: str, why: str = "") -> bool:
        if at is None or at[0] not in event:
            return False
        self._ticks[why + at[0]] += 1
        return self._ticks[why + at[0]] == at[1]

    def _serve(self, request: Request, number: int) -> Reply:
        kind, played = self.service.kind_of(request), self.runs[number - 1]
        striking = [] if self._good_times else self._troubles.strike(kind, request)
        for trouble in striking:
            rewrite(trouble, request)
        self._refusing = not all(trouble.accepts for trouble in striking)
        if kind in ("status", "result"):
            self._check_poll(self.service.polled_id(request), played)
        self._check_key(request)
        reply = self.service.answer(request, number)
        for trouble in striking:
            reply = spoil(trouble, reply, request, self.rng)
        if kind == "submit":
            self._check_claim()
            self._note_call(reply, played)
        if kind == "history":
            played.listings += 1
            if played.listings == MOST_LISTINGS:
                played.broke.append(f"hammering: run {number} asks the history over and over")
                self._kill()
        query = f"?page={request.query['page']}" if "page" in request.query else ""
        end = "hangs" if reply.hang else "no answer" if reply.silent else f"{reply.status} {reply.body[:160]!r}"
        by = "" if number == 1 else f" (run {number})"
        self.note(f"{request.method} {request.path}{query}{by} -> {end} {reply.note and '<< ' + reply.note}")
        return reply

    def _check_poll(self, request_id: str, played: Played) -> None:
        if request_id not in played.asked:
            played.asked.add(request_id)
            played.moved = max(played.moved, self.true.now)
        if request_id not in self.objects.request_ids and not played.plan.store_troubles:
            self.unsafe_polls.append(request_id)

    def _check_key(self, request: Request) -> None:
        shown = f"{request.path} {request.query} {request.headers}".encode() + request.body
        if request.host not in self.service.own_hosts and any(key.encode() in shown for key, _ in self.scenario.keys):
            self.strangers.append(f"{request.method} {request.host}{request.path}")

    def _check_claim(self) -> None:
        """Check that the call that has just arrived has a claim, which no earlier call of its row had."""
        prompt = self.service.calls[-1].prompt
        key = next(request.key.hex() for request in self.requests if request.prompt == prompt)
        paths = [path for path in self.objects.contents if path.startswith(layout.claims_of(key))]
        claims = [path for path in paths if not path.endswith(".id.json")]
        if len(claims) < sum(call.prompt == prompt for call in self.service.calls):
            self.unclaimed_posts.append(prompt)

    def _note_call(self, reply: Reply, played: Played) -> None:
        call = self.service.calls[-1]
        call.status = reply.status
        call.answer = "none" if reply.hang or reply.silent else f"{reply.status // 100}xx"
        plain = not reply.after and "encoding(" not in reply.note
        call.whole = plain and reply.cut is None and isinstance(reply.length, str)
        if call.answer != "none":
            played.moved = max(played.moved, self.true.now + reply.delay)

    def _abandoned(self, request: Request) -> None:
        if request.method == "POST" and request.host == self.service.api:
            for call in self.service.calls:
                if call.at == request.at and call.prompt.encode() in request.body and call.abandoned_at is None:
                    call.abandoned_at = self.runs[call.run - 1].moved = self.true.now
            self.note(f"the client lets go of {request.method} {request.path} after {self.true.now - request.at:.1f} s")

    def _connecting(self, method: str, host: str, path: str) -> str | None:
        kind = self.service.kind_at(method, host)
        trouble = None if self._good_times else self._troubles.connecting(kind, self.true.now)
        if trouble:
            self.note(f"connect {host} for {kind}: {trouble}")
        return trouble

    def _fate(self, request: Request) -> Plan:
        """Draw what becomes of a POST that has arrived."""
        scenario, rng = self.scenario, self.rng
        fails = None
        for row in scenario.failing:
            # The same body fails each time.
            if self.requests[row].prompt.encode() in request.body:
                fails = _TAKEN[row % 2]
        if self._good_times:
            return Plan(fails_with=fails)
        if rng.random() < scenario.fail_share:
            fails = fails or "CUDA out of memory, try again"
        low, high = scenario.latency
        lag = rng.uniform(0.0, scenario.most_lag)
        partial = {name: rng.uniform(0.0, max(0.0, scenario.most_lag - lag)) for name in scenario.partial}
        return Plan(not self._refusing, rng.uniform(low, high), fails, lag, partial)

    def _foreign_calls(self) -> None:
        """Calls of other stores on the same account, which the history shows too."""
        for at, row in self.scenario.foreign:
            body = {"prompt": f"somebody else's picture {at:.0f}", "seed": 5, "image_urls": []}
            if row is not None:
                body = self.requests[row].body(())
            self.service.add_foreign(self.scenario.keys[0][1], body, at, self.seller.model, 1.5)

    def _give_free(self, run: Played) -> None:
        """`resend` of the rows that a run held for want of a history."""
        loop = VirtualLoop(self.true)
        asyncio.set_event_loop(loop)
        store = RunStore(self.objects, (), lambda _, __: None, self.rng, run.number)
        keys = loop.drive(give_free(store, MachineClock(self.true), run, self.requests)).result()
        self.freed += [(key, self.true.now) for key in keys]
        self.note(f"resend gives {len(keys)} rows of run {run.number} free")
        loop.bury()
        asyncio.set_event_loop(None)

    def _damage(self) -> None:
        """An image in the store loses its end."""
        for path in sorted(self.objects.contents):
            if path.startswith("images/") and path not in self.damaged:
                data, first, last = self.objects.contents[path]
                self.objects.contents[path] = (data[:-20], first, last)
                self.damaged.add(path)
                self.note(f"{path} is damaged")
                return


async def _until_all_have_ended(going: "list[tuple[Played, asyncio.Task[Ended]]]") -> None:
    """Wait for runs; others may begin meanwhile."""
    while waiting := [task for _, task in going if not task.done()]:
        await asyncio.wait(waiting)


async def _in_process(network: Network, clock: MachineClock, run: Coroutine[Any, Any, Ended]) -> Ended:
    """A run, in a process of its own on a machine of its own."""
    NETWORK.set(network)
    run_on(clock)
    return await run


def _request(scenario: Scenario, seller: Seller, row: int) -> GenerationRequest:
    params = {"prompt": f"row {row} of {scenario.seed}", "negative_prompt": "", "seed": 7 + row, "cfg": 5, "steps": 20}
    params |= {"sampler": "euler", "aspect_ratio": "1:1", "go_fast": True, "image_format": "png", "quality": 90}
    references = (Reference("url", "https://example.com/a.png", "https://example.com/a.png"),)
    used = references if row in scenario.with_reference else ()
    return GenerationRequest(seller.model, params, used, provider=seller.key_scope)
