"""Drives requests: slot -> claim -> attempt -> verify -> put -> record. Knows core and ports only.

Every retry of the product is decided here, by the table of `core.outcomes`. A paid call is never sent without a
claim of its own, never sent twice on a guess, and what was sent is fetched, never bought again.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from prefect_imagegen.control import RunControl
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import BackendError, StoreError
from prefect_imagegen.core.events import Claim, ClaimRecord, Event, EventType, ImageFacts
from prefect_imagegen.core.image import BadImageError, Decoded, decode
from prefect_imagegen.core.outcomes import HELD_KINDS, OUTCOMES
from prefect_imagegen.core.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.core.retry import backoff
from prefect_imagegen.ports import Backend, Clock, Delivery, Ledger, ObjectStore, RateLimiter, Submission

T = TypeVar("T")
CLAIM_FRESH = timedelta(seconds=60)
"""A claim older than this is read again before its POST: the process may have slept."""
COLLECT_TRIES = 3
ID_TRIES = 5
SUBMIT_GRACE_S = 5.0
"""How long an interrupted run waits for the answers to POSTs under way, so that their ids become durable."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of one run: POSTs per row, and who asks."""

    run_id: str
    nonce: str
    max_attempts: int = 5


@dataclass(slots=True)
class _Row:
    """One request on its way."""

    request: GenerationRequest
    key: bytes
    n: int = 1
    posts: int = 0
    counted: int = 0
    failures: int = 0
    maybe_paid: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    claimed_at: datetime | None = None

    @property
    def attempt_id(self) -> str:
        return f"{self.key.hex()}-{self.n}"


@dataclass(frozen=True, slots=True)
class _Again:
    """Try the request once more, after so many seconds."""

    seconds: float


