"""One endpoint of a pool: what is out at it, what is known of it, and what a failure says of it."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.latency import WorkLatencies
from prefect_imagegen.core.request.profiles import Profile
from prefect_imagegen.ports import Dialect, Health

DEFAULT_LIMIT = 2
"""Calls at once for each worker: one that runs, and one at hand."""
IN_A_ROW = 3
"""So many failures, or calls without an answer, in a row are the worker's fault."""
_LEAST_PATIENCE_S = 30.0
_HEALTH_S = 10.0
_FIRST_REST_S, _LAST_REST_S = 15.0, 600.0
_OF_A_WORKER = {
    **dict.fromkeys(("unsent", "unknown", "unavailable", "submitted"), "worker_lost"),
    **dict.fromkeys(("server_error", "bad_output", "generation_error", "output_lost"), "worker_failed"),
    "rate_limited": "worker_busy",
}
"""What a failed call means when it costs nothing: no guess about money, only about the worker."""
REFUSALS = frozenset({"auth", "credits", "model_unavailable", "protocol", "sandbox_mismatch"})
"""The worker takes no call of ours: a wrong key, an unknown model, another service, or another kind of engine."""
FOR_GOOD = frozenset({"auth", "credits", "sandbox_mismatch"})
"""Refusals that no wait mends."""
ROW_REFUSALS = frozenset({"invalid_request", "content_policy"})
_WRONG_KEY = (401, 403)


class OverdueError(ProviderError):
    """A call was given up since its worker has had it for too long."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows from a failed call: what the executor decides about, and whether and why the worker is left out.

    `out`: `down` until it is healthy, `rest` for a while at least, `barred` for the rest of the run.
    """

    error: ProviderError
    out: Literal["", "down", "rest", "barred"] = ""
    why: str = ""

    @property
    def is_refusal(self) -> bool:
        """Whether the worker has not even taken the call, so that another one is asked as if it had not been."""
        return self.error.kind in REFUSALS


