"""One endpoint of a pool: the calls in flight at it, its health, and what a failed call means for it."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.latency import WorkLatencies
from prefect_imagegen.core.request.profiles import Profile
from prefect_imagegen.ports import Health
from prefect_imagegen.providers.pool.dialects import Dialect

DEFAULT_LIMIT = 2
"""Calls at once for each worker: one that runs, and one that waits."""
IN_A_ROW = 3
"""A worker is left out after this many failures, or calls without an answer, in a row."""
_MIN_PATIENCE_S = 30.0
_HEALTH_S = 10.0
_MIN_REST_S, _MAX_REST_S = 15.0, 600.0
_WORKER_KINDS = {
    **dict.fromkeys(("unsent", "unknown", "unavailable", "submitted"), "worker_lost"),
    **dict.fromkeys(("server_error", "bad_output", "generation_error", "output_lost"), "worker_failed"),
    "rate_limited": "worker_busy",
}
"""The error kind of a failed call to a worker, by the kind that the same failure has at the paid API."""
REFUSALS = frozenset({"auth", "credits", "model_unavailable", "protocol", "sandbox_mismatch"})
"""Kinds by which a worker refuses all our calls: a wrong key, an unknown model, another service or engine."""
FOR_GOOD = frozenset({"auth", "credits", "sandbox_mismatch"})
"""Refusals that do not go away by waiting."""
ROW_REFUSALS = frozenset({"invalid_request", "content_policy"})
"""Kinds by which a worker refuses one row."""
_WRONG_KEY = (401, 403)


class OverdueError(ProviderError):
    """A call that was given up because its worker took too long."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a failed call means: the error for the executor, and whether and why (`why`) the worker is left out.

    `out` is empty where it is not left out, `down` until it is healthy, `rest` for a while at least, `barred` for the
    rest of the run.
    """

    error: ProviderError
    out: Literal["", "down", "rest", "barred"] = ""
    why: str = ""

    @property
    def is_refusal(self) -> bool:
        """Whether the worker did not accept the call, so that another one can be asked."""
        return self.error.kind in REFUSALS


@dataclass(slots=True, eq=False)
class Endpoint:
    """One endpoint of a pool and its state in this run.

    `user_limit` is the limit that the user set for calls at once; times are of the pool's monotonic clock.
    """

    dialect: Dialect
    user_limit: int | None
    outstanding: int = 0
    """Calls in flight."""
    failures: int = 0
    """Failed calls in a row (500s and bad answers)."""
    unanswered: int = 0
    """Calls in a row that were given up although /health was fine."""
    rests: int = 0
    """How often in a row it was left out although /health was fine."""
    delivered: int = 0
    """Images delivered in this run."""
    up: bool = True
    """Whether it gets calls."""
    barred: bool = False
    """Whether it is left out for the rest of the run."""
    refused: bool = False
    """Whether it was left out because it refuses our calls."""
    on_trial: bool = False
    """Whether it is back after a rest: it gets one call at a time until that succeeds."""
    why_down: str = ""
    paused_until: float = 0.0
    turn: int = 0
    """The pool's count of calls when it got its newest one: ties go to the lowest."""
    health: Health = field(default_factory=lambda: Health(True))
    work: WorkLatencies = field(default_factory=WorkLatencies)
    queue: Counter[str] = field(default_factory=Counter)
    """Calls in flight, by cost class."""
    given_up: Counter[str] = field(default_factory=Counter)
    """Calls that were given up and on which it may still work, by cost class."""
    _key_is_tried: bool = False

    @property
    def name(self) -> str:
        """Its base URL, without credentials."""
        return self.dialect.endpoint

    @property
    def limit(self) -> int:
        """Calls at once that it gets: the user's limit, else its own, else 2; one while on trial."""
        return 1 if self.on_trial else self.user_limit or self.health.limit or DEFAULT_LIMIT

    @property
    def is_hopeless(self) -> bool:
        """Whether waiting for it is useless: it is barred, or has refused our calls and never delivered."""
        return self.barred or (self.refused and not self.delivered)

    def serves(self, model: str) -> bool:
        """Whether it serves a model, as far as it reports its models."""
        return self.health.models is None or model in self.health.models

    def misfit(self, profile: Profile | None) -> str:
        """Why a healthy worker cannot serve this run (it runs another profile); empty if it can."""
        if profile is None or self.health.profile in (None, profile.name):
            return ""
        return f"runs the profile {self.health.profile}, not {profile.name}"

    async def look(self, profile: Profile | None) -> None:
        """Read its health and, once, try our key, so that no call is lost to a wrong one; sets `up` and `why_down`."""
        self.health = await self._read_health()
        trouble = ""
        if self.health.ready and not self._key_is_tried:
            trouble = await self._try_key()
        misfit = self.misfit(profile)
        self.up, self.failures = self.health.ready and not misfit and not trouble, 0
        self.why_down = misfit or trouble or self.health.detail

    async def is_well(self) -> bool:
        """Whether its /health reports ready."""
        return (await self._read_health()).ready

    async def _read_health(self) -> Health:
        try:
            return await asyncio.wait_for(self.dialect.health(), _HEALTH_S)
        except TimeoutError:
            return Health(False, f"/health gives no answer within {_HEALTH_S:.0f} s")

    async def _try_key(self) -> str:
        """Why it refuses us, by a call that makes no image; empty if it does not, or cannot say."""
        try:
            await self.dialect.check()
        except ProviderError as error:
            self.barred = error.kind == "auth" or error.status in _WRONG_KEY
            return error.message if self.barred or error.kind == "protocol" else ""
        self._key_is_tried = True
        self.health = await self._read_health()  # with the key it may report its models
        return ""

    def patience(self, deadline: float) -> float:
        """How long the newest call may take, in seconds, behind the calls that are at the worker already."""
        queue = (self.queue + self.given_up).elements()
        return min(deadline, self.work.overdue(queue, at_least=_MIN_PATIENCE_S, unmeasured=deadline))

    def note_delivery(self, cost_class: str, seconds: float) -> None:
        """Note a call that succeeded after so many seconds; clears all counts of failures."""
        self.work.add(cost_class, seconds)
        self.delivered += 1
        self.failures = self.unanswered = self.rests = 0
        self.refused = self.on_trial = False
        self.given_up.clear()

    def next_rest(self) -> float:
        """Count one more rest; the seconds that it lasts, doubled each time."""
        self.rests += 1
        return min(_MAX_REST_S, _MIN_REST_S * 2.0 ** min(self.rests - 1, 8))

    async def judge(self, error: ProviderError, cost_class: str, now: float) -> Judgement:
        """What a failed call means; counts it."""
        text = error.message if self.name in error.message else f"{self.name}: {error.message}"
        if error.kind in REFUSALS:
            out: Literal["barred", "rest"] = "barred" if error.kind in FOR_GOOD else "rest"
            return Judgement(error, out, error.message)
        kind = _WORKER_KINDS.get(error.kind)
        if kind is None:
            return Judgement(error)
        failure = ProviderError(kind, text, status=error.status, retry_after=0.0)
        if isinstance(error, OverdueError):
            return await self._judge_overdue(failure, error, cost_class)
        if kind == "worker_busy" or (error.status == 503 and error.retry_after and await self.is_well()):
            self.paused_until = now + (error.retry_after or 1.0)
            failure.kind = "worker_busy"
            return Judgement(failure)
        if kind == "worker_lost":
            return Judgement(failure, "down", error.message)
        self.failures += 1
        failure.retry_after = None
        why = f"{self.failures} failures in a row, the last: {error.message}"
        return Judgement(failure, "down" if self.failures >= IN_A_ROW else "", why)

    async def _judge_overdue(self, failure: ProviderError, error: OverdueError, cost_class: str) -> Judgement:
        """Judge a call that took too long: an unhealthy worker is left out, and one that answers no call at all."""
        self.given_up[cost_class] += 1
        if not await self.is_well():
            self.given_up.clear()
            return Judgement(failure, "down", error.message)
        self.unanswered += 1
        if self.unanswered < IN_A_ROW and not self.on_trial:
            return Judgement(failure)
        self.given_up.clear()
        why = f"{self.unanswered} calls in a row were not answered, though /health is well; the last: {error.message}"
        return Judgement(failure, "rest", why)


@dataclass(frozen=True, slots=True)
class Lease:
    """One call in flight at an endpoint: when it was sent (monotonic seconds), and its cost class."""

    endpoint: Endpoint
    since: float
    cost_class: str
