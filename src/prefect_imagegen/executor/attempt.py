"""One attempt: claim, POST, result, image in the store. Returns the next step, and waits for nothing but the call."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError, StoreError
from prefect_imagegen.core.images.image import BadImageError, Decoded, decode, facts_of
from prefect_imagegen.core.ledger.events import ImageFacts
from prefect_imagegen.core.policy.backoff import backoff
from prefect_imagegen.core.policy.outcomes import HELD_KINDS, OUTCOMES
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.claims import Claims
from prefect_imagegen.executor.context import MORE_IMAGES, ExecutorContext
from prefect_imagegen.executor.failures import FailureHandler, free_call_lost
from prefect_imagegen.executor.lookups import Lookups
from prefect_imagegen.executor.pending import Defer, NextStep, PendingRequest, Retry
from prefect_imagegen.executor.states import State
from prefect_imagegen.failpoints import hit
from prefect_imagegen.ports import Delivery, Submission

COLLECT_TRIES = 5
SUBMIT_GRACE_S = 5.0
"""Seconds that an interrupted run waits for the answers to POSTs under way, so that their ids become durable."""
MOST_REPEATS = 2
"""How often one attempt is sent again with its idempotency key, where the provider honours those."""
STUCK_AT_LEAST_S = 5.0
STUCK_UNMEASURED_S = 60.0
_REFUSALS = (429, 503)
_GONE = (404, 410)
_STRANGE = frozenset({"protocol", "sandbox_mismatch"})
_logger = logging.getLogger(__name__)

Collected = tuple[Delivery, list[Decoded]]
"""A delivery, and its images decoded, in order."""


class AttemptRunner:
    """Makes attempts. Every paid call has a claim of its own; an accepted call is fetched, never bought again."""

    def __init__(self, context: ExecutorContext, claims: Claims, lookups: Lookups, failures: FailureHandler) -> None:
        self.sent = 0
        """POSTs sent."""
        self.waiting = 0
        """POSTs whose answers are awaited without a slot."""
        self._context = context
        self._claims = claims
        self._lookups = lookups
        self._failures = failures
        self._stuck = 0

    async def attempt(self, row: PendingRequest) -> NextStep:
        """Make one claim and one POST and fetch the result; or fetch the result of a call that was accepted before."""
        submission: Submission | NextStep | None = row.accepted
        if submission is None:
            row.enter(State.CLAIM)
        if submission is None and self._context.provider.abilities.claims:
            submission = await self._claims.win(row)
        if submission is None:
            if (result := await self._claims.adopt(row)) is not None:
                return result
            if not await self._context.wait_for_heartbeat():
                return await self._failures.handle(
                    row, ProviderError("unsent", "the run stopped before the call was sent")
                )
            if self._claims.is_stale(row):
                # Calls are looked up around the time of their claim, so that an old claim must not be used.
                return await self._failures.handle(
                    row, ProviderError("unsent", "its claim grew old before it was sent")
                )
            return await self._send(row)
        if not isinstance(submission, Submission):
            return submission
        row.accepted = None
        return await self._receive(row, submission)

    async def _send(self, row: PendingRequest) -> NextStep:
        """Send one POST. If its answer takes longer than usual, the row is deferred and its slot becomes free."""
        row.enter(State.POST)
        context = self._context
        call = asyncio.ensure_future(self._post(row))
        patience = context.submits.patience(at_least=STUCK_AT_LEAST_S, unmeasured=STUCK_UNMEASURED_S)
        try:
            await asyncio.wait((call,), timeout=patience if context.provider.abilities.claims else None)
            # At most as many answers are awaited without a slot as there are slots, so that an API that answers
            # nothing gets at most twice that many calls. The number may have changed while we waited.
            while not call.done() and self.waiting >= context.concurrency.most:
                await asyncio.wait((call,), timeout=patience)
        except BaseException:
            call.cancel()
            raise
        if call.done():
            if await self._may_repeat(row, call):
                return await self._send(row)
            return await self._answered(row, call)
        context.submits.add(patience)
        self.waiting += 1
        call.add_done_callback(self._no_longer_awaited)
        error = ProviderError("unknown", f"the call was sent and not answered within {patience:.0f} s")
        return Defer(lambda: self._await_answer(row, call), row.held(error), call)

    async def _may_repeat(self, row: PendingRequest, call: "asyncio.Task[Submission]") -> bool:
        """Whether a POST that may have been taken is sent again: the same attempt, with the same idempotency key.

        Only by the run that made the claim, while that is fresh enough for a POST: nobody else sends under it.
        """
        context, error = self._context, call.exception()
        if not context.provider.abilities.idempotency_key or not isinstance(error, ProviderError):
            return False
        is_lost = OUTCOMES[error.kind].accepted in ("unknown", "answered_5xx")
        if not is_lost or row.repeats >= MOST_REPEATS or not await context.wait_for_heartbeat():
            return False
        is_fresh = not self._claims.is_stale(row)
        row.repeats += is_fresh
        return is_fresh

    def _no_longer_awaited(self, call: "asyncio.Task[Submission]") -> None:
        self.waiting -= 1
        if not call.cancelled():
            call.exception()  # mark it as retrieved: the row has got it, or has been given up

    async def _await_answer(self, row: PendingRequest, call: "asyncio.Task[Submission]") -> NextStep:
        await asyncio.wait((call,))
        row.in_use = True
        try:
            return await self._answered(row, call)
        finally:
            row.in_use = False

    async def _answered(self, row: PendingRequest, call: "asyncio.Task[Submission]") -> NextStep:
        try:
            submission = await call
        except ProviderError as error:
            return await self._after_refused_post(row, error)
        return await self._receive(row, submission)

    async def _post(self, row: PendingRequest) -> Submission:
        """Send the call. It ends with its answer, with its connection, after --deadline, or by an interruption."""
        context, queues = self._context, self._context.provider.abilities.queue
        row.posts += 1
        row.is_posting = True
        self.sent += 1
        started = row.sent_at = context.clock.monotonic()
        # A pool has time limits of its own for each of its workers.
        limit = context.policy.deadline if context.provider.abilities.claims else None
        key = {"idempotency_key": row.attempt_id} if context.provider.abilities.idempotency_key else {}
        call = asyncio.wait_for(context.provider.submit(row.request, row.addresses, **key), limit)
        grace = SUBMIT_GRACE_S if queues else context.drain_left
        try:
            submission = await context.unless_interrupted(call, "unknown", grace)
        except TimeoutError:
            context.control.check_progress("a call was sent and not answered")
            raise ProviderError("unknown", f"the call was sent and not answered within {limit:.0f} s") from None
        except ProviderError as error:
            if error.status in _REFUSALS and context.provider.abilities.claims:
                context.concurrency.answered(refused=True, sent=started, at=context.clock.monotonic())
            raise
        finally:
            row.is_posting = False
            row.sending_s = context.clock.monotonic() - (started if row.claimed_at is None else row.claimed_at)
        row.request_id = submission.request_id
        context.concurrency.answered(refused=False, sent=started, at=context.clock.monotonic())
        context.submits.add(context.clock.monotonic() - started)
        context.control.progressed()
        return submission

    async def _receive(self, row: PendingRequest, submission: Submission) -> NextStep:
        """Fetch and store the image of an accepted call. Its request_id is durable before the first poll."""
        row.enter(State.COLLECT)
        row.request_id = submission.request_id or row.request_id
        storing_id: asyncio.Task[None] | None = None
        if submission.request_id is not None and row.stored_request_id is None:
            storing_id = asyncio.ensure_future(self._store_request_id(row, submission.request_id))
            if submission.open_body is None:
                # Polling goes on beside a store that is slow to take the id.
                await asyncio.wait((storing_id,), timeout=SUBMIT_GRACE_S)
        collecting = asyncio.ensure_future(self._collect(row, submission))
        try:
            patience = await self._wait_for(collecting, submission)
            if storing_id is not None:
                await storing_id
        except BaseException:
            for task in filter(None, (collecting, storing_id)):
                task.cancel()
            raise
        if collecting.done():
            return await self._deliver(row, submission, collecting)
        # The API works on the job: it is polled without a slot, so that other calls can be sent.
        error = ProviderError("submitted", f"no result after {patience:.0f} s", request_id=submission.request_id)
        return Defer(lambda: self._await_stuck(row, submission, collecting), row.held(error), collecting)

    async def _wait_for(self, collecting: "asyncio.Task[Collected]", submission: Submission) -> float:
        """Wait for a result as long as others should wait for the slot; that time in seconds."""
        patience = self._context.totals.patience(at_least=STUCK_AT_LEAST_S, unmeasured=STUCK_UNMEASURED_S)
        # An open v1 answer keeps its slot; and at most as many jobs are polled without a slot as there are slots.
        keeps_slot = submission.open_body is not None or self._stuck >= self._context.concurrency.most
        await asyncio.wait((collecting,), timeout=None if keeps_slot else patience)
        return patience

    async def _await_stuck(
        self, row: PendingRequest, submission: Submission, collecting: "asyncio.Task[Collected]"
    ) -> NextStep:
        self._stuck += 1
        try:
            await asyncio.wait((collecting,))
            row.in_use = True
            return await self._deliver(row, submission, collecting)
        finally:
            row.in_use = False
            self._stuck -= 1

    async def _deliver(
        self, row: PendingRequest, submission: Submission, collecting: "asyncio.Task[Collected]"
    ) -> NextStep:
        """Store the image of an accepted call, or decide what follows from its failure."""
        context = self._context
        try:
            delivery, decoded = await collecting
        except ProviderError as error:
            error.request_id = error.request_id or submission.request_id
            return await self._after_failed_result(row, error)
        hit("bytes")
        facts = await self._stored(row, delivery, decoded)
        hit("image")
        if row.sent_at is not None:
            context.totals.add(context.clock.monotonic() - row.sent_at)
        context.control.progressed()
        return await context.delivered(row, facts, delivery)

    async def _stored(self, row: PendingRequest, delivery: Delivery, decoded: Sequence[Decoded]) -> ImageFacts:
        """Store the image, after any further ones of the same answer; the facts of the image that the store holds."""
        row.enter(State.PUT)
        context, key, extension = self._context, row.key.hex(), row.request.extension
        for number, (data, further) in enumerate(zip(delivery.more, decoded[1:], strict=True), 2):
            await context.store.create(layout.more_image(key, number, extension), data, further.content_type)
        path = layout.image(key, extension)
        facts = facts_of(path, decoded[0], len(delivery.data))
        if not await context.store.create(path, delivery.data, decoded[0].content_type):
            facts = await context.stored_facts(path)
        return replace(facts, flags=(*facts.flags, MORE_IMAGES)) if delivery.more else facts

    async def _collect(self, row: PendingRequest, submission: Submission) -> Collected:
        """Fetch and decode the images; bad bytes are fetched again, after growing pauses, and never bought again."""
        context = self._context
        failure = ProviderError("bad_output", "no bytes came", request_id=submission.request_id)
        for failures in range(COLLECT_TRIES):
            if failures:
                row.enter(State.COLLECT)
                pause = context.clock.sleep(backoff(failures, context.jitter()))
                await context.unless_interrupted(pause, "submitted", 0.0)
            # The v1 answer that is being read would be lost; a job can be polled by the next run.
            grace = 0.0 if submission.open_body is None else context.drain_left
            try:
                delivery = await context.unless_interrupted(context.provider.collect(submission), "submitted", grace)
                row.enter(State.VERIFY)
                return delivery, [await context.run_decode(decode, data) for data in (delivery.data, *delivery.more)]
            except BadImageError as error:
                if not context.provider.abilities.claims:
                    raise ProviderError("worker_failed", str(error)) from error
                failure = ProviderError("bad_output", str(error), request_id=submission.request_id)
            except ProviderError as error:
                if error.kind != "bad_output":
                    raise
                failure = error
            if submission.request_id is None:
                raise ProviderError("unknown", f"the answer was bad and named no request_id: {failure.message}")
        raise failure

    async def _after_refused_post(self, row: PendingRequest, error: ProviderError) -> NextStep:
        """Decide what follows from a POST that was not answered with success."""
        outcome, context = OUTCOMES[error.kind], self._context
        if not context.provider.abilities.claims:
            return await self._failures.handle(row, free_call_lost(error))
        if error.kind in _STRANGE and (error.status or 0) < 400:
            return await self._after_strange_answer(row, error)
        if outcome.accepted == "answered_5xx" and context.provider.abilities.queue:
            step = await self._lookups.after_5xx(row, error)
            if not isinstance(step, Submission):
                return step
            row.accepted = None
            return await self._receive(row, step)
        if error.kind == "unknown":
            return self._lookups.unknown(row, error)
        return await self._failures.handle(row, error)

    async def _after_strange_answer(self, row: PendingRequest, error: ProviderError) -> NextStep:
        """An unexpected server answered a POST, or redirected it: it may have been accepted, and the run stops."""
        self._context.control.stop(error.kind, error.message)
        if error.request_id is None:
            return self._lookups.unknown(row, ProviderError("unknown", error.message, status=error.status))
        row.request_id = error.request_id
        await self._store_request_id(row, error.request_id)
        return self._not_yet(row, error)

    async def _after_failed_result(self, row: PendingRequest, error: ProviderError) -> NextStep:
        """Decide what follows from an accepted call without an image. With a known id it is never looked up by body."""
        if not self._context.provider.abilities.claims:
            return await self._failures.handle(row, free_call_lost(error))
        if error.kind == "unknown" and error.request_id is None:
            return self._lookups.unknown(row, error)
        if error.kind == "bad_output" or error.kind in HELD_KINDS:
            return await self._after_missing_result(row, error)
        outcome = OUTCOMES[error.kind]
        if outcome.scope == "run" and error.kind != "sandbox_mismatch":
            # The key or the store failed while a paid result was fetched: the next run fetches it.
            self._context.control.stop(error.kind, error.message)
        elif outcome.accepted == "yes":
            return await self._failures.handle(row, error)
        return self._not_yet(row, error)

    async def _after_missing_result(self, row: PendingRequest, error: ProviderError) -> NextStep:
        """A result that is missing or no image counts as not ready, until outputs are deleted; then the row fails."""
        is_gone, is_junk = error.status in _GONE, error.kind == "bad_output"
        if is_gone and not self._context.provider.abilities.queue and await self._lookups.is_under_another_id(row):
            return Retry()
        if not (is_gone or is_junk) or row.ownership == "other" or not self._is_past_its_time(row):
            return self._not_yet(row, error)
        if not is_junk:
            error.kind = "output_lost"
        return await self._failures.handle(row, error)

    def _not_yet(self, row: PendingRequest, error: ProviderError) -> RequestResult:
        """Hold a row whose result cannot be fetched now: every later run tries again until outputs are deleted."""
        kind = "other_account" if row.ownership == "other" else "submitted"
        return row.held(ProviderError(kind, error.message, status=error.status, request_id=error.request_id))

    def _is_past_its_time(self, row: PendingRequest) -> bool:
        """Whether the outputs of the row's call are deleted for good; before that a missing one may appear again."""
        outputs_live = self._context.provider.abilities.outputs_live
        return outputs_live is not None and self._lookups.age(row) > outputs_live.total_seconds()

    async def _store_request_id(self, row: PendingRequest, request_id: str) -> None:
        """Store the id beside its claim, then record it in the ledger; if the store refuses, the run stops sending."""
        context = self._context
        try:
            await context.ledger.record_request_id(row.key, row.claim_no, request_id)
        except StoreError as error:
            _logger.warning("The request_id %s could not be stored beside its claim: %s", request_id, error.message)
            if error.kind != "store_conflict":
                context.control.stop("store", f"a request_id could not be stored: {error.message}")
        else:
            row.stored_request_id = request_id
            hit("request_id")
        await context.record(row, "submitted", request_id=request_id)