@dataclass(slots=True, eq=False)
class Endpoint:
    """The state of one endpoint. `given` is the limit that the user set; times are of the pool's monotonic clock."""

    dialect: Dialect
    given: int | None
    outstanding: int = 0
    failures: int = 0
    """500s and bad answers in a row."""
    unanswered: int = 0
    """Calls in a row that were given up, though the worker said that it is well."""
    rests: int = 0
    """How often in a row it was left out although its /health is fine."""
    delivered: int = 0
    up: bool = True
    barred: bool = False
    """It gets nothing more in this run."""
    refused: bool = False
    """It was left out since it refuses our calls."""
    on_trial: bool = False
    """It is back after a rest: one call tells how it is."""
    why_down: str = ""
    paused_until: float = 0.0
    turn: int = 0
    health: Health = field(default_factory=lambda: Health(True))
    work: WorkLatencies = field(default_factory=WorkLatencies)
    queue: Counter[str] = field(default_factory=Counter)
    """Calls out at it, by cost class."""
    given_up: Counter[str] = field(default_factory=Counter)
    """Calls that nobody waits for any more, and on which it may still work."""
    _key_is_tried: bool = False

    @property
    def name(self) -> str:
        """Its address."""
        return self.dialect.endpoint

    @property
    def limit(self) -> int:
        """Calls at once."""
        return 1 if self.on_trial else self.given or self.health.limit or DEFAULT_LIMIT

    @property
    def is_hopeless(self) -> bool:
        """Whether waiting for it is of no use: it has never worked in this run, and refuses our calls."""
        return self.barred or (self.refused and not self.delivered)

    def serves(self, model: str) -> bool:
        """Whether it draws for a model, as far as it tells."""
        return self.health.models is None or model in self.health.models

    def misfit(self, profile: Profile | None) -> str:
        """Why a worker that works is of no use to this run; empty if it is."""
        if profile is None or self.health.profile in (None, profile.name):
            return ""
        return f"runs the profile {self.health.profile}, not {profile.name}"

    async def look(self, profile: Profile | None) -> None:
        """Ask it for its health and, once, whether it takes our key: no call is lost to a key that is wrong."""
        self.health = await self._told()
        trouble = ""
        if self.health.ready and not self._key_is_tried:
            trouble = await self._try_key()
        misfit = self.misfit(profile)
        self.up, self.failures = self.health.ready and not misfit and not trouble, 0
        self.why_down = misfit or trouble or self.health.detail

    async def is_well(self) -> bool:
        """Whether it says that it is well."""
        return (await self._told()).ready

    async def _told(self) -> Health:
        try:
            return await asyncio.wait_for(self.dialect.health(), _HEALTH_S)
        except TimeoutError:
            return Health(False, f"/health gives no answer within {_HEALTH_S:.0f} s")

    async def _try_key(self) -> str:
        """Why it is of no use, by a call that draws nothing; empty if it is, or does not tell."""
        try:
            await self.dialect.check()
        except ProviderError as error:
            self.barred = error.kind == "auth" or error.status in _WRONG_KEY
            return error.message if self.barred or error.kind == "protocol" else ""
        self._key_is_tried = True
        self.health = await self._told()  # it may know of its models now
        return ""

    def patience(self, deadline: float) -> float:
        """How long the newest call may take, with what is at the worker before it."""
        queue = (self.queue + self.given_up).elements()
        return min(deadline, self.work.overdue(queue, at_least=_LEAST_PATIENCE_S, unmeasured=deadline))

    def has_delivered(self, cost_class: str, seconds: float) -> None:
        """A call came to its end as it should."""
        self.work.add(cost_class, seconds)
        self.delivered += 1
        self.failures = self.unanswered = self.rests = 0
        self.refused = self.on_trial = False
        self.given_up.clear()

    def rest(self) -> float:
        """Leave it out for a while, longer each time; the seconds."""
        self.rests += 1
        return min(_LAST_REST_S, _FIRST_REST_S * 2.0 ** min(self.rests - 1, 8))

    async def judged(self, error: ProviderError, cost_class: str, now: float) -> Judgement:
        """What a failed call means."""
        text = error.message if self.name in error.message else f"{self.name}: {error.message}"
        if error.kind in REFUSALS:
            out: Literal["barred", "rest"] = "barred" if error.kind in FOR_GOOD else "rest"
            return Judgement(error, out, error.message)
        kind = _OF_A_WORKER.get(error.kind)
        if kind is None:
            return Judgement(error)
        found = ProviderError(kind, text, status=error.status, retry_after=0.0)
        if isinstance(error, OverdueError):
            return await self._overdue(found, error, cost_class)
        if kind == "worker_busy" or (error.status == 503 and error.retry_after and await self.is_well()):
            self.paused_until = now + (error.retry_after or 1.0)
            found.kind = "worker_busy"
            return Judgement(found)
        if kind == "worker_lost":
            return Judgement(found, "down", error.message)
        self.failures += 1
        found.retry_after = None
        why = f"{self.failures} failures in a row, the last: {error.message}"
        return Judgement(found, "down" if self.failures >= IN_A_ROW else "", why)

    async def _overdue(self, found: ProviderError, error: OverdueError, cost_class: str) -> Judgement:
        """A call took too long: the worker is to blame if its health says so, or if no call is answered any more."""
        self.given_up[cost_class] += 1
        if not await self.is_well():
            self.given_up.clear()
            return Judgement(found, "down", error.message)
        self.unanswered += 1
        if self.unanswered < IN_A_ROW and not self.on_trial:
            return Judgement(found)
        self.given_up.clear()
        why = f"{self.unanswered} calls in a row were not answered, though /health is well; the last: {error.message}"
        return Judgement(found, "rest", why)


@dataclass(frozen=True, slots=True)
class Lease:
    """One call that an endpoint has taken, of what cost class, and since when."""

    endpoint: Endpoint
    since: float
    cost_class: str
