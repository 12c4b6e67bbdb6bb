"""Calls of unknown outcome: looked up in the account's request history, sent again only if they are proven absent.

If the history is unclear or not understood, the row is held, counted, and looked up again by the next run.
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
"""The age in seconds from which another run's claim may be followed by ours, though its process may be alive."""
EARLY_LOOK_S = 30.0
"""The age in seconds of a call at its only lookup under `--on-unknown retry-once`."""
GIVEN_UP_AFTER_S = timedelta(days=31).total_seconds()
"""The age in seconds after which an unclear history stays unclear: the row is left to a person."""
KEEPS_NO_HISTORY = "the provider keeps no request history to look it up in"
_LOOK_AGAIN_S = 30.0


class Lookups:
    """Finds out what became of calls that got no answer, or an answer that was not understood."""

    def __init__(self, context: ExecutorContext, failures: FailureHandler) -> None:
        self._context = context
        self._failures = failures

    def unknown(self, row: PendingRequest, error: ProviderError, attempt: KnownAttempt | None = None) -> NextStep:
        """Hold a row whose call got no answer, and defer it to look the call up.

        `attempt` is what is known of the call, where an earlier run sent it. At a provider without a history the row
        is held at once, and stays so until a person decides.
        """
        if not self._context.provider.abilities.history:
            return row.held(_without_history(error))
        held = row.held(error)
        if self._context.policy.on_unknown == "hold":
            return held
        if not row.is_left_behind:
            # The breaker counts our own calls only: those of an earlier run say nothing about the API now.
            self._context.control.finished(held)
            row.breaker_notified = True
        return Defer(lambda: self._reconcile(row, held, attempt), held)

    async def after_5xx(self, row: PendingRequest, error: ProviderError) -> Submission | NextStep:
        """Decide about a call that was answered with 5xx, by one lookup; if the call is absent, it is sent again.

        That is the one guess of the pay-once protocol.
        """
        if not self._context.provider.abilities.history:
            return row.held(_without_history(error))
        if self._context.policy.on_unknown == "hold":
            return row.held(ProviderError("unknown", error.message, status=error.status))
        finding = await self._try_look(row)
        if finding is None or finding.unclear is not None:
            text = f"{error.message}; {_why(finding)}"
            return Defer(lambda: self._retried_5xx(row, error), row.held(ProviderError("unknown", text)))
        return self._take(row, finding) or await self._failures.handle(row, error)

    async def before_sending(
        self, row: PendingRequest, doubtful: Sequence[KnownAttempt]
    ) -> Submission | NextStep | None:
        """Look up calls that earlier runs gave up on a guess; None if none is found, so that a new one may be sent.

        An unclear lookup forbids that, unless a person has asked for it with `resend`.
        """
        for attempt in doubtful:
            row.ownership = await self._context.look_up(self._context.accounts.ownership(attempt))
            if row.ownership == "other" and not attempt.is_asked:
                return await self._unsent(row, "an earlier call of it was sent by another account", "other_account")
            try:
                finding = await self._look(row, attempt)
                why = None if finding.unclear is None else _why(finding)
            except ProviderError as error:
                finding, why = Finding(), error.message
            if why is not None and not attempt.is_asked:
                return await self._unsent(row, f"an earlier call of it may have been accepted: {why}")
            submission = self._take(row, finding)
            if submission is not None:
                row.is_late, row.late_claim = True, attempt.record
                return submission
        row.ownership = "same"
        row.maybe_paid += 1
        return None

    async def _unsent(self, row: PendingRequest, why: str, kind: str = "unknown") -> RequestResult:
        """Send nothing now, and close the claim, so that the next run looks again."""
        await self._failures.record_failure(row, ProviderError("unsent", f"not sent: {why}"))
        return row.held(ProviderError(kind, f"not sent: {why}"))

    async def is_under_another_id(self, row: PendingRequest) -> bool:
        """Whether the history has the row's call under another id than the answer gave; the row takes that id then.

        The header of a v1 answer may give another id than the history.
        """
        named, finding = row.request_id, await self._try_look(row)
        if finding is None or finding.request_id in (None, named) or self._take(row, finding) is None:
            return False
        # The claim keeps the id of the answer, so the ledger has to know this one before it is polled.
        await self._context.record(row, "submitted", request_id=row.request_id)
        await self._context.ledger.flush()
        return True

    async def forgotten(self, row: PendingRequest, last: KnownAttempt) -> NextStep:
        """Begin a new attempt for a row of an earlier embedded sandbox: its calls are gone, and cost nothing."""
        text = f"the sandbox of run {last.run_id} is gone"
        await self._failures.record_failure(row, ProviderError("not_accepted", text))
        row.begin()
        return Retry()

    def age(self, row: PendingRequest) -> float:
        """Seconds since the call's claim was made: the smallest age by any clock that knows both moments."""
        context, claim, stored = self._context, row.claim, row.stored_at
        elapsed = [] if row.claimed_at is None else [context.clock.monotonic() - row.claimed_at]
        if row.late_claim is not None:
            claim, elapsed = row.late_claim.claim, []
            stored = row.late_claim.stored or claim.store_time
        if claim is None:
            return 0.0
        clocks = [(claim.api_time, context.provider.now())]
        if stored is not None:
            clocks.append((stored, context.run_liveness.store_now()))
        if not elapsed and not any(then and now for then, now in clocks):
            clocks.append((claim.time, context.clock.now()))
        return ages_of(clocks, elapsed)

    async def _retried_5xx(self, row: PendingRequest, error: ProviderError) -> NextStep:
        while True:
            row.enter(State.LOOK_WAIT)
            await self._context.clock.sleep(_LOOK_AGAIN_S)
            finding = await self._try_look(row)
            if finding is not None and finding.unclear is None:
                is_found = self._take(row, finding) is not None
                return Retry() if is_found else await self._failures.handle(row, error)

    async def _reconcile(self, row: PendingRequest, held: RequestResult, attempt: KnownAttempt | None) -> NextStep:
        """Look into the history whenever that is due; a call that is absent after the lag was not accepted."""
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
                # A failed lookup proves nothing.
                held.error_message = f"{base}; {error.message}"
                row.in_use = False
                await self._wait(row, _LOOK_AGAIN_S)
                continue
            finally:
                row.in_use = False
            held.error_message = base if finding.unclear is None else f"{base}; {_why(finding)}"
            if self._take(row, finding) is not None:
                return Retry()
            if finding.unclear is not None and looked_at > GIVEN_UP_AFTER_S:
                return await self._failures.handle(row, ProviderError("outcome_unknown", _why(finding)))
            looked = looked_at
            if once:
                break
        return await self._not_found(row, held, finding, once=once)

    async def _was_sent_again(self, row: PendingRequest) -> bool:
        """Whether the row was sent again on a guess before, by this run or an earlier one."""
        known = await self._context.ledger.known(row.key)
        return bool(row.by_kind["sent_again"]) or any(attempt.error_kind == "sent_again" for attempt in known)

    async def _wait(self, row: PendingRequest, seconds: float) -> None:
        """Wait for the next lookup; the run does not stay open for calls of earlier runs."""
        row.enter(State.LOOK_WAIT)
        row.is_waiting = row.is_left_behind
        try:
            await self._context.clock.sleep(seconds)
        finally:
            row.is_waiting = False

    async def _not_found(self, row: PendingRequest, held: RequestResult, finding: Finding, *, once: bool) -> NextStep:
        """Decide about a call that the last lookup did not find."""
        if finding.unclear is not None or (once and await self._was_sent_again(row)):
            return held
        if row.ownership == "other":
            held.error_kind = "other_account"
            held.error_message = f"{held.error_message}; that this key's history does not show it proves nothing"
            return held
        if not row.claimant_gone:
            await self._context.clock.sleep(max(0.0, CLAIM_SAFE_S - self.age(row)))
        kind = "sent_again" if once else "not_accepted"
        return await self._failures.handle(
            row, ProviderError(kind, f"{held.error_message}; the history does not know it")
        )

    def _take(self, row: PendingRequest, finding: Finding) -> Submission | None:
        """Make the call that was found the row's accepted call; None if none was found."""
        if finding.request_id is None:
            return None
        if finding.more > 0:
            self._context.provider.not_understood["the request history: more calls of one body than were sent"] += 1
        row.request_id = finding.request_id
        row.accepted = Submission(row.request, finding.request_id)
        return row.accepted

    async def _try_look(self, row: PendingRequest) -> Finding | None:
        """One lookup of the row's call; None if it failed, and so proves nothing."""
        try:
            return await self._look(row, None)
        except ProviderError:
            return None

    async def _look(self, row: PendingRequest, attempt: KnownAttempt | None) -> Finding:
        """Look once into the history for the call of the row's claim, or of an earlier attempt.

        Raises ProviderError.
        """
        row.enter(State.LOOKUP)
        context, account = self._context, self._context.provider.account
        if account is None or not context.provider.abilities.history:
            raise ProviderError("no_history", "the provider keeps no request history")
        record = attempt.record if attempt else None
        claim = record.claim if record else row.claim
        if claim is None:
            return Finding()
        stored = record.stored if record else row.stored_at
        sending = context.policy.deadline + CLAIM_SAFE_S if row.sending_s is None else row.sending_s
        window = window_of(claim, stored, sending)
        look = await context.look_up(account.find(row.request.model, claim.body, window))
        others = [attempt for attempt in await context.ledger.known(row.key) if attempt.claim_no != row.claim_no]
        known = {attempt.request_id for attempt in others if attempt.request_id is not None}
        shown = {candidate.request_id for candidate in look.candidates if candidate.request_id} - known
        known |= await context.ledger.known_ids(shown) if shown else frozenset()
        known.discard(row.request_id)
        earlier = [attempt for attempt in others if attempt.claim_no < row.claim_no and attempt.record is not None]
        unnamed = sum(attempt.request_id is None for attempt in earlier)
        finding = finding_of(look, frozenset(filter(None, known)), unnamed)
        is_absent = finding.is_absent and row.ownership == "linked"
        if is_absent and attempt and not context.accounts.shows(attempt, look.shown):
            raise ProviderError("unknown", "the history of this key shows no call of the account that sent it")
        return finding


def _without_history(error: ProviderError) -> ProviderError:
    """The error of a call whose end nobody can look up."""
    text = f"{error.message}; {KEEPS_NO_HISTORY}"
    return ProviderError("no_history", text, status=error.status, request_id=error.request_id)


def _why(finding: Finding | None) -> str:
    """Why a lookup decided nothing."""
    if finding is None or finding.unclear is None:
        return "the request history could not be read"
    return f"whether it is {finding.unclear} in the request history cannot be told"
