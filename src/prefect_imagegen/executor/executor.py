"""Drives requests: slot -> claim -> attempt -> verify -> put -> record. Knows core and ports only.

A row that waits holds no slot: one that is to be tried again sleeps, one whose fate has to be found out is parked.
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
from prefect_imagegen.core.request.models import DEFAULT_PRICE_USD, PUBLISHED_PRICES_USD
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.attempt import AttemptRunner
from prefect_imagegen.executor.claims import Claims
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.deferred import DeferredRequests
from prefect_imagegen.executor.failures import FailureHandler
from prefect_imagegen.executor.lookups import Lookups
from prefect_imagegen.executor.pending import Defer, NextStep, PendingRequest, Retry
from prefect_imagegen.executor.slots import Slots
from prefect_imagegen.executor.states import State
from prefect_imagegen.ports import Submission

MOST_INTERNAL = 20
"""So many unexpected errors in a row are no matter of single rows."""
_logger = logging.getLogger(__name__)


class Executor:
    """Makes requests over one provider into one store. Shared by all shards of a process."""

    def __init__(self, context: ExecutorContext) -> None:
        self.slots = Slots(context.concurrency)
        self._context = context
        self._turn = asyncio.Lock()
        self._closing = FailureHandler(context)
        self._lookups = Lookups(context, self._closing)
        self._claims = Claims(context, self._lookups)
        self._calls = AttemptRunner(context, self._claims, self._lookups, self._closing)
        self._internal: list[str] = []
        self._lot = DeferredRequests(context)
        self._came_back = asyncio.Event()

    @property
    def calls(self) -> int:
        """POSTs sent."""
        return self._calls.sent

    @property
    def awaited(self) -> int:
        """POSTs whose answers are awaited without a slot; when as many wait as there are slots, nothing is sent."""
        return self._calls.waiting

    @property
    def idle(self) -> bool:
        """Whether a slot is free and nobody waits for it."""
        return self.slots.used < self.slots.limit.now and not self._turn.locked()

    async def make(self, request: GenerationRequest, key: bytes) -> RequestResult:
        """Bring one request to its end, or to where it has to wait for others: then it is parked, and held so far.

        `settle` says what became of parked ones. Raises on bugs only.
        """
        row = PendingRequest(request, key, self._context.ledger.next_attempt(key))
        step = await self._until_it_waits(row, await self._guarded(row, self._left_behind(row)))
        if isinstance(step, RequestResult):
            return self._finished(row, step)
        if (self._context.control.interrupted.is_set() or self._lot.full) and not row.is_posting:
            return self._finished(row, step.drop())
        self._lot.add(row, step, asyncio.create_task(self._wait_out(row, step)))
        return self._counted(row, replace(step.held))

    async def settle(self) -> list[RequestResult]:
        """Wait for parked requests as long as more than stragglers are among them; the ends of all of them."""
        return [self._ended(row, result) for row, result in await self._lot.empty()]

    async def abandon(self) -> None:
        """Let go of all parked requests, where the run was cancelled from outside."""
        await self._lot.abandon()

    async def _left_behind(self, row: PendingRequest) -> NextStep:
        """What an earlier run left of the row comes first: it needs no slot, no money and no run that goes on."""
        ledger = self._context.ledger
        # Only what has ended can be settled, and what has ended is followed by another attempt.
        if not ledger.is_open(row.key) and not (row.claim_no > 1 and ledger.is_settled(row.key)):
            return Retry()
        found = await self._claims.resume(row)
        if isinstance(found, Submission):
            row.accepted = found
            return Retry()
        return found

    async def _wait_out(self, row: PendingRequest, step: Defer) -> RequestResult:
        while True:
            found = await self._until_it_waits(row, await self._guarded(row, step.wait()))
            if isinstance(found, RequestResult):
                return self._finished(row, found)
            step = found
            self._lot.again(row, step)

    async def _guarded(self, row: PendingRequest, call: Awaitable[NextStep]) -> NextStep:
        """A step of a row; what goes wrong in it ends that row, or holds it once its call may be out.

        A store that cannot be used stops the run; a damaged file in it, and an error of ours, do not.
        """
        try:
            step = await call
        except StoreError as error:
            row.enter(State.TROUBLE)
            if error.kind != "store_damaged":
                # It has been tried for as long as the run may wait: nothing more can be kept.
                self._context.control.interrupt("store", str(error))
            step = self._closing.without_store(row, error)
        except Exception as error:  # noqa: BLE001 - one row's trouble, whatever it is, is no other row's
            row.enter(State.TROUBLE)
            if isinstance(error, ProviderError) and error.kind == "image_damaged":
                step = row.failed(error)  # nothing was called, and nothing is decided about the attempt
            else:
                step = await self._unexpected(row, error)
        else:
            if isinstance(step, RequestResult) and step.error_kind != "internal":
                self._internal.clear()
        self._context.control.moved()
        return step

    async def _unexpected(self, row: PendingRequest, error: Exception) -> NextStep:
        """An error of ours about one row: its traceback once, and the end of the run if it is one of many."""
        text = redact(f"{type(error).__name__}: {error}")
        if text not in self._internal:
            _logger.error("An unexpected error about one row: %s\n%s", text, traceback_of(error))
        self._internal.append(text)
        if len(self._internal) >= MOST_INTERNAL:
            met = f"{len(self._internal)} rows in a row met an unexpected error: {text}"
            self._context.control.stop("internal", met)
        failure = ProviderError("internal", text, request_id=row.request_id)
        if row.may_be_out and not self._context.provider.free:
            kind = "unknown" if row.request_id is None else "submitted"
            return row.held(ProviderError(kind, text, request_id=row.request_id))
        if row.claim is not None:
            await self._closing.leave(row, failure)
        return row.failed(failure)

    async def _until_it_waits(self, row: PendingRequest, step: NextStep) -> RequestResult | Defer:
        while isinstance(step, Retry):
            if step.seconds:
                row.enter(State.BACK_OFF)
                await self._context.control.sleep(step.seconds)
            step = await self._guarded(row, self._next(row))
        return step

    async def _next(self, row: PendingRequest) -> NextStep:
        row.enter(State.REFERENCES)
        return await self._unaddressed(row, in_slot=False) or await self._in_slot(row)

    async def _unaddressed(self, row: PendingRequest, *, in_slot: bool) -> RequestResult | None:
        """Get the row's references to where the provider can fetch them; its end if that fails. Costs no money.

        Pictures that go inside the call are read at the last moment, in its slot: memory holds no more of them.
        """
        context = self._context
        if context.references.inline != in_slot or not row.request.references:
            return None
        if row.accepted is not None or self._barred(row):
            return None
        row.enter(State.REFERENCES)
        try:
            # Pictures are prepared and uploaded: nothing that a run that is told to stop would have to wait for.
            getting = context.references.addresses(row.request, fresh=row.force_upload)
            row.addresses = await context.unless_interrupted(getting, "unsent", 0.0)
        except (StoreError, ProviderError) as error:
            return self._without_addresses(row, error)
        return None

    def _without_addresses(self, row: PendingRequest, error: StoreError | ProviderError) -> RequestResult:
        """The references of a row could not be got ready: nothing was called, so it is no refusal of the row."""
        control = self._context.control
        if control.interrupted.is_set():
            return self._closing.not_run(row)
        if isinstance(error, StoreError):
            control.stop("store", str(error))
            return self._closing.not_run(row, "store", error.message)
        if OUTCOMES[error.kind].scope == "run":
            control.stop(error.kind, error.message)
            return self._closing.not_run(row, error.kind, error.message)
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
        """What becomes of a row that has a slot."""
        control = self._context.control
        if fetching or not self._barred(row):
            return await self._unaddressed(row, in_slot=True) or await self._calls.attempt(row)
        if control.stopped:
            return self._closing.not_run(row)
        return row.failed(ProviderError("model_unavailable", control.dead_models[row.request.model]))

    def _barred(self, row: PendingRequest) -> bool:
        """Whether nothing may be sent for the row any more."""
        return self._context.control.stopped or row.request.model in self._context.control.dead_models

    async def _reserve(self, row: PendingRequest) -> Reservation | None:
        """Set the price of a call aside, waiting for what calls under way leave over; None where the run stops.

        Free calls have no price.
        """
        control, budget = self._context.control, self._context.budget
        default = PUBLISHED_PRICES_USD.get(row.request.model, DEFAULT_PRICE_USD)
        while not control.stopped and not self._context.provider.free:
            found = budget.reserve(row.request.cost_class, default)
            if isinstance(found, Reservation):
                return found
            if found == "over":
                reserved = figure(max(0.0, budget.reserved))
                text = f"{figure(budget.spent)} of {usd(budget.cap or 0.0)} are spent, {reserved} more reserved"
                control.stop("budget", f"{text}, and one more image could exceed the cap")
                return None
            self._came_back.clear()
            await control.unless_stopped(self._came_back.wait())
        return None

    def _free_money(self, row: PendingRequest, step: NextStep) -> None:
        """Give back what was reserved for a call that was not sent; nobody waits for one that may not come back."""
        if row.reservation is not None and row.sent_at is None:
            self._context.budget.release(row.reservation)
            row.reservation = None
        elif row.reservation is not None and not isinstance(step, Retry):
            self._context.budget.detach(row.reservation)
        self._came_back.set()

    def _finished(self, row: PendingRequest, result: RequestResult) -> RequestResult:
        if result.status == "generated":
            self._closing.delivered(row, result.cost_usd)
            self._came_back.set()
        if result.status == "generated" or (row.posts and not row.breaker_notified):
            self._context.control.finished(result)
        return self._ended(row, result)

    @classmethod
    def _ended(cls, row: PendingRequest, result: RequestResult) -> RequestResult:
        row.enter(State(result.status))
        return cls._counted(row, result)

    @staticmethod
    def _counted(row: PendingRequest, result: RequestResult) -> RequestResult:
        result.attempts, result.maybe_paid, result.paid = row.posts, row.maybe_paid, row.paid
        return result
