"""What all parts of the executor share: the ports, the policy of the run, and what was measured so far."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.images.image import BadImageError, Decoded, decode, facts_of
from prefect_imagegen.core.ledger.events import Event, EventType, ImageFacts
from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.core.policy.history_lookup import DEFAULT_LAG_S, OnUnknown
from prefect_imagegen.core.policy.latency import Latencies
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.executor.pending import PendingRequest
from prefect_imagegen.executor.states import State
from prefect_imagegen.ports import (
    Accounts,
    Clock,
    Delivery,
    Ledger,
    ObjectStore,
    Provider,
    RateLimiter,
    References,
    RunLiveness,
)

T = TypeVar("T")
HEARTBEAT_FRESH_S = 45.0
"""Nothing is sent while the last sign of life is older: others may take over what looks dead after 90 s."""
LATE = "late"
"""The flag of an image that came from an attempt which had been given up."""
MORE_IMAGES = "more_images"
"""The flag of an image whose answer held further ones: they lie beside it."""
ASK_GRACE_S = 5.0
_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of one run, and who asks. Times in seconds."""

    run_id: str
    nonce: str
    max_attempts: int = 5
    on_unknown: OnUnknown = "reconcile"
    history_lag: float = DEFAULT_LAG_S
    drain_seconds: float = 20.0
    straggler_seconds: float = 30.0
    deadline: float = 600.0
    """How long one paid call may take, and how long the store is tried."""


@dataclass(slots=True)
class ExecutorContext:
    """The ports of one run, its policy, and its measurements."""

    provider: Provider
    store: ObjectStore
    ledger: Ledger
    references: References
    accounts: Accounts
    limiter: RateLimiter
    control: RunControl
    policy: Policy
    clock: Clock
    neighbours: RunLiveness
    jitter: Callable[[], float]
    run_decode: Callable[[Callable[[bytes], Decoded], bytes], Coroutine[Any, Any, Decoded]]
    concurrency: AdaptiveLimit
    budget: Budget = field(default_factory=Budget)
    submits: Latencies = field(default_factory=Latencies)
    """From POST to its answer."""
    totals: Latencies = field(default_factory=Latencies)
    """From POST to the image's bytes."""

    @property
    def straggler_limit(self) -> float:
        """Seconds after which a call that has not ended is no reason for the run to stay open."""
        least = self.policy.straggler_seconds
        return self.totals.limit(at_least=least, unmeasured=least)

    @property
    def drain_left(self) -> float:
        """How long a call under way may go on after an interruption: the same moment ends them all."""
        left = self.control.time_left(self.policy.drain_seconds)
        return self.policy.drain_seconds if left is None else left

    async def record(self, row: PendingRequest, kind: EventType, **facts: Any) -> None:
        """Write one event of the row's present attempt. Its account is the claim's, whoever fetches the result."""
        claimant = row.claim.account if row.claim else None
        event = Event(
            kind,
            row.key,
            row.attempt_id,
            self.policy.run_id,
            self.clock.now(),
            model=row.request.model,
            cost_class=row.request.cost_class,
            seed=row.request.seed,
            backend=self.provider.name,
            account=claimant or self.accounts.name,
            **{"endpoint": self.provider.endpoint} | facts,
        )
        await self.ledger.record(event)

    async def delivered(self, row: PendingRequest, facts: ImageFacts, delivery: Delivery) -> RequestResult:
        """The row has its image: recorded, and as a result."""
        row.enter(State.RECORD)
        if row.late:
            facts = replace(facts, flags=(*facts.flags, LATE))
        result = RequestResult(
            row.key,
            "generated",
            image=facts,
            cost_usd=delivery.cost_usd,
            latency_s=delivery.latency_s,
            request_id=delivery.request_id,
            endpoint=delivery.endpoint or self.provider.endpoint,
            http_status=delivery.http_status,
            applied=delivery.applied
            | row.request.reference_changes
            | {"width": facts.width, "height": facts.height, "format": facts.format},
            created_at=self.clock.now(),
        )
        await self.record(
            row,
            "delivered",
            image=facts,
            cost_usd=delivery.cost_usd,
            latency_s=delivery.latency_s,
            request_id=delivery.request_id,
            endpoint=result.endpoint,
            http_status=delivery.http_status,
            applied=json.dumps(result.applied, ensure_ascii=False, sort_keys=True),
        )
        return result

    async def stored_facts(self, path: str) -> ImageFacts:
        """The facts of an image that is there already: what is there counts, not what was received.

        Raises ProviderError (`image_damaged`).
        """
        data = await self.store.get(path) or b""
        try:
            decoded = await self.run_decode(decode, data)
        except BadImageError as error:
            raise ProviderError("image_damaged", f"{path} in the store is no whole image: {error}") from error
        return facts_of(path, decoded, len(data))

    async def vouched(self) -> bool:
        """Wait until our sign of life is young enough to send anything; False if the run stops first."""
        while self.neighbours.since_beat() > HEARTBEAT_FRESH_S and not self.control.stopped:
            await self.control.sleep(_TICK_S)
        return not self.control.stopped

    async def asked(self, call: Coroutine[Any, Any, T]) -> T:
        """Await what only GETs tell. A run that is told to stop has time for a usual answer, and for none that hangs.

        Raises ProviderError (`unknown`) then: the next run can ask as well.
        """
        return await self.unless_interrupted(call, "unknown", ASK_GRACE_S)

    async def unless_interrupted(self, call: Coroutine[Any, Any, T], kind: str, grace: float) -> T:
        """Await a call; an interruption of the run ends it, after some grace, with the outcome `kind`."""
        working = asyncio.ensure_future(call)
        interrupted = asyncio.ensure_future(self.control.interrupted.wait())
        try:
            await asyncio.wait((working, interrupted), return_when=asyncio.FIRST_COMPLETED)
            left = self.control.time_left()
            if not working.done() and grace and left != 0:
                await asyncio.wait((working,), timeout=grace if left is None else min(grace, left))
            if working.done():
                return working.result()
            raise ProviderError(kind, "the run was stopped before the answer came")
        finally:
            interrupted.cancel()
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
