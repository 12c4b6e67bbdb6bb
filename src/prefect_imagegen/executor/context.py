"""What all parts of the executor share: the run's ports, its policy and its measurements."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from prefect_imagegen.core.choices import DEFAULT_LAG_S, OnUnknown
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.images.image import BadImageError, Decoded, decode, facts_of
from prefect_imagegen.core.ledger.events import Event, EventType, ImageFacts
from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit
from prefect_imagegen.core.policy.budget import Budget
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
"""Seconds; nothing is sent while our last heartbeat is older: other runs take over from one that is silent for 90 s."""
LATE = "late"
"""The flag of an image that came from an attempt that had been given up."""
MORE_IMAGES = "more_images"
"""The flag of an image whose answer held further images; they are stored beside it."""
ASK_GRACE_S = 5.0
_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """The identity and the limits of one run; times are in seconds.

    `nonce` tells this process from others of the same run. `history_lag`: how long the request history may lack a
    call. `drain_seconds`: how long calls may go on after an interruption. `straggler_seconds`: the least time after
    which a call is no reason for the run to stay open.
    """

    run_id: str
    nonce: str
    max_attempts: int = 5
    on_unknown: OnUnknown = "reconcile"
    history_lag: float = DEFAULT_LAG_S
    drain_seconds: float = 20.0
    straggler_seconds: float = 30.0
    deadline: float = 600.0
    """How long one paid call may take, and how long a failing store is tried again."""


@dataclass(slots=True)
class ExecutorContext:
    """The ports of one run, its policy and its measurements.

    `jitter` draws a number in 0..1; `run_decode` runs the CPU-bound decoding of an image in a thread.
    """

    provider: Provider
    store: ObjectStore
    ledger: Ledger
    references: References
    accounts: Accounts
    limiter: RateLimiter
    control: RunControl
    policy: Policy
    clock: Clock
    run_liveness: RunLiveness
    jitter: Callable[[], float]
    run_decode: Callable[[Callable[[bytes], Decoded], bytes], Coroutine[Any, Any, Decoded]]
    concurrency: AdaptiveLimit
    budget: Budget = field(default_factory=Budget)
    submits: Latencies = field(default_factory=Latencies)
    """Times from a POST to its answer."""
    totals: Latencies = field(default_factory=Latencies)
    """Times from a POST to the image's bytes."""

    @property
    def straggler_limit(self) -> float:
        """Seconds after which a call that has not ended is no reason for the run to stay open."""
        least = self.policy.straggler_seconds
        return self.totals.limit(at_least=least, unmeasured=least)

    @property
    def drain_left(self) -> float:
        """Seconds that calls under way may still take after an interruption: all end at the same moment."""
        left = self.control.time_left(self.policy.drain_seconds)
        return self.policy.drain_seconds if left is None else left

    async def record(self, row: PendingRequest, kind: EventType, **facts: Any) -> None:
        """Record one event of the row's present attempt."""
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
            **{"endpoint": self.provider.endpoint, "account": self._account_of(row)} | facts,
        )
        await self.ledger.record(event)

    async def delivered(self, row: PendingRequest, facts: ImageFacts, delivery: Delivery) -> RequestResult:
        """Record that the row has its image; its result."""
        row.enter(State.RECORD)
        if row.is_late:
            facts = replace(facts, flags=(*facts.flags, LATE))
        known = delivery.facts() | {
            "image": facts,
            "endpoint": delivery.endpoint or self.provider.endpoint,
            "account": self._account_of(row),
            "applied": delivery.applied
            | row.request.reference_changes
            | {"width": facts.width, "height": facts.height, "format": facts.format},
        }
        result = RequestResult(row.key, "generated", created_at=self.clock.now(), **known)
        await self.record(row, "delivered", **known)
        return result

    def _account_of(self, row: PendingRequest) -> str | None:
        """The account of the row's call: the claim's, whoever fetches the result."""
        return (row.claim.account if row.claim else None) or self.accounts.name

    async def stored_facts(self, path: str) -> ImageFacts:
        """The facts of an image that the store holds already: those count, not those of the bytes received.

        Raises ProviderError (`image_damaged`).
        """
        data = await self.store.get(path) or b""
        try:
            decoded = await self.run_decode(decode, data)
        except BadImageError as error:
            raise ProviderError("image_damaged", f"{path} in the store is no whole image: {error}") from error
        return facts_of(path, decoded, len(data))

    async def wait_for_heartbeat(self) -> bool:
        """Wait until our heartbeat is young enough to send anything; False if the run stops first."""
        while self.run_liveness.since_beat() > HEARTBEAT_FRESH_S and not self.control.stopped:
            await self.control.sleep(_TICK_S)
        return not self.control.stopped

    async def cost_of(self, request_id: str | None) -> float | None:
        """The cost of a call in US dollars, by the provider's history; None if it is not known."""
        account = self.provider.account
        if request_id is None or account is None or not self.provider.abilities.history:
            return None
        try:
            record = await self.look_up(account.record(request_id))
        except ProviderError:
            return None
        return record.cost_usd if record else None

    async def look_up(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call that only reads. After an interruption it has `ASK_GRACE_S` seconds left.

        Raises ProviderError (`unknown`) when they have passed: the next run can ask as well.
        """
        return await self.unless_interrupted(call, "unknown", ASK_GRACE_S)

    async def unless_interrupted(self, call: Coroutine[Any, Any, T], kind: str, grace: float) -> T:
        """Await a call. An interruption of the run ends it after `grace` seconds.

        Raises ProviderError of the error kind `kind` then.
        """
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
