"""Drives requests: slot -> claim -> attempt -> verify -> put -> record. Knows core and ports only.

A row that waits holds no slot: one that is to be tried again sleeps, one whose fate has to be found out is parked.
"""

import asyncio
from dataclasses import replace

from prefect_imagegen.core.budget import Reservation
from prefect_imagegen.core.errors import BackendError, StoreError
from prefect_imagegen.core.models import DEFAULT_PRICE_USD, PUBLISHED_PRICES_USD
from prefect_imagegen.core.outcomes import OUTCOMES
from prefect_imagegen.core.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.calls import Calls
from prefect_imagegen.executor.claims import Claims
from prefect_imagegen.executor.closing import Closing
from prefect_imagegen.executor.kit import Kit
from prefect_imagegen.executor.lot import Lot
from prefect_imagegen.executor.rows import Again, Park, Row, Step
from prefect_imagegen.executor.slots import Slots
from prefect_imagegen.ports import Submission


class Executor:
    """Makes requests over one backend into one store. Shared by all shards of a process."""

    def __init__(self, kit: Kit) -> None:
        self.slots = Slots(kit.concurrency)
        self._kit = kit
        self._turn = asyncio.Lock()
        self._closing = Closing(kit)
        self._claims = Claims(kit, self._closing)
        self._calls = Calls(kit, self._claims, self._closing)
        self._lot = Lot(kit)
        self._came_back = asyncio.Event()

    @property
    def calls(self) -> int:
        """POSTs sent."""
        return self._calls.sent

    @property
    def idle(self) -> bool:
        """Whether a slot is free and nobody waits for it."""
        return self.slots.used < self.slots.limit.now and not self._turn.locked()

    async def make(self, request: GenerationRequest, key: bytes) -> RequestResult:
        """Bring one request to its end, or to where it has to wait for others: then it is parked, and held so far.

        `settle` says what became of parked ones. Raises on bugs only.
        """
        row = Row(request, key, self._kit.ledger.next_attempt(key))
        step = await self._until_it_waits(row, await self._left_behind(row))
        if isinstance(step, RequestResult):
            return self._finished(row, step)
        if self._kit.control.interrupted.is_set() or self._lot.full:
            return self._finished(row, step.drop())
        self._lot.add(row, step, asyncio.create_task(self._wait_out(row, step)))
        return self._counted(row, replace(step.held))

    async def settle(self) -> list[RequestResult]:
        """Wait for parked requests as long as more than stragglers are among them; the ends of all of them."""
        return [self._counted(row, result) for row, result in await self._lot.empty()]

    async def _left_behind(self, row: Row) -> Step:
        """What an earlier run left of the row comes first: it needs no slot, no money and no run that goes on."""
        if not self._kit.ledger.is_open(row.key):
            return Again()
        try:
            found = await self._claims.resume(row)
        except StoreError as error:
            self._kit.control.stop("store", str(error))
            return row.held(BackendError("unknown", f"what an earlier run left cannot be read: {error.message}"))
        if isinstance(found, Submission):
            row.accepted = found
            return Again()
        return found

    async def _wait_out(self, row: Row, step: Park) -> RequestResult:
        while True:
            found = await self._until_it_waits(row, await self._parked(step))
            if isinstance(found, RequestResult):
                return self._finished(row, found)
            step = found
            self._lot.again(row, step)

    async def _parked(self, step: Park) -> Step:
        try:
            return await step.wait()
        except StoreError as error:
            self._kit.control.stop("store", str(error))
            return step.drop()

    async def _until_it_waits(self, row: Row, step: Step) -> RequestResult | Park:
        while isinstance(step, Again):
            if step.seconds:
                await self._kit.control.sleep(step.seconds)
            step = await self._unaddressed(row, in_slot=False) or await self._in_slot(row)
        return step

    async def _unaddressed(self, row: Row, *, in_slot: bool) -> RequestResult | None:
        """Get the row's references to where the backend can fetch them; its end if that fails. Costs no money.

        Pictures that go inside the call are read at the last moment, in its slot: memory holds no more of them.
        """
        kit = self._kit
        if kit.references.inline != in_slot or not row.request.references:
            return None
        if row.accepted is not None or self._barred(row):
            return None
        try:
            row.addresses = await kit.references.addresses(row.request, fresh=row.fresh)
        except StoreError as error:
            kit.control.stop("store", str(error))
            return self._closing.not_run(row, "store", error.message)
        except BackendError as error:
            if OUTCOMES[error.kind].scope == "run":
                kit.control.stop(error.kind, error.message)
                return self._closing.not_run(row, error.kind, error.message)
            return row.failed(error)
        return None

    async def _in_slot(self, row: Row) -> Step:
        control, fetching = self._kit.control, row.accepted is not None
        if not fetching:
            row.reservation = await self._reserve(row)
        # One row at a time waits for a rate token and then for a slot: nobody waits for a token with a slot in
        # hand, and tokens do not pile up while all slots are taken.
        async with self._turn:
            if not control.stopped and not fetching:
                await self._kit.limiter.acquire()
            await self.slots.acquire()
        row.busy = True
        try:
            if fetching or not self._barred(row):
                step = await self._unaddressed(row, in_slot=True) or await self._calls.attempt(row)
            elif control.stopped:
                step = self._closing.not_run(row)
            else:
                step = row.failed(BackendError("model_unavailable", control.dead_models[row.request.model]))
        except StoreError as error:
            control.stop("store", str(error))
            if row.claimed_at is None:
                step = self._closing.not_run(row, "store", error.message)
            else:
                kind = "unknown" if row.kept_id is None else "submitted"
                text = f"the store failed after the call: {error.message}"
                step = row.held(BackendError(kind, text, request_id=row.kept_id))
        finally:
            row.busy, row.addresses = False, ()
            self.slots.release()
        self._free_money(row, step)
        return step

    def _barred(self, row: Row) -> bool:
        """Whether nothing may be sent for the row any more."""
        return self._kit.control.stopped or row.request.model in self._kit.control.dead_models

    async def _reserve(self, row: Row) -> Reservation | None:
        """Set the price of a call aside, waiting for what calls under way leave over; None where the run stops.

        Free calls have no price.
        """
        control, budget = self._kit.control, self._kit.budget
        default = PUBLISHED_PRICES_USD.get(row.request.model, DEFAULT_PRICE_USD)
        while not control.stopped and not self._kit.backend.free:
            found = budget.reserve(row.request.cost_class, default)
            if isinstance(found, Reservation):
                return found
            if found == "over":
                text = f"{budget.spent:.4f} of {budget.cap:.4f} USD are spent, {budget.reserved:.4f} more reserved"
                control.stop("budget", f"{text}, and one more image could exceed the cap")
                return None
            self._came_back.clear()
            await control.unless_stopped(self._came_back.wait())
        return None

    def _free_money(self, row: Row, step: Step) -> None:
        """Give back what was reserved for a call that was not sent; nobody waits for one that may not come back."""
        if row.reservation is not None and row.sent_at is None:
            self._kit.budget.release(row.reservation)
            row.reservation = None
        elif row.reservation is not None and not isinstance(step, Again):
            self._kit.budget.strand(row.reservation)
        self._came_back.set()

    def _finished(self, row: Row, result: RequestResult) -> RequestResult:
        if result.status == "generated":
            self._closing.delivered(row, result.cost_usd)
            self._came_back.set()
        if result.status == "generated" or (row.posts and not row.told):
            self._kit.control.finished(result)
        return self._counted(row, result)

    @staticmethod
    def _counted(row: Row, result: RequestResult) -> RequestResult:
        result.attempts, result.maybe_paid, result.paid = row.posts, row.maybe_paid, row.paid
        return result
