"""One endpoint of a pool: what is out at it, what is known of it, and what a failure says of it."""

from dataclasses import dataclass, field

from prefect_imagegen.core.errors import BackendError
from prefect_imagegen.core.latency import Latencies
from prefect_imagegen.core.profiles import Profile
from prefect_imagegen.ports import Dialect, Health

DEFAULT_LIMIT = 2
"""Calls at once for each worker: one that runs, and one at hand."""
_FAILURES_TO_EJECT = 3
_OF_A_WORKER = {
    **dict.fromkeys(("unsent", "unknown", "unavailable", "submitted"), "worker_lost"),
    **dict.fromkeys(("server_error", "bad_output", "generation_error", "output_lost"), "worker_failed"),
    "rate_limited": "worker_busy",
}
"""What a failed call means when it costs nothing: no guess about money, only about the worker."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """The state of one endpoint. `given` is the limit that the user set; times are of the pool's monotonic clock."""

    dialect: Dialect
    given: int | None
    outstanding: int = 0
    failures: int = 0
    """500s and bad answers in a row."""
    up: bool = True
    why_down: str = ""
    paused_until: float = 0.0
    turn: int = 0
    health: Health = field(default_factory=lambda: Health(True))
    calls: Latencies = field(default_factory=Latencies)

    @property
    def name(self) -> str:
        """Its address."""
        return self.dialect.endpoint

    @property
    def limit(self) -> int:
        """Calls at once."""
        return self.given or self.health.limit or DEFAULT_LIMIT

    def serves(self, model: str) -> bool:
        """Whether it draws for a model, as far as it tells."""
        return self.health.models is None or model in self.health.models

    def misfit(self, profile: Profile | None) -> str:
        """Why a worker that works is of no use to this run; empty if it is."""
        if profile is None or self.health.profile in (None, profile.name):
            return ""
        return f"runs the profile {self.health.profile}, not {profile.name}"

    async def look(self, profile: Profile | None) -> None:
        """Ask it for its health."""
        self.health = await self.dialect.health()
        misfit = self.misfit(profile)
        self.up, self.failures = self.health.ready and not misfit, 0
        self.why_down = misfit or self.health.detail

    def judged(self, error: BackendError, now: float) -> tuple[BackendError, str]:
        """What the executor gets to decide about, and why the endpoint is to be left out; empty if it is not."""
        kind = _OF_A_WORKER.get(error.kind)
        if kind is None:
            return error, ""
        text = error.message if self.name in error.message else f"{self.name}: {error.message}"
        found = BackendError(kind, text, status=error.status, retry_after=0.0)
        if kind == "worker_busy":
            self.paused_until = now + (error.retry_after or 1.0)
            return found, ""
        if kind == "worker_lost":
            return found, error.message
        self.failures += 1
        found.retry_after = None
        failed = self.failures >= _FAILURES_TO_EJECT
        return found, f"{self.failures} failures in a row, the last: {error.message}" if failed else ""


@dataclass(frozen=True, slots=True)
class Lease:
    """One call that an endpoint has taken, and since when."""

    endpoint: Endpoint
    since: float
