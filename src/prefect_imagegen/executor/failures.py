"""The end of an attempt that led to no image: recorded, and what follows from it by the table of outcomes."""

from dataclasses import replace

from prefect_imagegen.core.errors import ProviderError, StoreError
from prefect_imagegen.core.policy.backoff import backoff
from prefect_imagegen.core.policy.outcomes import OUTCOMES, Outcome, is_fetch_failure
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.pending import PendingRequest, Retry
from prefect_imagegen.executor.states import State


class FailureHandler:
    """Ends attempts. Every retry of the product is decided in `close`."""

    def __init__(self, context: ExecutorContext) -> None:
        self._context = context

    async def close(self, row: PendingRequest, error: ProviderError) -> RequestResult | Retry:
        """End the attempt as failed; then try again, or end the row, its model or the run."""
        row.enter(State.CLOSE)
        self._name(row, error)
        context, outcome = self._context, OUTCOMES[error.kind]
        row.failures += 1
        row.counted_posts += outcome.counted
        row.by_kind[error.kind] += 1
        again = (
            outcome.retryable
            and row.counted_posts < context.policy.max_attempts
            and row.by_kind[error.kind] < (outcome.max_posts if outcome.counted else row.failures + 1)
        )
        cost = error.cost_usd or None
        if cost is not None:
            # A failure is not billed by rule; where the answer says that it was, the answer counts.
            outcome = replace(outcome, billed="yes")
        elif outcome.billed == "yes":
            cost = await self._cost(row, error)
        await self.leave(row, error, cost)
        self._settle(row, outcome, cost)
        row.begin()
        context.control.moved()
        if outcome.scope == "run":
            context.control.stop(error.kind, error.message)
            return self.not_run(row, error.kind, error.message)
        if outcome.scope == "model":
            context.control.dead_models[row.request.model] = error.message
        if not again:
            result = row.failed(error)
            result.cost_usd = cost
            return result
        if self._maybe_billed(outcome):
            row.maybe_paid += 1
        seconds = backoff(row.failures, context.jitter()) if error.retry_after is None else error.retry_after
        if outcome.slows or (error.status == 503 and error.retry_after):
            context.limiter.pause(max(seconds, 1.0))
        if not outcome.counted:
            context.control.check_progress(error.message)
        return Retry(seconds)

    @staticmethod
    def _name(row: PendingRequest, error: ProviderError) -> None:
        """Find the kind of an error that only the row, or the cost, tells."""
        if row.request.references and not row.force_upload and is_fetch_failure(error.kind, error.message):
            error.kind, row.force_upload = "reference_unfetched", True
        if error.cost_usd and OUTCOMES[error.kind].retryable:
            error.kind = "billed_failure"

    async def leave(self, row: PendingRequest, error: ProviderError, cost: float | None = None) -> None:
        """End the attempt in the ledger, and decide nothing more."""
        await self._context.record(
            row,
            "failed",
            error_kind=error.kind,
            error_message=error.message,
            http_status=error.status,
            request_id=error.request_id or row.request_id,
            cost_usd=cost,
        )

    async def _cost(self, row: PendingRequest, error: ProviderError) -> float | None:
        """What a call cost that led to no image, where the history tells."""
        request_id = error.request_id or row.request_id
        if request_id is None:
            return None
        try:
            record = await self._context.asked(self._context.provider.record(request_id))
        except ProviderError:
            return None
        return record.cost_usd if record else None

    def not_run(self, row: PendingRequest, kind: str | None = None, message: str | None = None) -> RequestResult:
        """Not sent, since the run stopped."""
        control = self._context.control
        return RequestResult(row.key, "not_run", kind or control.stop_reason, message or control.stop_message)

    def without_store(self, row: PendingRequest, error: StoreError) -> RequestResult:
        """The store failed amid a row: held where a call of it may be out, else not run."""
        if row.claim is None and not row.may_be_out:
            if error.kind == "store_damaged":
                return row.held(ProviderError("unknown", f"what an earlier run left cannot be read: {error.message}"))
            return self.not_run(row, "store", error.message)
        kind = "unknown" if row.request_id is None else "submitted"
        text = f"the store failed after the call: {error.message}"
        return row.held(ProviderError(kind, text, request_id=row.request_id))

    def delivered(self, row: PendingRequest, cost: float | None) -> None:
        """Settle the money of a row that has its image."""
        budget = self._context.budget
        carried = budget.uncarry(row.attempt_id)
        if row.reservation is not None:
            budget.settle(row.reservation, cost)
        else:
            budget.spent += carried if cost is None else cost
        row.paid += not self._context.provider.free
        row.reservation = None

    def _maybe_billed(self, outcome: Outcome) -> bool:
        # v1 answers only when the work is done, and bills nothing but a 200; v2 may have queued what it refused.
        return outcome.billed == "maybe" and (self._context.provider.queues or outcome.accepted == "unknown")

    def _settle(self, row: PendingRequest, outcome: Outcome, cost: float | None) -> None:
        """Settle the money of an attempt without an image."""
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
