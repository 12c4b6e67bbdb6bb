"""Drives requests: slot -> claim -> attempt -> verify -> put -> record. Knows core and ports only.

A request that waits holds no slot: before a retry it sleeps; while its outcome is unknown it is deferred.
"""

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import replace

from prefect_imagegen.core.errors import ProviderError, StoreError
from prefect_imagegen.core.money import figure, usd
from prefect_imagegen.core.policy.budget import Reservation
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from prefect_imagegen.core.redact import redact, traceback_of
from prefect_imagegen.core.request.models import price_of
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.attempt import AttemptRunner
from prefect_imagegen.executor.claims import Claims
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.deferred import DeferredRequests
from prefect_imagegen.executor.failures import FailureHandler
from prefect_imagegen.executor.lookups import KEEPS_NO_HISTORY, Lookups
from prefect_imagegen.executor.pending import Defer, NextStep, PendingRequest, Retry
from prefect_imagegen.executor.slots import Slots
from prefect_imagegen.executor.states import State
from prefect_imagegen.ports import Submission

MOST_INTERNAL = 20
"""The run stops after this many unexpected errors in succession: they are not the fault of single rows."""
_logger = logging.getLogger(__name__)


class Executor:
    """Makes the images of requests with one provider, into one store. Shared by all shards of a process."""

    def __init__(self, context: ExecutorContext) -> None:
        self.slots = Slots(context.concurrency)
        self._context = context
        self._turn = asyncio.Lock()
        self._failures = FailureHandler(context)
        self._lookups = Lookups(context, self._failures)
        self._claims = Claims(context, self._lookups)
        self._attempts = AttemptRunner(context, self._claims, self._lookups, self._failures)
        self._unexpected_errors: list[str] = []
        self._deferred = DeferredRequests(context)
        self._money_freed = asyncio.Event()

    @property
    def calls(self) -> int:
        """The number of POSTs sent."""
        return self._attempts.sent

    @property
    def awaited(self) -> int:
        """The number of POSTs whose answers are awaited without a slot. At most as many as there are slots."""
        return self._attempts.waiting

    @property
    def idle(self) -> bool:
        """Whether a slot is free and no request waits for it."""
        return self.slots.used < self.slots.limit.now and not self._turn.locked()

    async def make(self, request: GenerationRequest, key: bytes) -> RequestResult:
        """Bring one request to its end, or to the point where it has to wait: then it is deferred.

        The result of a deferred request is `held` for now; `finish_deferred` returns its last one. Raises on bugs only.
        """
        row = PendingRequest(request, key, self._context.ledger.next_attempt(key))
        step = await self._until_it_waits(row, await self._guarded(row, self._left_behind(row)))
        if isinstance(step, RequestResult):
            return self._finished(row, step)
        if (self._context.control.interrupted.is_set() or self._deferred.full) and not row.is_posting:
            return self._finished(row, step.drop())
        self._deferred.add(row, step, asyncio.create_task(self._wait_out(row, step)))
        return self._with_counts(row, replace(step.held))

    async def finish_deferred(self) -> list[RequestResult]:
        """Wait for the deferred requests until only stragglers are left; the results of all of them."""
        return [self._end(row, result) for row, result in await self._deferred.finish()]

    async def abandon(self) -> None:
        """Cancel all deferred requests, where the run was cancelled from outside."""
        await self._deferred.abandon()

    async def _left_behind(self, row: PendingRequest) -> NextStep:
        """Go on with what earlier runs left of the row. That needs no slot and no money, and a stopped run does it."""
        ledger = self._context.ledger
        # A finished key has an ended attempt, so its next claim number is above 1: no other key is looked up.
        if not ledger.is_open(row.key) and not (row.claim_no > 1 and ledger.is_finished(row.key)):
            return Retry()
        step = await self._claims.resume(row)
        if isinstance(step, Submission):
            row.accepted = step
            return Retry()
        return step

    async def _wait_out(self, row: PendingRequest, step: Defer) -> RequestResult:
        while True:
            following = await self._until_it_waits(row, await self._guarded(row, step.wait()))
            if isinstance(following, RequestResult):
                return self._finished(row, following)
            step = following
            self._deferred.update(row, step)

    async def _guarded(self, row: PendingRequest, call: Awaitable[NextStep]) -> NextStep:
        """Await a step of a row. An error in it ends this row only, as failed, or as held once its call may be out.

        A store that cannot be used stops the run; a damaged file in it, or a bug, does not.
        """
        try:
            step = await call
        except StoreError as error:
            row.enter(State.TROUBLE)
            if error.kind != "store_damaged":
                # It has been tried for as long as the run may wait: nothing more can be kept.
                self._context.control.interrupt("store", str(error))
            step = self._failures.without_store(row, error)
        except Exception as error:  # noqa: BLE001 - no error of one row, whatever it is, may end the other rows
            row.enter(State.TROUBLE)
            if isinstance(error, ProviderError) and error.kind == "image_damaged":
                step = row.failed(error)  # nothing was called, and nothing is decided about the attempt
            else:
                step = await self._unexpected(row, error)
        else:
            if isinstance(step, RequestResult) and step.error_kind != "internal":
                self._unexpected_errors.clear()
        self._context.control.moved()
        return step

    async def _unexpected(self, row: PendingRequest, error: Exception) -> NextStep:
        """End a row after a bug. The traceback is logged once; the run stops if many rows in succession meet one."""
        text = redact(f"{type(error).__name__}: {error}")
        if text not in self._unexpected_errors:
            _logger.error("An unexpected error about one row: %s\n%s", text, traceback_of(error))
        self._unexpected_errors.append(text)
        if len(self._unexpected_errors) >= MOST_INTERNAL:
            message = f"{len(self._unexpected_errors)} rows in a row met an unexpected error: {text}"
            self._context.control.stop("internal", message)
        failure = ProviderError("internal", text, request_id=row.request_id)
        if row.may_be_out and self._context.provider.abilities.claims:
            kind = "unknown" if row.request_id is None else "submitted"
            return row.held(ProviderError(kind, text, request_id=row.request_id))
        if row.claim is not None:
            await self._failures.record_failure(row, failure)
        return row.failed(failure)

    async def _until_it_waits(self, row: PendingRequest, step: NextStep) -> RequestResult | Defer:
        while isinstance(step, Retry):
            if step.seconds:
                row.enter(State.BACK_OFF)
                await self._context.control.sleep(step.seconds)
            step = await self._guarded(row, self._attempt_once(row))
        return step

    async def _attempt_once(self, row: PendingRequest) -> NextStep:
        row.enter(State.REFERENCES)
        return await self._unaddressed(row, in_slot=False) or await self._in_slot(row)

    async def _unaddressed(self, row: PendingRequest, *, in_slot: bool) -> RequestResult | None:
        """Get addresses for the row's references; the row's result if that fails. Costs no money.

        Addresses that hold the images themselves are made in the slot, just before the call, so that memory holds few.
        """
        context = self._context
        if context.references.inline != in_slot or not row.request.references:
            return None
        if row.accepted is not None or self._barred(row):
            return None
        row.enter(State.REFERENCES)
        try:
            # Preparing and uploading images is not paid for, so that an interruption ends it at once.
            preparing = context.references.addresses(row.request, force_upload=row.force_upload)
            row.addresses = await context.unless_interrupted(preparing, "unsent", 0.0)
        except (StoreError, ProviderError) as error:
            return self._without_addresses(row, error)
        return None

    def _without_addresses(self, row: PendingRequest, error: StoreError | ProviderError) -> RequestResult:
        """The result of a row whose references could not be prepared: nothing was sent, so the API refused nothing."""
        control = self._context.control
        if control.interrupted.is_set():
            return self._failures.not_run(row)
        if isinstance(error, StoreError):
            control.stop("store", str(error))
            return self._failures.not_run(row, "store", error.message)
        if OUTCOMES[error.kind].scope == "run":
            control.stop(error.kind, error.message)
            return self._failures.not_run(row, error.kind, error.message)
        kind = error.kind if error.kind in ("reference_unreadable", "reference_busy") else "upload_failed"
        return row.failed(ProviderError(kind, error.message, status=error.status))

    async def _in_slot(self, row: PendingRequest) -> NextStep:
        row.enter(State.SLOT)
        control, fetching = self._context.control, row.accepted is not None
        if not fetching:
            row.reservation = await self._reserve(row)
        # One row at a time waits for a rate token and then for a slot: nobody waits for a token with a slot in
        # hand, and tokens do not pile up while all slots are taken.
        async with self._turn:
            if not control.stopped and not fetching:
                await self._context.limiter.acquire()
                control.moved()
            await self.slots.acquire()
        row.in_use = True
        step: NextStep | None = None
        try:
            step = await self._guarded(row, self._worked(row, fetching=fetching))
        finally:
            row.in_use, row.addresses = False, ()
            self.slots.release()
        self._free_money(row, step)
        return step

    async def _worked(self, row: PendingRequest, *, fetching: bool) -> NextStep:
        """Work on a row that has a slot: attempt it, unless nothing may be sent for it any more."""
        control = self._context.control
        if fetching or not self._barred(row):
            return await self._unaddressed(row, in_slot=True) or await self._attempts.attempt(row)
        if control.stopped:
            return self._failures.not_run(row)
        return row.failed(ProviderError("model_unavailable", control.dead_models[row.request.model]))

    def _barred(self, row: PendingRequest) -> bool:
        """Whether nothing may be sent for the row any more."""
        return self._context.control.stopped or row.request.model in self._context.control.dead_models

    async def _reserve(self, row: PendingRequest) -> Reservation | None:
        """Reserve the price of a call, if necessary after waiting for the money of calls under way.

        None if the run stops, and for free calls.
        """
        control, budget = self._context.control, self._context.budget
        default = price_of(row.request.cost_class)
        while not control.stopped and self._context.provider.abilities.claims:
            answer = budget.reserve(row.request.cost_class, default)
            if isinstance(answer, Reservation):
                return answer
            if answer == "over":
                reserved = figure(max(0.0, budget.reserved))
                text = f"{figure(budget.spent)} of {usd(budget.cap or 0.0)} are spent, {reserved} more reserved"
                control.stop("budget", f"{text}, and one more image could exceed the cap")
                return None
            self._money_freed.clear()
            await control.unless_stopped(self._money_freed.wait())
        return None

    def _free_money(self, row: PendingRequest, step: NextStep) -> None:
        """Release the reservation of a call that was not sent; detach that of one whose end may take long."""
        if row.reservation is not None and row.sent_at is None:
            self._context.budget.release(row.reservation)
            row.reservation = None
        elif row.reservation is not None and not isinstance(step, Retry):
            self._context.budget.detach(row.reservation)
        self._money_freed.set()

    def _finished(self, row: PendingRequest, result: RequestResult) -> RequestResult:
        if result.status == "generated":
            self._failures.delivered(row, result.cost_usd)
            self._money_freed.set()
        if result.status == "generated" or (row.posts and not row.breaker_notified):
            self._context.control.finished(result)
        return self._end(row, result)

    def _end(self, row: PendingRequest, result: RequestResult) -> RequestResult:
        abilities = self._context.provider.abilities
        if result.error_kind == "unknown" and abilities.claims and not abilities.history:
            # However the call was lost, by a stop or a bug too: nobody can look it up, and the next run does not try.
            result.error_kind = "no_history"
            result.error_message = f"{result.error_message}; {KEEPS_NO_HISTORY}"
        row.enter(State(result.status))
        return self._with_counts(row, result)

    @staticmethod
    def _with_counts(row: PendingRequest, result: RequestResult) -> RequestResult:
        result.attempts, result.maybe_paid, result.paid = row.posts, row.maybe_paid, row.paid
        return result