class Executor:
    """Makes requests over one backend into one store. Shared by all shards of a process."""

    def __init__(
        self,
        *,
        backend: Backend,
        store: ObjectStore,
        ledger: Ledger,
        limiter: RateLimiter,
        max_in_flight: int,
        control: RunControl,
        policy: Policy,
        clock: Clock,
        draw: Callable[[], float],
        is_alive: Callable[[str], Coroutine[Any, Any, bool]],
        decoder: Callable[[Callable[[bytes], Decoded], bytes], Coroutine[Any, Any, Decoded]],
    ) -> None:
        self.calls = 0
        self.in_flight = 0
        self._backend = backend
        self._store = store
        self._ledger = ledger
        self._limiter = limiter
        self._slots = asyncio.Semaphore(max_in_flight)
        self._turn = asyncio.Lock()
        self._control = control
        self._policy = policy
        self._clock = clock
        self._draw = draw
        self._is_alive = is_alive
        self._decoder = decoder

    async def make(self, request: GenerationRequest, key: bytes) -> RequestResult:
        """Bring one request to its end, whatever that is. Raises on bugs only."""
        row = _Row(request, key)
        while True:
            step = await self._in_slot(row)
            if isinstance(step, RequestResult):
                step.attempts, step.maybe_paid = row.posts, row.maybe_paid
                self._control.finished(step)
                return step
            # The slot is free while this row waits.
            await self._control.sleep(step.seconds)

    async def _in_slot(self, row: _Row) -> RequestResult | _Again:
        # One row at a time waits for a rate token and then for a slot: nobody waits for a token with a slot in
        # hand, and tokens do not pile up while all slots are taken.
        async with self._turn:
            if not self._control.stopped:
                await self._limiter.acquire()
            await self._slots.acquire()
        self.in_flight += 1
        try:
            if self._control.stopped:
                return self._not_run(row)
            if row.request.model in self._control.dead_models:
                return self._failed(row, "model_unavailable", self._control.dead_models[row.request.model])
            return await self._attempt(row)
        except StoreError as error:
            self._control.stop("store", str(error))
            if row.claimed_at is None:
                return self._not_run(row, "store", error.message)
            return RequestResult(row.key, "held", "unknown", f"the store failed after the call: {error.message}")
        finally:
            self.in_flight -= 1
            self._slots.release()

    async def _attempt(self, row: _Row) -> RequestResult | _Again:
        """One claim, one POST, one result."""
        submission = await self._claim(row)
        if isinstance(submission, RequestResult):
            return submission
        if submission is None:
            if (found := await self._adopt(row)) is not None:
                return found
            try:
                submission = await self._submit(row)
            except BackendError as error:
                return await self._after_refused_post(row, error)
        try:
            return await self._receive(row, submission)
        except BackendError as error:
            return await self._after_failed_result(row, error)

    async def _claim(self, row: _Row) -> Submission | RequestResult | None:
        """Win a claim (None), take over what an earlier one led to, or leave the row to its claimant."""
        while True:
            now = self._clock.now()
            body = row.request.body([f"sha256:{_digest(reference.uri)}" for reference in row.request.references])
            claim = Claim(self._policy.run_id, self._policy.nonce, row.attempt_id, now, body)
            if await self._ledger.claim(row.key, row.n, claim):
                row.claimed_at = now
                await self._record(row, "claimed")
                return None
            last = (await self._ledger.claims(row.key))[-1]
            if self._ledger.is_closed(row.key, last.claim.attempt_id):
                row.n = last.n + 1
                continue
            return await self._take_over(row, last)

    async def _take_over(self, row: _Row, last: ClaimRecord) -> Submission | RequestResult:
        """Go on with the open claim of another run: by its id if that run is gone, else leave it be."""
        if await self._is_alive(last.claim.run_id):
            text = f"run {last.claim.run_id} is working on the same request"
            return RequestResult(row.key, "held", "other_run", text, request_id=last.request_id)
        if last.request_id is None:
            if (found := await self._adopt(row)) is not None:
                return found
            text = f"run {last.claim.run_id} sent the request and learned nothing of its fate"
            return RequestResult(row.key, "held", "unknown", text)
        row.n, row.claimed_at = last.n, last.claim.time
        return Submission(row.request, last.request_id)

    async def _adopt(self, row: _Row) -> RequestResult | None:
        """The image, if the store has it already without the ledger knowing."""
        path = layout.image(row.key.hex(), row.request.extension)
        if await self._store.head(path) is None:
            return None
        facts = await self._stored_facts(path)
        return await self._delivered(row, facts, Delivery(b""))

    async def _submit(self, row: _Row) -> Submission:
        if row.claimed_at and self._clock.now() - row.claimed_at > CLAIM_FRESH:
            claims = await self._ledger.claims(row.key)
            if claims[-1].n != row.n:
                raise BackendError("other_run", "another run took the request over while this one slept")
        row.posts += 1
        self.calls += 1
        submission = await self._unless_interrupted(self._backend.submit(row.request), "unknown", SUBMIT_GRACE_S)
        self._control.progressed()
        return submission

    async def _receive(self, row: _Row, submission: Submission) -> RequestResult:
        """From an accepted call to the stored image. The request_id is durable before the first poll."""
        keeping: asyncio.Task[None] | None = None
        if submission.request_id is not None and row.posts:
            keeping = asyncio.ensure_future(self._keep_id(row, submission.request_id))
            if submission.open_body is None:
                await asyncio.wait((keeping,), timeout=SUBMIT_GRACE_S)
        try:
            delivery, decoded = await self._collect(submission)
        except BackendError as error:
            error.request_id = error.request_id or submission.request_id
            raise
        finally:
            if keeping is not None:
                await keeping
        path = layout.image(row.key.hex(), row.request.extension)
        facts = _facts(path, decoded, len(delivery.data))
        if not await self._store.create(path, delivery.data, decoded.content_type):
            facts = await self._stored_facts(path)
        self._control.progressed()
        return await self._delivered(row, facts, delivery)

    async def _collect(self, submission: Submission) -> tuple[Delivery, Decoded]:
        """The bytes, decoded in full; bad ones are fetched again, never bought again."""
        failure = BackendError("bad_output", "no bytes came", request_id=submission.request_id)
        for _ in range(COLLECT_TRIES):
            try:
                delivery = await self._unless_interrupted(self._backend.collect(submission), "submitted", 0.0)
                return delivery, await self._decoder(decode, delivery.data)
            except BadImageError as error:
                failure = BackendError("bad_output", str(error), request_id=submission.request_id)
            except BackendError as error:
                if error.kind != "bad_output":
                    raise
                failure = error
            if submission.request_id is None:
                raise BackendError("unknown", f"the answer was bad and named no request_id: {failure.message}")
        raise failure

    async def _after_refused_post(self, row: _Row, error: BackendError) -> RequestResult | _Again:
        """Decide about a POST that was not answered with success."""
        outcome = OUTCOMES[error.kind]
        ambiguous = outcome.accepted == "answered_5xx" and self._backend.ambiguous_5xx
        if ambiguous and (found := await self._look(row)) is not None:
            try:
                return await self._receive(row, found)
            except BackendError as later:
                return await self._after_failed_result(row, later)
        if error.kind in HELD_KINDS:
            return self._held(row, error)
        return await self._close(row, error)

    async def _look(self, row: _Row) -> Submission | None:
        """One look into the history after an answered 5xx: was the work taken after all?"""
        known = frozenset(claim.request_id for claim in await self._ledger.claims(row.key) if claim.request_id)
        try:
            return await self._backend.find(row.request, row.claimed_at or self._clock.now(), known)
        except BackendError:
            return None

    async def _after_failed_result(self, row: _Row, error: BackendError) -> RequestResult | _Again:
        """Decide about an accepted call that led to no image."""
        if error.kind in HELD_KINDS:
            return self._held(row, error)
        outcome = OUTCOMES[error.kind]
        if outcome.scope == "run" and error.kind != "sandbox_mismatch":
            # The key or the store gave way while a paid result was being fetched: it stays to be fetched.
            self._control.stop(error.kind, error.message)
            return self._held(row, BackendError("submitted", error.message, request_id=error.request_id))
        if outcome.accepted != "yes":
            return self._held(row, BackendError("submitted", error.message, request_id=error.request_id))
        return await self._close(row, error)

    async def _close(self, row: _Row, error: BackendError) -> RequestResult | _Again:
        """End the attempt as failed; then try again, or end the row, its model or the run."""
        outcome = OUTCOMES[error.kind]
        row.failures += 1
        row.counted += outcome.counted
        row.by_kind[error.kind] += 1
        again = (
            outcome.retryable
            and row.counted < self._policy.max_attempts
            and row.by_kind[error.kind] < (outcome.max_posts if outcome.counted else row.failures + 1)
        )
        await self._record(
            row,
            "failed",
            error_kind=error.kind,
            error_message=error.message,
            http_status=error.status,
            request_id=error.request_id,
        )
        row.n += 1
        row.claimed_at = None
        if outcome.scope == "run":
            self._control.stop(error.kind, error.message)
            return self._not_run(row, error.kind, error.message)
        if outcome.scope == "model":
            self._control.dead_models[row.request.model] = error.message
        if not again:
            return self._failed(row, error.kind, error.message, error)
        if outcome.accepted == "answered_5xx" and self._backend.ambiguous_5xx:
            row.maybe_paid += 1
        seconds = backoff(row.failures, self._draw()) if error.retry_after is None else error.retry_after
        if outcome.slows:
            self._limiter.pause(max(seconds, 1.0))
        if not outcome.counted:
            self._control.check_progress(error.message)
        return _Again(seconds)

    async def _delivered(self, row: _Row, facts: ImageFacts, delivery: Delivery) -> RequestResult:
        result = RequestResult(
            row.key,
            "generated",
            image=facts,
            cost_usd=delivery.cost_usd,
            latency_s=delivery.latency_s,
            request_id=delivery.request_id,
            http_status=delivery.http_status,
            applied=delivery.applied | {"width": facts.width, "height": facts.height, "format": facts.format},
            created_at=self._clock.now(),
        )
        await self._record(
            row,
            "delivered",
            image=facts,
            cost_usd=delivery.cost_usd,
            latency_s=delivery.latency_s,
            request_id=delivery.request_id,
            http_status=delivery.http_status,
            applied=json.dumps(result.applied, ensure_ascii=False, sort_keys=True),
        )
        return result

    async def _keep_id(self, row: _Row, request_id: str) -> None:
        """Make the id durable: five tries within 30 s; then the run sends nothing more."""
        await self._record(row, "submitted", request_id=request_id)
        for failures in range(ID_TRIES):
            try:
                await self._ledger.record_request_id(row.key, row.n, request_id)
            except StoreError as error:
                message = error.message
            else:
                return
            await self._clock.sleep(2.0**failures)
        self._control.stop("store", f"a request_id could not be stored: {message}")

    async def _stored_facts(self, path: str) -> ImageFacts:
        """The facts of an image that is there already: what is there counts, not what was received."""
        data = await self._store.get(path)
        try:
            decoded = await self._decoder(decode, data or b"")
        except BadImageError as error:
            raise StoreError("store_damaged", f"{path}: {error}", remedy="Remove it and run again.") from error
        return _facts(path, decoded, len(data or b""))

    async def _record(self, row: _Row, kind: EventType, **facts: Any) -> None:
        event = Event(
            kind,
            row.key,
            row.attempt_id,
            self._policy.run_id,
            self._clock.now(),
            model=row.request.model,
            cost_class=row.request.cost_class,
            seed=row.request.seed,
            backend=self._backend.name,
            endpoint=self._backend.endpoint,
            **facts,
        )
        await self._ledger.record(event)

    async def _unless_interrupted(self, call: Coroutine[Any, Any, T], kind: str, grace: float) -> T:
        """Await a call; an interruption of the run ends it, after some grace, with the outcome `kind`."""
        working = asyncio.ensure_future(call)
        interrupted = asyncio.ensure_future(self._control.interrupted.wait())
        try:
            await asyncio.wait((working, interrupted), return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and grace:
                await asyncio.wait((working,), timeout=grace)
            if working.done():
                return working.result()
            raise BackendError(kind, "the run was stopped before the answer came")
        finally:
            interrupted.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait((working,))

    @staticmethod
    def _held(row: _Row, error: BackendError) -> RequestResult:
        found = RequestResult(row.key, "held", error.kind, error.message)
        found.request_id, found.http_status = error.request_id, error.status
        return found

    @staticmethod
    def _failed(row: _Row, kind: str, message: str, error: BackendError | None = None) -> RequestResult:
        found = RequestResult(row.key, "failed", kind, message)
        if error is not None:
            found.request_id, found.http_status = error.request_id, error.status
        return found

    def _not_run(self, row: _Row, kind: str | None = None, message: str | None = None) -> RequestResult:
        reason = kind or self._control.stop_reason
        return RequestResult(row.key, "not_run", reason, message or self._control.stop_message)


def _facts(path: str, decoded: Decoded, size: int) -> ImageFacts:
    return ImageFacts(path, decoded.width, decoded.height, decoded.format, size, decoded.sha256, decoded.flags)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
