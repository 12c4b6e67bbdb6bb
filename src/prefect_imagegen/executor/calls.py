"""One attempt: claim, POST, result, store. Says how the row goes on; waits for nothing but the call itself."""

import asyncio
import math
from datetime import timedelta

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import BackendError, StoreError
from prefect_imagegen.core.image import BadImageError, Decoded, decode, facts_of
from prefect_imagegen.core.outcomes import HELD_KINDS, OUTCOMES
from prefect_imagegen.core.retry import backoff
from prefect_imagegen.crashpoints import reached
from prefect_imagegen.executor.claims import Claims
from prefect_imagegen.executor.closing import Closing
from prefect_imagegen.executor.kit import Kit
from prefect_imagegen.executor.rows import Again, Park, Row, Step
from prefect_imagegen.ports import Delivery, Submission

COLLECT_TRIES = 5
OUTPUTS_LIVE = timedelta(days=8)
"""Segmind keeps outputs for seven days."""
ID_TRIES = 5
SUBMIT_GRACE_S = 5.0
"""How long an interrupted run waits for the answers to POSTs under way, so that their ids become durable."""
SUBMIT_AT_LEAST_S = 5.0
SUBMIT_UNMEASURED_S = 60.0
STUCK_AT_LEAST_S = 5.0
STUCK_UNMEASURED_S = 60.0
_REFUSALS = (429, 503)

Collected = tuple[Delivery, Decoded]


class Calls:
    """Makes attempts. A paid call has a claim of its own, and what was accepted is fetched, never bought again."""

    def __init__(self, kit: Kit, claims: Claims, closing: Closing) -> None:
        self.sent = 0
        self._kit = kit
        self._claims = claims
        self._closing = closing
        self._stuck = 0

    async def attempt(self, row: Row) -> Step:
        """One claim, one POST, one result; or the result of a call that was accepted before."""
        submission: Submission | Step | None = row.accepted
        row.accepted = None
        if submission is None and not self._kit.backend.free:
            submission = await self._claims.win(row)
        if submission is None:
            if (found := await self._claims.adopt(row)) is not None:
                return found
            if not await self._claims.still_ours(row):
                row.n, row.claimed_at = row.n + 1, None
                return Again()
            if self._kit.control.stopped:
                return await self._closing.close(
                    row, BackendError("unsent", "the run stopped before the call was sent")
                )
            try:
                submission = await self._submit(row)
            except BackendError as error:
                return await self._after_refused_post(row, error)
        if not isinstance(submission, Submission):
            return submission
        return await self._receive(row, submission)

    async def _submit(self, row: Row) -> Submission:
        kit, queues = self._kit, self._kit.backend.queues
        row.posts += 1
        self.sent += 1
        started = row.sent_at = kit.clock.monotonic()
        if queues:
            limit = kit.submits.limit(at_least=SUBMIT_AT_LEAST_S, unmeasured=SUBMIT_UNMEASURED_S)
        elif kit.backend.free:
            limit = math.inf  # a pool knows each of its workers, and when one is overdue
        else:
            limit = kit.totals.limit(at_least=kit.policy.straggler_seconds, unmeasured=float("inf"))
        call = asyncio.wait_for(kit.backend.submit(row.request, row.addresses), None if math.isinf(limit) else limit)
        grace = SUBMIT_GRACE_S if queues else kit.policy.drain_seconds
        try:
            submission = await kit.unless_interrupted(call, "unknown", grace)
        except TimeoutError:
            raise BackendError("unknown", f"the call was sent and not answered within {limit:.0f} s") from None
        except BackendError as error:
            if error.status in _REFUSALS and not kit.backend.free:
                kit.concurrency.answered(refused=True, sent=started, at=kit.clock.monotonic())
            raise
        kit.concurrency.answered(refused=False, sent=started, at=kit.clock.monotonic())
        kit.submits.add(kit.clock.monotonic() - started)
        kit.control.progressed()
        return submission

    async def _receive(self, row: Row, submission: Submission) -> Step:
        """From an accepted call to the stored image. The request_id is durable before the first poll."""
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
            collecting.cancel()
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
        path = layout.image(row.key.hex(), row.request.extension)
        facts = facts_of(path, decoded, len(delivery.data))
        if not await kit.store.create(path, delivery.data, decoded.content_type):
            facts = await kit.stored_facts(path)
        reached("image")
        if row.sent_at is not None:
            kit.totals.add(kit.clock.monotonic() - row.sent_at)
        kit.control.progressed()
        return await kit.delivered(row, facts, delivery)

    async def _collect(self, submission: Submission) -> Collected:
        """The bytes, decoded in full; bad ones are fetched again, ever later, and never bought again."""
        kit = self._kit
        failure = BackendError("bad_output", "no bytes came", request_id=submission.request_id)
        for failures in range(COLLECT_TRIES):
            if failures:
                await kit.unless_interrupted(kit.clock.sleep(backoff(failures, kit.draw())), "submitted", 0.0)
            # A v1 answer that is being read is lost if it is let go; a job can be polled by the next run.
            grace = 0.0 if submission.open_body is None else kit.policy.drain_seconds
            try:
                delivery = await kit.unless_interrupted(kit.backend.collect(submission), "submitted", grace)
                return delivery, await kit.decoder(decode, delivery.data)
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
        if outcome.accepted == "answered_5xx" and kit.backend.queues:
            if kit.policy.on_unknown == "hold":
                return row.held(BackendError("unknown", error.message, status=error.status))
            if (found := await self._claims.look(row)) is not None:
                return await self._receive(row, found)
        if error.kind == "unknown":
            return self._claims.unknown(row, error)
        return await self._closing.close(row, error)

    async def _after_failed_result(self, row: Row, error: BackendError) -> Step:
        """Decide about an accepted call that led to no image."""
        if self._kit.backend.free:
            return await self._closing.close(row, _lost(error))
        if error.status in (404, 410) and self._is_past_its_time(row):
            error.kind = "output_lost"
        if error.kind == "unknown":
            return self._claims.unknown(row, error)
        if error.kind in HELD_KINDS:
            return row.held(error)
        outcome = OUTCOMES[error.kind]
        if outcome.scope == "run" and error.kind != "sandbox_mismatch":
            # The key or the store gave way while a paid result was being fetched: it stays to be fetched.
            self._kit.control.stop(error.kind, error.message)
        elif outcome.accepted == "yes":
            return await self._closing.close(row, error)
        return row.held(BackendError("submitted", error.message, request_id=error.request_id))

    def _is_past_its_time(self, row: Row) -> bool:
        """Whether outputs of the row's call are gone for good; before that, one that is not found may come back."""
        return row.claimed_at is not None and self._kit.clock.now() - row.claimed_at > OUTPUTS_LIVE

    async def _keep_id(self, row: Row, request_id: str) -> None:
        """Make the id durable: five tries within 30 s; then the run sends nothing more."""
        kit = self._kit
        await kit.record(row, "submitted", request_id=request_id)
        for failures in range(ID_TRIES):
            try:
                await kit.ledger.record_request_id(row.key, row.n, request_id)
            except StoreError as error:
                message = error.message
            else:
                row.kept_id = request_id
                reached("request_id")
                return
            await kit.clock.sleep(2.0**failures)
        kit.control.stop("store", f"a request_id could not be stored: {message}")


def _lost(error: BackendError) -> BackendError:
    """A free call whose fate nobody knows: nothing is owed for it, and the row is as if it had not been sent."""
    if error.kind in HELD_KINDS:
        return BackendError("worker_lost", error.message, status=error.status, retry_after=0.0)
    return error
