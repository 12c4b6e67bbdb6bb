"""One attempt: claim, POST, result, store. Says how the row goes on; waits for nothing but the call itself."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import BackendError, StoreError
from prefect_imagegen.core.events import ImageFacts
from prefect_imagegen.core.image import BadImageError, Decoded, decode, facts_of
from prefect_imagegen.core.outcomes import HELD_KINDS, OUTCOMES
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.core.retry import backoff
from prefect_imagegen.crashpoints import reached
from prefect_imagegen.executor.claims import Claims
from prefect_imagegen.executor.closing import Closing
from prefect_imagegen.executor.kit import MORE_IMAGES, Kit
from prefect_imagegen.executor.lookups import Lookups
from prefect_imagegen.executor.rows import Again, Park, Row, Step
from prefect_imagegen.ports import Delivery, Submission

COLLECT_TRIES = 5
OUTPUTS_LIVE = timedelta(days=8)
"""Segmind keeps outputs for seven days."""
SUBMIT_GRACE_S = 5.0
"""How long an interrupted run waits for the answers to POSTs under way, so that their ids become durable."""
STUCK_AT_LEAST_S = 5.0
STUCK_UNMEASURED_S = 60.0
_REFUSALS = (429, 503)
_GONE = (404, 410)
_STRANGE = frozenset({"protocol", "sandbox_mismatch"})
_logger = logging.getLogger(__name__)

Collected = tuple[Delivery, list[Decoded]]


class Calls:
    """Makes attempts. A paid call has a claim of its own, and what was accepted is fetched, never bought again."""

    def __init__(self, kit: Kit, claims: Claims, lookups: Lookups, closing: Closing) -> None:
        self.sent = 0
        self.waiting = 0
        """POSTs whose answers are awaited without a slot."""
        self._kit = kit
        self._claims = claims
        self._lookups = lookups
        self._closing = closing
        self._stuck = 0

    async def attempt(self, row: Row) -> Step:
        """One claim, one POST, one result; or the result of a call that was accepted before."""
        submission: Submission | Step | None = row.accepted
        if submission is None and not self._kit.backend.free:
            submission = await self._claims.win(row)
        if submission is None:
            if (found := await self._claims.adopt(row)) is not None:
                return found
            if not await self._kit.vouched():
                return await self._closing.close(
                    row, BackendError("unsent", "the run stopped before the call was sent")
                )
            if self._claims.is_stale(row):
                # Whoever looks for a call looks around the time of its claim: an old one is not used any more.
                return await self._closing.close(row, BackendError("unsent", "its claim grew old before it was sent"))
            return await self._send(row)
        if not isinstance(submission, Submission):
            return submission
        row.accepted = None
        return await self._receive(row, submission)

    async def _send(self, row: Row) -> Step:
        """One POST. Its slot is given away when it takes longer than is usual; its answer is awaited all the same."""
        kit = self._kit
        call = asyncio.ensure_future(self._post(row))
        patience = kit.submits.patience(at_least=STUCK_AT_LEAST_S, unmeasured=STUCK_UNMEASURED_S)
        try:
            await asyncio.wait((call,), timeout=None if kit.backend.free else patience)
            # No more answers are awaited beside the slots than there are slots, so a black hole takes twice that at
            # most. Others may have given their slots away meanwhile, so this is asked when it is our turn.
            while not call.done() and self.waiting >= kit.concurrency.most:
                await asyncio.wait((call,), timeout=patience)
        except BaseException:
            call.cancel()
            raise
        if call.done():
            return await self._answered(row, call)
        kit.submits.add(patience)
        self.waiting += 1
        call.add_done_callback(self._no_longer_awaited)
        error = BackendError("unknown", f"the call was sent and not answered within {patience:.0f} s")
        return Park(lambda: self._await_answer(row, call), row.held(error), call)

    def _no_longer_awaited(self, call: "asyncio.Task[Submission]") -> None:
        self.waiting -= 1
        if not call.cancelled():
            call.exception()  # it was heard, or the row has been given up

    async def _await_answer(self, row: Row, call: "asyncio.Task[Submission]") -> Step:
        await asyncio.wait((call,))
        row.busy = True
        try:
            return await self._answered(row, call)
        finally:
            row.busy = False

    async def _answered(self, row: Row, call: "asyncio.Task[Submission]") -> Step:
        try:
            submission = await call
        except BackendError as error:
            return await self._after_refused_post(row, error)
        return await self._receive(row, submission)

    async def _post(self, row: Row) -> Submission:
        """Send the call. It ends by its answer, by the connection, or after --deadline; only a stop cuts it earlier."""
        kit, queues = self._kit, self._kit.backend.queues
        row.posts += 1
        row.is_posting = True
        self.sent += 1
        started = row.sent_at = kit.clock.monotonic()
        # A pool knows each of its workers, and when one is overdue.
        limit = None if kit.backend.free else kit.policy.deadline
        call = asyncio.wait_for(kit.backend.submit(row.request, row.addresses), limit)
        grace = SUBMIT_GRACE_S if queues else kit.drain_left
        try:
            submission = await kit.unless_interrupted(call, "unknown", grace)
        except TimeoutError:
            kit.control.check_progress("a call was sent and not answered")
            raise BackendError("unknown", f"the call was sent and not answered within {limit:.0f} s") from None
        except BackendError as error:
            if error.status in _REFUSALS and not kit.backend.free:
                kit.concurrency.answered(refused=True, sent=started, at=kit.clock.monotonic())
            raise
        finally:
            row.is_posting = False
            row.sending_s = kit.clock.monotonic() - (started if row.claimed is None else row.claimed)
        row.request_id = submission.request_id
        kit.concurrency.answered(refused=False, sent=started, at=kit.clock.monotonic())
        kit.submits.add(kit.clock.monotonic() - started)
        kit.control.progressed()
        return submission

    async def _receive(self, row: Row, submission: Submission) -> Step:
        """From an accepted call to the stored image. The request_id is durable before the first poll."""
        row.request_id = submission.request_id or row.request_id
        keeping: asyncio.Task[None] | None = None
        if submission.request_id is not None and row.kept_id is None:
            keeping = asyncio.ensure_future(self._keep_id(row, submission.request_id))
            if submission.open_body is None:
                # Polling goes on beside a store that is slow to take the id.
                await asyncio.wait((keeping,), timeout=SUBMIT_GRACE_S)
        collecting = asyncio.ensure_future(self._collect(submission))
        try:
            patience = await self._wait_for(collecting, submission)
            if keeping is not None:
                await keeping
        except BaseException:
            for task in filter(None, (collecting, keeping)):
                task.cancel()
            raise
        if collecting.done():
            return await self._end(row, submission, collecting)
        # The job is the API's now: it is polled without a slot, so that others can be sent.
        error = BackendError("submitted", f"no result after {patience:.0f} s", request_id=submission.request_id)
        return Park(lambda: self._await_stuck(row, submission, collecting), row.held(error), collecting)

    async def _wait_for(self, collecting: "asyncio.Task[Collected]", submission: Submission) -> float:
        """Wait for a result, but not longer than others should wait for the slot; the seconds."""
        patience = self._kit.totals.patience(at_least=STUCK_AT_LEAST_S, unmeasured=STUCK_UNMEASURED_S)
        # An open v1 answer is a call of ours; and no more jobs are left to themselves than are in flight.
        keep = submission.open_body is not None or self._stuck >= self._kit.concurrency.most
        await asyncio.wait((collecting,), timeout=None if keep else patience)
        return patience

    async def _await_stuck(self, row: Row, submission: Submission, collecting: "asyncio.Task[Collected]") -> Step:
        self._stuck += 1
        try:
            await asyncio.wait((collecting,))
            row.busy = True
            return await self._end(row, submission, collecting)
        finally:
            row.busy = False
            self._stuck -= 1

    async def _end(self, row: Row, submission: Submission, collecting: "asyncio.Task[Collected]") -> Step:
        """Decide about the result of an accepted call, and store its image."""
        kit = self._kit
        try:
            delivery, decoded = await collecting
        except BackendError as error:
            error.request_id = error.request_id or submission.request_id
            return await self._after_failed_result(row, error)
        reached("bytes")
        facts = await self._stored(row, delivery, decoded)
        reached("image")
        if row.sent_at is not None:
            kit.totals.add(kit.clock.monotonic() - row.sent_at)
        kit.control.progressed()
        return await kit.delivered(row, facts, delivery)

    async def _stored(self, row: Row, delivery: Delivery, decoded: Sequence[Decoded]) -> ImageFacts:
        """Store the image, and any further ones of the same answer before it; the facts of what is there."""
        kit, key, extension = self._kit, row.key.hex(), row.request.extension
        for number, (data, one) in enumerate(zip(delivery.more, decoded[1:], strict=True), 2):
            await kit.store.create(layout.more_image(key, number, extension), data, one.content_type)
        path = layout.image(key, extension)
        facts = facts_of(path, decoded[0], len(delivery.data))
        if not await kit.store.create(path, delivery.data, decoded[0].content_type):
            facts = await kit.stored_facts(path)
        return replace(facts, flags=(*facts.flags, MORE_IMAGES)) if delivery.more else facts

    async def _collect(self, submission: Submission) -> Collected:
        """The bytes, decoded in full; bad ones are fetched again, ever later, and never bought again."""
        kit = self._kit
        failure = BackendError("bad_output", "no bytes came", request_id=submission.request_id)
        for failures in range(COLLECT_TRIES):
            if failures:
                await kit.unless_interrupted(kit.clock.sleep(backoff(failures, kit.draw())), "submitted", 0.0)
            # A v1 answer that is being read is lost if it is let go; a job can be polled by the next run.
            grace = 0.0 if submission.open_body is None else kit.drain_left
            try:
                delivery = await kit.unless_interrupted(kit.backend.collect(submission), "submitted", grace)
                return delivery, [await kit.decoder(decode, data) for data in (delivery.data, *delivery.more)]
            except BadImageError as error:
                if kit.backend.free:
                    raise BackendError("worker_failed", str(error)) from error
                failure = BackendError("bad_output", str(error), request_id=submission.request_id)
            except BackendError as error:
                if error.kind != "bad_output":
                    raise
                failure = error
            if submission.request_id is None:
                raise BackendError("unknown", f"the answer was bad and named no request_id: {failure.message}")
        raise failure

    async def _after_refused_post(self, row: Row, error: BackendError) -> Step:
        """Decide about a POST that was not answered with success."""
        outcome, kit = OUTCOMES[error.kind], self._kit
        if kit.backend.free:
            return await self._closing.close(row, _lost(error))
        if error.kind in _STRANGE and (error.status or 0) < 400:
            return await self._after_strange_answer(row, error)
        if outcome.accepted == "answered_5xx" and kit.backend.queues:
            found = await self._lookups.after_5xx(row, error)
            if not isinstance(found, Submission):
                return found
            row.accepted = None
            return await self._receive(row, found)
        if error.kind == "unknown":
            return self._lookups.unknown(row, error)
        return await self._closing.close(row, error)

    async def _after_strange_answer(self, row: Row, error: BackendError) -> Step:
        """Somebody else than expected answered a POST, or led it elsewhere: it may be taken, and the run stops."""
        self._kit.control.stop(error.kind, error.message)
        if error.request_id is None:
            return self._lookups.unknown(row, BackendError("unknown", error.message, status=error.status))
        row.request_id = error.request_id
        await self._keep_id(row, error.request_id)
        return self._not_yet(row, error)

    async def _after_failed_result(self, row: Row, error: BackendError) -> Step:
        """Decide about an accepted call that led to no image (yet). Whose id is known is never looked up without it."""
        if self._kit.backend.free:
            return await self._closing.close(row, _lost(error))
        if error.kind == "unknown" and error.request_id is None:
            return self._lookups.unknown(row, error)
        if error.kind == "bad_output" or error.kind in HELD_KINDS:
            return await self._after_missing_result(row, error)
        outcome = OUTCOMES[error.kind]
        if outcome.scope == "run" and error.kind != "sandbox_mismatch":
            # The key or the store gave way while a paid result was being fetched: it stays to be fetched.
            self._kit.control.stop(error.kind, error.message)
        elif outcome.accepted == "yes":
            return await self._closing.close(row, error)
        return self._not_yet(row, error)

    async def _after_missing_result(self, row: Row, error: BackendError) -> Step:
        """A result that is not there, or is no image: not yet, until outputs are deleted; then never."""
        is_gone, is_junk = error.status in _GONE, error.kind == "bad_output"
        if is_gone and not self._kit.backend.queues and await self._lookups.is_under_another_id(row):
            return Again()
        if not (is_gone or is_junk) or row.ownership == "other" or not self._is_past_its_time(row):
            return self._not_yet(row, error)
        if not is_junk:
            error.kind = "output_lost"
        return await self._closing.close(row, error)

    def _not_yet(self, row: Row, error: BackendError) -> RequestResult:
        """Accepted, and not to be had just now: asked for again by every later run, until outputs are deleted."""
        kind = "other_account" if row.ownership == "other" else "submitted"
        return row.held(BackendError(kind, error.message, status=error.status, request_id=error.request_id))

    def _is_past_its_time(self, row: Row) -> bool:
        """Whether outputs of the row's call are gone for good; before that, one that is not found may come back."""
        return self._lookups.age(row) > OUTPUTS_LIVE.total_seconds()

    async def _keep_id(self, row: Row, request_id: str) -> None:
        """Make the id durable, then tell the ledger; where the store does not take it, the run sends nothing more."""
        kit = self._kit
        try:
            await kit.ledger.record_request_id(row.key, row.n, request_id)
        except StoreError as error:
            _logger.warning("The request_id %s could not be stored beside its claim: %s", request_id, error.message)
            if error.kind != "store_conflict":
                kit.control.stop("store", f"a request_id could not be stored: {error.message}")
        else:
            row.kept_id = request_id
            reached("request_id")
        await kit.record(row, "submitted", request_id=request_id)


def _lost(error: BackendError) -> BackendError:
    """A free call whose fate nobody knows: nothing is owed for it, and the row is as if it had not been sent."""
    if error.kind in HELD_KINDS:
        return BackendError("worker_lost", error.message, status=error.status, retry_after=0.0)
    return error
