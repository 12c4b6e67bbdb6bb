"""Calls of unknown fate: looked up in the account's request history, and sent again only if they are proven absent.

What cannot be told, and what is not understood, is held: named, counted, and looked at again by the next run.
"""

from collections.abc import Sequence
from datetime import timedelta

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.ledger.events import KnownAttempt
from prefect_imagegen.core.policy.history_lookup import Finding, ages_of, finding_of, next_look, window_of
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.failures import FailureHandler
from prefect_imagegen.executor.pending import Defer, NextStep, PendingRequest, Retry
from prefect_imagegen.executor.states import State
from prefect_imagegen.ports import Submission

CLAIM_SAFE_S = 120.0
"""Nobody sends over the claim of another, unless that process is gone for certain, before it is so old."""
EARLY_LOOK_S = 30.0
GIVEN_UP_AFTER_S = timedelta(days=31).total_seconds()
"""A call that the history has not told of by then will not become clear: the row is left to a person."""
_LOOK_AGAIN_S = 30.0


class Lookups:
    """Finds out what became of calls that got no answer, or none that is understood."""

    def __init__(self, context: ExecutorContext, closing: FailureHandler) -> None:
        self._context = context
        self._closing = closing

    def unknown(self, row: PendingRequest, error: ProviderError, attempt: KnownAttempt | None = None) -> NextStep:
        """A call was sent under the row's claim and nobody knows its fate: look it up before anything else.

        `attempt` is what is known of it, where an earlier run sent it.
        """
        held = row.held(error)
        if self._context.policy.on_unknown == "hold":
            return held
        if not row.is_left_behind:
            # Ours, and bad news at once; what an earlier run left says nothing of how things go now.
            self._context.control.finished(held)
            row.breaker_notified = True
        return Defer(lambda: self._reconcile(row, held, attempt), held)

    async def after_5xx(self, row: PendingRequest, error: ProviderError) -> Submission | NextStep:
        """A call was answered with 5xx: one look that is understood decides; absent, it is the one guess to re-send."""
        if self._context.policy.on_unknown == "hold":
            return row.held(ProviderError("unknown", error.message, status=error.status))
        finding = await self._understood(row)
        if finding is None or finding.unclear is not None:
            text = f"{error.message}; {_why(finding)}"
            return Defer(lambda: self._retried_5xx(row, error), row.held(ProviderError("unknown", text)))
        return self._taken(row, finding) or await self._closing.close(row, error)

    async def before_sending(
        self, row: PendingRequest, doubtful: Sequence[KnownAttempt]
    ) -> Submission | NextStep | None:
        """Earlier runs gave calls up on a guess: one look for each; None if none of them shows, so that one is sent.

        A person's word to send again outweighs a look that proves nothing.
        """
        for attempt in doubtful:
            row.ownership = await self._context.asked(self._context.accounts.ownership(attempt))
            if row.ownership == "other" and not attempt.is_asked:
                return await self._unsent(row, "an earlier call of it was sent by another account", "other_account")
            try:
                finding = await self._look(row, attempt)
                why = None if finding.unclear is None else _why(finding)
            except ProviderError as error:
                finding, why = Finding(), error.message
            if why is not None and not attempt.is_asked:
                return await self._unsent(row, f"an earlier call of it may have been accepted: {why}")
            taken = self._taken(row, finding)
            if taken is not None:
                row.late, row.found_under = True, attempt.record
                return taken
        row.ownership = "same"
        row.maybe_paid += 1
        return None

    async def _unsent(self, row: PendingRequest, why: str, kind: str = "unknown") -> RequestResult:
        """Send nothing now: the claim is closed, so that the next run looks again."""
        await self._closing.leave(row, ProviderError("unsent", f"not sent: {why}"))
        return row.held(ProviderError(kind, f"not sent: {why}"))

    async def is_under_another_id(self, row: PendingRequest) -> bool:
        """Whether the history shows the row's call, which it does not know by its id, under another one.

        The header of a v1 answer may name something else than the history does.
        """
        named, finding = row.request_id, await self._understood(row)
        if finding is None or finding.request_id in (None, named) or self._taken(row, finding) is None:
            return False
        # Its claim names the other id for good, so that the ledger has to name this one before it is polled.
        await self._context.record(row, "submitted", request_id=row.request_id)
        await self._context.ledger.flush()
        return True

    async def forgotten(self, row: PendingRequest, last: KnownAttempt) -> NextStep:
        """An embedded sandbox knows nothing of earlier runs, and its calls cost nothing: the row is drawn anew."""
        text = f"the sandbox of run {last.run_id} is gone"
        await self._closing.leave(row, ProviderError("not_accepted", text))
        row.begin()
        return Retry()

    def age(self, row: PendingRequest) -> float:
        """Seconds since the call's claim was made: by the smallest account of any clock that knows both moments."""
        context, claim, stored = self._context, row.claim, row.stored_at
        elapsed = [] if row.claimed is None else [context.clock.monotonic() - row.claimed]
        if row.found_under is not None:
            claim, elapsed = row.found_under.claim, []
            stored = row.found_under.stored or claim.store_time
        if claim is None:
            return 0.0
        clocks = [(claim.api_time, context.provider.now())]
        if stored is not None:
            clocks.append((stored, context.neighbours.store_now()))
        if not elapsed and not any(then and now for then, now in clocks):
            clocks.append((claim.time, context.clock.now()))
        return ages_of(clocks, elapsed)

    async def _retried_5xx(self, row: PendingRequest, error: ProviderError) -> NextStep:
        while True:
            row.enter(State.LOOK_WAIT)
            await self._context.clock.sleep(_LOOK_AGAIN_S)
            finding = await self._understood(row)
            if finding is not None and finding.unclear is None:
                taken = self._taken(row, finding)
                return Retry() if taken is not None else await self._closing.close(row, error)

    async def _reconcile(self, row: PendingRequest, held: RequestResult, attempt: KnownAttempt | None) -> NextStep:
        """Look into the history when it is due; absent after its lag means that the call was not accepted."""
        context, lag, base = self._context, self._context.policy.history_lag, held.error_message
        looked: float | None = None
        once = context.policy.on_unknown == "retry-once"
        finding = Finding()
        while (due := min(EARLY_LOOK_S, lag) if once else next_look(looked, lag)) is not None:
            if once or looked is not None or not row.is_left_behind:
                await self._wait(row, max(0.0, due - self.age(row)))
            row.in_use = True
            try:
                looked_at = self.age(row)
                finding = await self._look(row, attempt)
            except ProviderError as error:
                # A look that failed proves nothing.
                held.error_message = f"{base}; {error.message}"
                row.in_use = False
                await self._wait(row, _LOOK_AGAIN_S)
                continue
            finally:
                row.in_use = False
            held.error_message = base if finding.unclear is None else f"{base}; {_why(finding)}"
            if self._taken(row, finding) is not None:
                return Retry()
            if finding.unclear is not None and looked_at > GIVEN_UP_AFTER_S:
                return await self._closing.close(row, ProviderError("outcome_unknown", _why(finding)))
            looked = looked_at
            if once:
                break
        return await self._not_found(row, held, finding, once=once)

    async def _was_sent_again(self, row: PendingRequest) -> bool:
        """Whether the row was sent again on a guess before, by this run or an earlier one."""
        known = await self._context.ledger.known(row.key)
        return bool(row.by_kind["sent_again"]) or any(one.error_kind == "sent_again" for one in known)

    async def _wait(self, row: PendingRequest, seconds: float) -> None:
        """Wait for the next look; a run does not stay open for what an earlier one left."""
        row.enter(State.LOOK_WAIT)
        row.waits = row.is_left_behind
        try:
            await self._context.clock.sleep(seconds)
        finally:
            row.waits = False

    async def _not_found(self, row: PendingRequest, held: RequestResult, finding: Finding, *, once: bool) -> NextStep:
        """The call does not show, after the last look that was due."""
        if finding.unclear is not None or (once and await self._was_sent_again(row)):
            return held
        if row.ownership == "other":
            held.error_kind = "other_account"
            held.error_message = f"{held.error_message}; that this key's history does not show it proves nothing"
            return held
        if not row.claimant_gone:
            await self._context.clock.sleep(max(0.0, CLAIM_SAFE_S - self.age(row)))
        kind = "sent_again" if once else "not_accepted"
        return await self._closing.close(
            row, ProviderError(kind, f"{held.error_message}; the history does not know it")
        )

    def _taken(self, row: PendingRequest, finding: Finding) -> Submission | None:
        """The call that was found, as the row's own."""
        if finding.request_id is None:
            return None
        if finding.more > 0:
            self._context.provider.not_understood["the request history: more calls of one body than were sent"] += 1
        row.request_id = finding.request_id
        row.accepted = Submission(row.request, finding.request_id)
        return row.accepted

    async def _understood(self, row: PendingRequest) -> Finding | None:
        """One look; None if it proves nothing."""
        try:
            return await self._look(row, None)
        except ProviderError:
            return None

    async def _look(self, row: PendingRequest, attempt: KnownAttempt | None) -> Finding:
        """One look into the history for the call of the row's claim, or of an earlier attempt. Raises ProviderError."""
        row.enter(State.LOOKUP)
        context = self._context
        record = attempt.record if attempt else None
        claim = record.claim if record else row.claim
        if claim is None:
            return Finding()
        stored = record.stored if record else row.stored_at
        sending = context.policy.deadline + CLAIM_SAFE_S if row.sending_s is None else row.sending_s
        window = window_of(claim, stored, sending)
        look = await context.asked(context.provider.find(row.request.model, claim.body, window))
        others = [one for one in await context.ledger.known(row.key) if one.n != row.claim_no]
        known = {one.request_id for one in others if one.request_id is not None}
        asked = {one.request_id for one in look.candidates if one.request_id} - known
        known |= await context.ledger.known_ids(asked) if asked else frozenset()
        known.discard(row.request_id)
        unnamed = sum(one.n < row.claim_no and one.record is not None and one.request_id is None for one in others)
        finding = finding_of(look, frozenset(filter(None, known)), unnamed)
        is_absent = finding.is_absent and row.ownership == "linked"
        if is_absent and attempt and not context.accounts.shows(attempt, look.shown):
            raise ProviderError("unknown", "the history of this key shows no call of the account that sent it")
        return finding


def _why(finding: Finding | None) -> str:
    """Why a look settled nothing."""
    if finding is None or finding.unclear is None:
        return "the request history could not be read"
    return f"whether it is {finding.unclear} in the request history cannot be told"
