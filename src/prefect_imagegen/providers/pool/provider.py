"""A pool of endpoints as one provider: each call goes to the endpoint with the fewest calls in flight.

Measured (simulation, 600 jobs): with the queue kept here and two calls per worker, one worker of four that is three
times slower costs 5 % over the ideal; round-robin costs 159 %. A pool only picks an endpoint: whether and when a row is
tried again is decided in the executor.
"""

import asyncio
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, TypeVar

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.abilities import FREE
from prefect_imagegen.core.request.profiles import Profile
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.ports import Clock, Delivery, Submission
from prefect_imagegen.providers.base import BaseProvider
from prefect_imagegen.providers.pool.dialects import Dialect
from prefect_imagegen.providers.pool.endpoint import ROW_REFUSALS, Endpoint, Judgement, Lease, OverdueError
from prefect_imagegen.providers.pool.workers import Workers

T = TypeVar("T")
_ROWS_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """How a pool is run.

    `deadline`: seconds for one call, and to wait for a healthy worker. `limit`: calls at once per endpoint, None for
    what the endpoint reports. `profile`: what the workers must run.
    """

    deadline: float
    limit: int | None = None
    profile: Profile | None = None


class Pool(BaseProvider):
    """A `ports.Provider` over the endpoints of GPU workers, which cost nothing. Close it with `aclose`.

    `limits` are calls at once by endpoint, before the policy's limit.
    """

    def __init__(
        self, dialects: Sequence[Dialect], policy: PoolPolicy, clock: Clock, limits: Sequence[int | None] = ()
    ) -> None:
        super().__init__("pool", ", ".join(dialect.endpoint for dialect in dialects), FREE)
        self._policy = policy
        self._clock = clock
        self._endpoints = [Endpoint(dialect, own or policy.limit) for dialect, own in zip_longest(dialects, limits)]
        self._workers = Workers(self._endpoints, clock, policy.profile, self._report_capacity)
        self._turn = 0
        self._dark_since: float | None = None
        self._failed_at: dict[bytes, set[Endpoint]] = {}
        """The workers at which a row has failed, by request key: it goes to others if there are any."""

    def _report_capacity(self) -> None:
        self.on_capacity(self.capacity)

    @property
    def capacity(self) -> int:
        """The sum of the endpoints' limits for calls at once; workers report theirs with their health."""
        return sum(endpoint.limit for endpoint in self._endpoints)

    async def open(self) -> None:
        """Wait for the first healthy worker; the others are probed meanwhile.

        Raises ProviderError (`no_worker`) after the deadline, RefusedError for workers that cannot serve this run.
        """
        await self._workers.open(self._policy.deadline)

    @property
    def left_out(self) -> dict[str, str]:
        """Why workers were left out so far, by base URL."""
        return self._workers.left_out

    async def examine(self) -> list[tuple[str, str]]:
        """Each endpoint with the reason why it cannot be used now; an empty text if it can."""
        await self._workers.look_at_all()
        return [(endpoint.name, "" if endpoint.up else endpoint.why_down) for endpoint in self._endpoints]

    async def engine(self) -> str | None:
        """The engine of the first healthy endpoint, where it reports one."""
        return next((endpoint.health.engine for endpoint in self._endpoints if endpoint.up), None)

    def expect(self, *, sandbox: bool) -> None:
        """From now on require that every answer of a worker that names engines comes from a sandbox, or none does."""
        for endpoint in self._endpoints:
            endpoint.dialect.expect(sandbox=sandbox)
        if sandbox:
            self.name = "sandbox"

    async def submit(
        self,
        request: GenerationRequest,
        image_urls: Sequence[str],
        *,
        idempotency_key: str | None = None,  # noqa: ARG002 - a worker's call may be made twice
    ) -> Submission:
        """Send the call to the endpoint with the fewest calls in flight, after waiting for one with room.

        A worker that refuses the call is left out and the next one asked; the row is at fault only if all refuse it.
        Raises ProviderError.
        """
        applied = self._applied(request)
        refused: dict[Endpoint, ProviderError] = {}
        while True:
            lease = await self._take(applied, refused.keys() | self._failed_at.get(request.key, set()))
            endpoint = lease.endpoint
            try:
                answer = await self._timed(lease, endpoint.dialect.submit(applied, image_urls))
            except ProviderError as error:
                judgement = await self._judge(lease, error, request)
                self._give_back(lease)
                if judgement.is_refusal:
                    continue
                if error.kind not in ROW_REFUSALS or endpoint in refused:
                    raise judgement.error from error
                refused[endpoint] = error
                if not self._has_others(request.model, refused):
                    raise judgement.error from error
            except BaseException:
                self._give_back(lease)
                raise
            else:
                for other, refusal in refused.items():
                    self._workers.note_refused_row(other, refusal)
                # A free call has no request id to keep: no history knows it, so nothing can be fetched later.
                return Submission(request, None, open_body=answer, taken_by=lease)

    async def collect(self, submission: Submission) -> Delivery:
        """The result of an accepted call, from the endpoint that took it. Raises ProviderError."""
        lease: Lease = submission.taken_by
        endpoint, submission.taken_by = lease.endpoint, None
        try:
            delivery = await self._timed(lease, endpoint.dialect.collect(submission.open_body))
        except ProviderError as error:
            judgement = await self._judge(lease, error, submission.request)
            if judgement.is_refusal:
                # It took the call and then refused it: the row is made elsewhere.
                text = f"{endpoint.name}: {error.message}"
                raise ProviderError("worker_lost", text, status=error.status, retry_after=0.0) from error
            raise judgement.error from error
        finally:
            self._give_back(lease)
        endpoint.note_delivery(lease.cost_class, self._clock.monotonic() - lease.since)
        self._dark_since = None
        self._failed_at.pop(submission.request.key, None)
        applied = self._applied(submission.request).params
        sent = {name: value for name, value in applied.items() if name != "prompt"}
        return replace(delivery, request_id=None, endpoint=endpoint.name, cost_usd=0.0, applied=sent | delivery.applied)

    async def aclose(self) -> None:
        """Stop probing workers, and close the connections."""
        await self._workers.aclose()
        for endpoint in self._endpoints:
            await endpoint.dialect.aclose()

    def _applied(self, request: GenerationRequest) -> GenerationRequest:
        """The request with the parameters that the profile can honour."""
        profile = self._policy.profile
        return request if profile is None else replace(request, params=profile.applied(request.params))

    async def _take(self, request: GenerationRequest, avoided: Collection[Endpoint]) -> Lease:
        """Wait for an endpoint with room, and take the one with the least load; ties go in turn.

        Endpoints in `avoided` are taken only if no other one is up. Raises ProviderError.
        """
        while True:
            serving = [endpoint for endpoint in self._endpoints if endpoint.serves(request.model)]
            if not serving:
                raise ProviderError("model_unavailable", f"no worker of the pool serves {request.model}")
            now = self._clock.monotonic()
            up = [endpoint for endpoint in serving if endpoint.up]
            wanted = [endpoint for endpoint in up if endpoint not in avoided] or up
            with_room = [each for each in wanted if now >= each.paused_until and each.outstanding < each.limit]
            if with_room:
                endpoint = min(with_room, key=lambda each: (each.outstanding / each.limit, each.turn))
                if not endpoint.on_trial:
                    self._dark_since = None
                self._turn += 1
                endpoint.outstanding, endpoint.turn = endpoint.outstanding + 1, self._turn
                endpoint.queue[request.cost_class] += 1
                return Lease(endpoint, now, request.cost_class)
            await self._workers.wait(self._patience(serving, wanted, now))

    def _has_others(self, model: str, refused: Collection[Endpoint]) -> bool:
        """Whether a worker is up that serves the model and has not refused the row."""
        return any(each.up and each.serves(model) and each not in refused for each in self._endpoints)

    def _patience(self, serving: Sequence[Endpoint], wanted: Sequence[Endpoint], now: float) -> float | None:
        """Seconds to wait for room; None until something changes.

        Raises ProviderError (`no_worker`) if every worker refuses us, or none was up for the whole deadline.
        """
        if not wanted:
            self._dark_since = now if self._dark_since is None else self._dark_since
            left = self._dark_since + self._policy.deadline - now
            why = "; ".join(f"{endpoint.name}: {endpoint.why_down}" for endpoint in serving)
            if all(endpoint.is_hopeless for endpoint in serving):
                raise ProviderError("no_worker", f"every worker refuses the calls of this run: {why}")
            if left <= 0:
                raise ProviderError("no_worker", f"no worker has been healthy for {self._policy.deadline:.0f} s: {why}")
            return left
        pauses = [endpoint.paused_until - now for endpoint in wanted if endpoint.paused_until > now]
        return min(pauses, default=None)

    def _give_back(self, lease: Lease) -> None:
        lease.endpoint.outstanding -= 1
        lease.endpoint.queue[lease.cost_class] -= 1
        self._workers.changed.set()

    async def _timed(self, lease: Lease, call: Coroutine[Any, Any, T]) -> T:
        """Await a call for as long as its worker may take. Raises OverdueError after that."""
        limit = lease.endpoint.patience(self._policy.deadline)
        try:
            return await asyncio.wait_for(call, limit)
        except TimeoutError:
            lease.endpoint.work.add(lease.cost_class, limit)
            raise OverdueError("unknown", f"no answer within {limit:.0f} s") from None

    async def _judge(self, lease: Lease, error: ProviderError, request: GenerationRequest) -> Judgement:
        """What a failed call means; leaves the worker out if it is to blame, and sends the row elsewhere."""
        endpoint = lease.endpoint
        judgement = await endpoint.judge(error, lease.cost_class, self._clock.monotonic())
        self._workers.eject(endpoint, judgement)
        if judgement.error.kind in ("worker_lost", "worker_failed"):
            self._failed_at.setdefault(request.key, set()).add(endpoint)
            while len(self._failed_at) > _ROWS_REMEMBERED:
                self._failed_at.pop(next(iter(self._failed_at)))
        return judgement
