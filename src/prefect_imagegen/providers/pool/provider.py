"""A pool of endpoints behind one provider: each call goes to the endpoint with the fewest calls out.

Measured (simulation, 600 jobs): with the queue kept here and two calls per worker, one worker of four that is three
times slower costs 5 % over the ideal; round-robin costs 159 %. A pool only picks an endpoint: whether and when a row is
tried again is decided in the executor. The Segmind API is a pool of one, whose calls cost money: nothing of it is
ejected, timed or repeated here.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import zip_longest
from typing import Any, TypeVar

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.history_lookup import Look, Window
from prefect_imagegen.core.request.profiles import Profile
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.ports import Balance, Clock, Delivery, Dialect, HistoryRecord, Submission
from prefect_imagegen.providers.pool.endpoint import ROW_REFUSALS, Endpoint, Judgement, Lease, OverdueError
from prefect_imagegen.providers.pool.workers import Workers
from prefect_imagegen.providers.segmind.provider import SegmindProvider

T = TypeVar("T")
_ROWS_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """How a pool is run. `limit` is calls at once per endpoint, None for what the endpoint wants; times in seconds."""

    free: bool
    deadline: float
    limit: int | None = None
    profile: Profile | None = None


class Pool:
    """A `ports.Backend` over one endpoint or several. Close it with `aclose`.

    `account` is the API itself where the one endpoint is paid: history, uploads and balance are its own. `limits` are
    those of single endpoints, before the policy's.
    """

    def __init__(
        self,
        dialects: Sequence[Dialect],
        policy: PoolPolicy,
        clock: Clock,
        account: SegmindProvider | None = None,
        limits: Sequence[int | None] = (),
    ) -> None:
        self.name = "pool" if policy.free else "segmind"
        self.endpoint = ", ".join(dialect.endpoint for dialect in dialects)
        self.queues = dialects[0].queues
        self.free = policy.free
        self._policy = policy
        self._clock = clock
        self._account = account
        self._endpoints = [Endpoint(dialect, own or policy.limit) for dialect, own in zip_longest(dialects, limits)]
        self._workers = Workers(self._endpoints, clock, policy.profile, self._tell_capacity)
        self.on_capacity: Callable[[int], None] = lambda _: None
        """Told of the capacity when a worker has said how many calls it wants."""
        self._turn = 0
        self._dark_since: float | None = None
        self._shunned: dict[bytes, set[Endpoint]] = {}
        """The workers at which a row has failed, by request key: it goes to others, if it can."""

    @property
    def not_understood(self) -> Counter[str]:
        """Answers of the paid API that were not understood; a worker's are its own failures."""
        return Counter() if self._account is None else self._account.not_understood

    def now(self) -> datetime | None:
        """The present time by the paid API's clock."""
        return None if self._account is None else self._account.now()

    def _tell_capacity(self) -> None:
        self.on_capacity(self.capacity)

    @property
    def capacity(self) -> int:
        """Calls at once for which the workers have room."""
        return sum(endpoint.limit for endpoint in self._endpoints)

    async def open(self) -> None:
        """Wait for the first healthy worker; the others are looked after meanwhile.

        Raises ProviderError (`no_worker`) after the deadline, RefusedError for workers that cannot serve this run.
        """
        if self.free:
            await self._workers.open(self._policy.deadline)

    @property
    def left_out(self) -> dict[str, str]:
        """Why workers were left out so far, by address."""
        return self._workers.left_out

    async def examine(self) -> list[tuple[str, str]]:
        """Each endpoint, and why it is of no use just now; empty if it is."""
        await self._workers.look_at_all()
        return [(one.name, "" if one.up else one.why_down) for one in self._endpoints]

    @property
    def engine(self) -> str | None:
        """What draws behind the first healthy endpoint, where it tells."""
        return next((endpoint.health.engine for endpoint in self._endpoints if endpoint.up), None)

    def expect(self, *, sandbox: bool) -> None:
        """Check from now on that every answer comes from a sandbox, or that none does."""
        for endpoint in self._endpoints:
            if isinstance(endpoint.dialect, SegmindProvider):
                endpoint.dialect.expect(sandbox=sandbox)
        if sandbox:
            self.name = "sandbox"

    async def check(self) -> Balance:
        """The balance of the account; a pool of workers has none."""
        return Balance(None) if self._account is None else await self._account.check()

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        """Send the call to the endpoint with the fewest calls out, waiting for one with room.

        A worker that refuses it is left out and the next one asked; only what all refuse is the row's own fault.
        """
        if not self.free:
            return await self._endpoints[0].dialect.submit(request, image_urls)
        applied = self._applied(request)
        refused: dict[Endpoint, ProviderError] = {}
        while True:
            lease = await self._take(applied, refused.keys() | self._shunned.get(request.key, set()))
            endpoint = lease.endpoint
            try:
                answer = await self._timed(lease, endpoint.dialect.submit(applied, image_urls))
            except ProviderError as error:
                judgement = await self._judged(lease, error, request)
                self._give_back(lease)
                if judgement.is_refusal:
                    continue
                if error.kind not in ROW_REFUSALS or endpoint in refused:
                    raise judgement.error from error
                refused[endpoint] = error
                if not self._others(request.model, refused):
                    raise judgement.error from error
            except BaseException:
                self._give_back(lease)
                raise
            else:
                for other, refusal in refused.items():
                    self._workers.blame(other, refusal)
                # Nothing of a free call is kept for later: no history knows its id, and nobody is to be asked again.
                return Submission(request, None, open_body=answer, taken_by=lease)

    async def collect(self, submission: Submission) -> Delivery:
        """The result of an accepted call, from the endpoint that took it."""
        lease: Lease | None = submission.taken_by
        if lease is None:
            return await self._endpoints[0].dialect.collect(submission)
        endpoint, submission.taken_by = lease.endpoint, None
        try:
            delivery = await self._timed(lease, endpoint.dialect.collect(submission.open_body))
        except ProviderError as error:
            judgement = await self._judged(lease, error, submission.request)
            if judgement.is_refusal:
                # It took the call, and is no worker of ours after all: the row is drawn elsewhere.
                text = f"{endpoint.name}: {error.message}"
                raise ProviderError("worker_lost", text, status=error.status, retry_after=0.0) from error
            raise judgement.error from error
        finally:
            self._give_back(lease)
        endpoint.has_delivered(lease.cost_class, self._clock.monotonic() - lease.since)
        self._dark_since = None
        self._shunned.pop(submission.request.key, None)
        applied = self._applied(submission.request).params
        told = {name: value for name, value in applied.items() if name != "prompt"}
        return replace(delivery, request_id=None, endpoint=endpoint.name, cost_usd=0.0, applied=told | delivery.applied)

    async def upload(self, data: bytes, media_type: str) -> str:
        """Make a reference known to the paid API."""
        return await self._paid.upload(data, media_type)

    async def has_upload(self, url: str) -> bool:
        """Whether an upload is still there."""
        return await self._paid.has_upload(url)

    async def find(self, model: str, claimed: Mapping[str, Any], window: Window) -> Look:
        """Look into the history of the paid API."""
        return await self._paid.find(model, claimed, window)

    async def record(self, request_id: str) -> HistoryRecord | None:
        """One call as the history of the paid API tells it."""
        return await self._paid.record(request_id)

    async def aclose(self) -> None:
        """Stop looking after endpoints, and close the connections."""
        await self._workers.aclose()
        for endpoint in self._endpoints:
            await endpoint.dialect.aclose()

    @property
    def _paid(self) -> SegmindProvider:
        if self._account is None:
            raise ProviderError("protocol", "GPU workers keep neither a history nor uploads")
        return self._account

    def _applied(self, request: GenerationRequest) -> GenerationRequest:
        """The request as the profile can honour it."""
        profile = self._policy.profile
        return request if profile is None else replace(request, params=profile.applied(request.params))

    async def _take(self, request: GenerationRequest, avoided: Collection[Endpoint]) -> Lease:
        """Wait for an endpoint with room; that with the least load, in turn. Raises ProviderError.

        Those to be avoided are taken only where no other one is up.
        """
        while True:
            serving = [endpoint for endpoint in self._endpoints if endpoint.serves(request.model)]
            if not serving:
                raise ProviderError("model_unavailable", f"no worker of the pool serves {request.model}")
            now = self._clock.monotonic()
            up = [endpoint for endpoint in serving if endpoint.up]
            wanted = [endpoint for endpoint in up if endpoint not in avoided] or up
            room = [one for one in wanted if now >= one.paused_until and one.outstanding < one.limit]
            if room:
                endpoint = min(room, key=lambda one: (one.outstanding / one.limit, one.turn))
                if not endpoint.on_trial:
                    self._dark_since = None
                self._turn += 1
                endpoint.outstanding, endpoint.turn = endpoint.outstanding + 1, self._turn
                endpoint.queue[request.cost_class] += 1
                return Lease(endpoint, now, request.cost_class)
            await self._workers.wait(self._patience(serving, wanted, now))

    def _others(self, model: str, refused: Collection[Endpoint]) -> bool:
        """Whether a worker is up that has not refused a row yet."""
        return any(one.up and one.serves(model) and one not in refused for one in self._endpoints)

    def _patience(self, serving: Sequence[Endpoint], wanted: Sequence[Endpoint], now: float) -> float | None:
        """How long to wait for room. Raises ProviderError when no worker is left, or was up for the deadline."""
        if not wanted:
            self._dark_since = now if self._dark_since is None else self._dark_since
            left = self._dark_since + self._policy.deadline - now
            why = "; ".join(f"{endpoint.name}: {endpoint.why_down}" for endpoint in serving)
            if all(endpoint.is_hopeless for endpoint in serving):
                raise ProviderError("no_worker", f"every worker refuses the calls of this run: {why}")
            if left <= 0:
                raise ProviderError("no_worker", f"no worker has been healthy for {self._policy.deadline:.0f} s: {why}")
            return left
        pauses = [one.paused_until - now for one in wanted if one.paused_until > now]
        return min(pauses, default=None)

    def _give_back(self, lease: Lease) -> None:
        lease.endpoint.outstanding -= 1
        lease.endpoint.queue[lease.cost_class] -= 1
        self._workers.moved.set()

    async def _timed(self, lease: Lease, call: Coroutine[Any, Any, T]) -> T:
        """Await a call for as long as its worker may take for it."""
        limit = lease.endpoint.patience(self._policy.deadline)
        try:
            return await asyncio.wait_for(call, limit)
        except TimeoutError:
            lease.endpoint.work.add(lease.cost_class, limit)
            raise OverdueError("unknown", f"no answer within {limit:.0f} s") from None

    async def _judged(self, lease: Lease, error: ProviderError, request: GenerationRequest) -> Judgement:
        """What a failed call means; a worker that is to blame is left out, and the row goes elsewhere."""
        endpoint = lease.endpoint
        judgement = await endpoint.judged(error, lease.cost_class, self._clock.monotonic())
        self._workers.eject(endpoint, judgement)
        if judgement.error.kind in ("worker_lost", "worker_failed"):
            self._shunned.setdefault(request.key, set()).add(endpoint)
            while len(self._shunned) > _ROWS_REMEMBERED:
                self._shunned.pop(next(iter(self._shunned)))
        return judgement
