"""Failed attempts: each is recorded, and the table of outcomes decides what follows."""

from dataclasses import replace

from prefect_imagegen.core.errors import ProviderError, StoreError
from prefect_imagegen.core.policy.backoff import backoff
from prefect_imagegen.core.policy.classify import is_fetch_failure
from prefect_imagegen.core.policy.outcomes import HELD_KINDS, OUTCOMES, Outcome
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.pending import PendingRequest, Retry
from prefect_imagegen.executor.states import State


class FailureHandler:
    """Ends failed attempts. Every retry is decided in `handle`."""

    def __init__(self, context: ExecutorContext) -> None:
        self._context = context

    async def handle(self, row: PendingRequest, error: ProviderError) -> RequestResult | Retry:
        """Record the attempt as failed; then retry it, or end the row, its model or the run."""
        row.enter(State.CLOSE)
        self._refine_kind(row, error)
        context, outcome = self._context, OUTCOMES[error.kind]
        row.failures += 1
        row.counted_posts += outcome.counts_as_attempt
        row.by_kind[error.kind] += 1
        may_retry = (
            outcome.retryable
            and row.counted_posts < context.policy.max_attempts
            and row.by_kind[error.kind] < (outcome.max_posts if outcome.counts_as_attempt else row.failures + 1)
        )
        cost = error.cost_usd or None
        if cost is not None:
            # By rule a failure is not billed; but an answer that names a cost counts.
            outcome = replace(outcome, billed="yes")
        elif outcome.billed == "yes":
            cost = await context.cost_of(error.request_id or row.request_id)
        await self.record_failure(row, error, cost)
        self._settle(row, outcome, cost)
        row.begin()
        context.control.moved()
        if outcome.scope == "run":
            context.control.stop(error.kind, error.message)
            return self.not_run(row, error.kind, error.message)
        if outcome.scope == "model":
            context.control.dead_models[row.request.model] = error.message
        if not may_retry:
            result = row.failed(error)
            result.cost_usd = cost
            return result
        if self._maybe_billed(outcome):
            row.maybe_paid += 1
        seconds = backoff(row.failures, context.jitter()) if error.retry_after is None else error.retry_after
        if outcome.slows or (error.status == 503 and error.retry_after):
            context.limiter.pause(max(seconds, 1.0))
        if not outcome.counts_as_attempt:
            context.control.check_progress(error.message)
        return Retry(seconds)

    @staticmethod
    def _refine_kind(row: PendingRequest, error: ProviderError) -> None:
        """Set the error kinds that depend on the row or on the cost: `reference_unfetched` and `billed_failure`."""
        if row.request.references and not row.force_upload and is_fetch_failure(error.kind, error.message):
            error.kind, row.force_upload = "reference_unfetched", True
        if error.cost_usd and OUTCOMES[error.kind].retryable:
            error.kind = "billed_failure"

    async def record_failure(self, row: PendingRequest, error: ProviderError, cost: float | None = None) -> None:
        """Record the attempt as failed in the ledger, without deciding what follows. `cost` is in US dollars."""
        await self._context.record(
            row,
            "failed",
            error_kind=error.kind,
            error_message=error.message,
            http_status=error.status,
            request_id=error.request_id or row.request_id,
            cost_usd=cost,
        )

    def not_run(self, row: PendingRequest, kind: str | None = None, message: str | None = None) -> RequestResult:
        """The result `not_run`: not sent, since the run stopped."""
        control = self._context.control
        return RequestResult(row.key, "not_run", kind or control.stop_reason, message or control.stop_message)

    def without_store(self, row: PendingRequest, error: StoreError) -> RequestResult:
        """The result of a row after the store failed: held where a call may have been sent, else not run."""
        if row.claim is None and not row.may_be_out:
            if error.kind == "store_damaged":
                return row.held(ProviderError("unknown", f"what an earlier run left cannot be read: {error.message}"))
            return self.not_run(row, "store", error.message)
        kind = "unknown" if row.request_id is None else "submitted"
        text = f"the store failed after the call: {error.message}"
        return row.held(ProviderError(kind, text, request_id=row.request_id))

    def delivered(self, row: PendingRequest, cost: float | None) -> None:
        """Settle the reservation of a row that has its image. `cost` is in US dollars, None if unknown."""
        budget = self._context.budget
        carried = budget.uncarry(row.attempt_id)
        if row.reservation is not None:
            budget.settle(row.reservation, cost)
        else:
            budget.spent += carried if cost is None else cost
        row.paid += self._context.provider.abilities.claims
        row.reservation = None

    def _maybe_billed(self, outcome: Outcome) -> bool:
        # v1 answers when the work is done, and bills a 200 only; v2 may have queued the work that it refused.
        return outcome.billed == "maybe" and (self._context.provider.abilities.queue or outcome.accepted == "unknown")

    def _settle(self, row: PendingRequest, outcome: Outcome, cost: float | None) -> None:
        """Settle, release or detach the reservation of an attempt without an image."""
        budget, reservation = self._context.budget, row.reservation
        row.paid += outcome.billed == "yes"
        row.reservation = None
        if outcome.billed == "yes" and reservation is None:
            carried = budget.uncarry(row.attempt_id)
            budget.spent += carried if cost is None else cost
        elif not self._maybe_billed(outcome):
            budget.uncarry(row.attempt_id)
        if reservation is None:
            return
        if outcome.billed == "yes":
            budget.settle(reservation, cost)
        elif self._maybe_billed(outcome):
            budget.detach(reservation)
        else:
            budget.release(reservation)


def free_call_lost(error: ProviderError) -> ProviderError:
    """The error of a free call: one of unknown outcome becomes `worker_lost`, since sending again costs nothing."""
    if error.kind in HELD_KINDS:
        return ProviderError("worker_lost", error.message, status=error.status, retry_after=0.0)
    return error
