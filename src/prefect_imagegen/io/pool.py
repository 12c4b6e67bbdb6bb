"""A pool of endpoints behind one backend: each call goes to the endpoint with the fewest calls out.

Measured (simulation, 600 jobs): with the queue kept here and two calls per worker, one worker of four that is three
times slower costs 5 % over the ideal; round-robin costs 159 %. A pool only picks an endpoint: whether and when a row is
tried again is decided in the executor. The Segmind API is a pool of one, whose calls cost money: nothing of it is
ejected, timed or repeated here.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import zip_longest
from typing import Any, TypeVar

from prefect_imagegen.core.errors import BackendError, RefusedError
from prefect_imagegen.core.profiles import Profile
from prefect_imagegen.core.reconcile import Look, Window
from prefect_imagegen.core.request import GenerationRequest
from prefect_imagegen.io.pool_endpoint import Endpoint, Lease
from prefect_imagegen.io.segmind import SANDBOX_ENGINES, SegmindBackend
from prefect_imagegen.ports import Balance, Clock, Delivery, Dialect, HistoryRecord, Submission

T = TypeVar("T")
_logger = logging.getLogger(__name__)
_LEAST_PATIENCE_S = 30.0
_FIRST_PROBE_S, _LAST_PROBE_S = 0.5, 30.0
_OPENING_LOOK_S = 5.0


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
        account: SegmindBackend | None = None,
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
        self.on_capacity: Callable[[int], None] = lambda _: None
        """Told of the capacity when a worker has said how many calls it wants."""
        self._moved = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()
        self._turn = 0
        self._dark_since: float | None = None

    @property
    def not_understood(self) -> Counter[str]:
        """Answers of the paid API that were not understood; a worker's are its own failures."""
        return Counter() if self._account is None else self._account.not_understood

    def now(self) -> datetime | None:
        """The present time by the paid API's clock."""
        return None if self._account is None else self._account.now()

    @property
    def capacity(self) -> int:
        """Calls at once for which the workers have room."""
        return sum(endpoint.limit for endpoint in self._endpoints)

    async def open(self) -> None:
        """Wait for the first healthy worker; the others are looked after meanwhile.

        Raises BackendError (`no_worker`) after the deadline, RefusedError for workers that cannot serve this run.
        """
        if not self.free:
            return
        await asyncio.gather(*(self._look(endpoint) for endpoint in self._endpoints))
        misfits = [endpoint for endpoint in self._endpoints if endpoint.misfit(self._policy.profile)]
        if len(misfits) == len(self._endpoints):
            raise RefusedError(
                "profile_mismatch",
                f"{misfits[0].name} {misfits[0].why_down}.",
                remedy="Use its --profile, or other workers.",
            )
        self._refuse_a_mixture()
        for endpoint in self._endpoints:
            if not endpoint.up:
                _logger.warning("Worker %s is left out until it is healthy: %s", endpoint.name, endpoint.why_down)
                self._watch(endpoint)
        waited = 0.0
        while not any(endpoint.up for endpoint in self._endpoints):
            why = "; ".join(f"{one.name}: {one.why_down}" for one in self._endpoints)
            if waited >= self._policy.deadline:
                raise BackendError("no_worker", f"no worker was ready within {waited:.0f} s: {why}")
            _logger.warning("Waiting for the first healthy worker (%.0f s so far): %s", waited, why)
            patience = min(_OPENING_LOOK_S, self._policy.deadline - waited)
            await self._wait(patience)
            waited += patience
        self._refuse_a_mixture()

    async def examine(self) -> list[tuple[str, str]]:
        """Each endpoint, and why it is of no use just now; empty if it is."""
        await asyncio.gather(*(self._look(endpoint) for endpoint in self._endpoints))
        return [(one.name, "" if one.up else one.why_down) for one in self._endpoints]

    @property
    def engine(self) -> str | None:
        """What draws behind the first healthy endpoint, where it tells."""
        return next((endpoint.health.engine for endpoint in self._endpoints if endpoint.up), None)

    def expect(self, *, sandbox: bool) -> None:
        """Check from now on that every answer comes from a sandbox, or that none does."""
        for endpoint in self._endpoints:
            if isinstance(endpoint.dialect, SegmindBackend):
                endpoint.dialect.expect(sandbox=sandbox)
        if sandbox:
            self.name = "sandbox"

    async def check(self) -> Balance:
        """The balance of the account; a pool of workers has none."""
        return Balance(None) if self._account is None else await self._account.check()

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        """Send the call to the endpoint with the fewest calls out, waiting for one with room."""
        endpoint = await self._take(request.model)
        lease = Lease(endpoint, self._clock.monotonic())
        try:
            found = await self._timed(endpoint, endpoint.dialect.submit(self._applied(request), image_urls))
        except BackendError as error:
            self._give_back(lease)
            raise self._judged(endpoint, error) from error
        except BaseException:
            self._give_back(lease)
            raise
        if not self.free:
            self._give_back(lease)
            return found
        # Nothing of a free call is kept for later: no history knows its id, and nobody is to be asked for it again.
        return Submission(request, None, open_body=found, taken_by=lease)

    async def collect(self, submission: Submission) -> Delivery:
        """The result of an accepted call, from the endpoint that took it."""
        lease: Lease | None = submission.taken_by
        if lease is None:
            return await self._endpoints[0].dialect.collect(submission)
        endpoint, submission.taken_by = lease.endpoint, None
        try:
            delivery = await self._timed(endpoint, endpoint.dialect.collect(submission.open_body))
        except BackendError as error:
            raise self._judged(endpoint, error) from error
        finally:
            self._give_back(lease)
        endpoint.failures = 0
        endpoint.calls.add(self._clock.monotonic() - lease.since)
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
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.dialect.aclose()

    @property
    def _paid(self) -> SegmindBackend:
        if self._account is None:
            raise BackendError("protocol", "GPU workers keep neither a history nor uploads")
        return self._account

    def _applied(self, request: GenerationRequest) -> GenerationRequest:
        """The request as the profile can honour it."""
        profile = self._policy.profile
        return request if profile is None else replace(request, params=profile.applied(request.params))

    async def _take(self, model: str) -> Endpoint:
        """Wait for an endpoint with room; that with the least load, in turn. Raises BackendError."""
        while True:
            serving = [endpoint for endpoint in self._endpoints if endpoint.serves(model)]
            if not serving:
                raise BackendError("model_unavailable", f"no worker of the pool serves {model}")
            now = self._clock.monotonic()
            room = [one for one in serving if one.up and now >= one.paused_until]
            if self.free:
                room = [one for one in room if one.outstanding < one.limit]
            if room:
                self._dark_since = None
                found = min(room, key=lambda one: (one.outstanding / one.limit, one.turn))
                self._turn += 1
                found.outstanding, found.turn = found.outstanding + 1, self._turn
                return found
            await self._wait(self._patience(serving, now))

    def _patience(self, serving: Sequence[Endpoint], now: float) -> float | None:
        """How long to wait for room. Raises BackendError when no worker has been up for the deadline."""
        if not any(endpoint.up for endpoint in serving):
            self._dark_since = now if self._dark_since is None else self._dark_since
            left = self._dark_since + self._policy.deadline - now
            if left <= 0:
                why = "; ".join(f"{endpoint.name}: {endpoint.why_down}" for endpoint in serving)
                raise BackendError("no_worker", f"no worker has been healthy for {self._policy.deadline:.0f} s: {why}")
            return left
        pauses = [one.paused_until - now for one in serving if one.up and one.paused_until > now]
        return min(pauses, default=None)

    async def _wait(self, seconds: float | None) -> None:
        """Wait until something has moved, or for so long."""
        self._moved.clear()
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self._moved.wait())]
        if seconds is not None:
            waits.append(asyncio.ensure_future(self._sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def _sleep(self, seconds: float) -> object:
        await self._clock.sleep(seconds)
        return None

    def _give_back(self, lease: Lease) -> None:
        lease.endpoint.outstanding -= 1
        self._moved.set()

    async def _timed(self, endpoint: Endpoint, call: Coroutine[Any, Any, T]) -> T:
        """Await a free call for as long as this endpoint may take; a paid one has the executor's own deadlines."""
        if not self.free:
            return await call
        usual = endpoint.calls.limit(at_least=_LEAST_PATIENCE_S, unmeasured=self._policy.deadline)
        limit = min(usual, self._policy.deadline)
        try:
            return await asyncio.wait_for(call, limit)
        except TimeoutError:
            raise BackendError("unknown", f"no answer within {limit:.0f} s") from None

    def _judged(self, endpoint: Endpoint, error: BackendError) -> BackendError:
        """The error that the executor decides about; a worker that is to blame is left out until it is healthy."""
        if not self.free:
            return error
        found, why = endpoint.judged(error, self._clock.monotonic())
        if why and endpoint.up:
            _logger.warning("Worker %s is left out until it is healthy again: %s", endpoint.name, why)
            endpoint.up, endpoint.why_down = False, why
            self._watch(endpoint)
        return found

    def _watch(self, endpoint: Endpoint) -> None:
        task = asyncio.get_running_loop().create_task(self._probe(endpoint))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _probe(self, endpoint: Endpoint) -> None:
        """Ask a worker for its health, ever more seldom, until it is back."""
        pause = _FIRST_PROBE_S
        while not endpoint.up:
            await self._clock.sleep(pause)
            pause = min(_LAST_PROBE_S, 2 * pause)
            await self._look(endpoint)
        _logger.warning("Worker %s is ready", endpoint.name)
        self._moved.set()

    async def _look(self, endpoint: Endpoint) -> None:
        await endpoint.look(self._policy.profile)
        self.on_capacity(self.capacity)

    def _refuse_a_mixture(self) -> None:
        """Placeholders and real images never share a store."""
        kinds = {one.health.engine in SANDBOX_ENGINES for one in self._endpoints if one.up}
        if len(kinds) > 1:
            raise RefusedError(
                "mixed_pool", f"Some of {self.endpoint} are sandboxes, some are not.", remedy="Use one kind."
            )
