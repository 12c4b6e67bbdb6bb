"""Claims: made before every paid call; those of runs that ended are taken over. See docs/design/pay-once.md."""

from collections.abc import Sequence

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.ledger.events import Claim, KnownAttempt
from prefect_imagegen.core.policy.outcomes import OUTCOMES, is_permanent
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.lookups import Lookups
from prefect_imagegen.executor.pending import Defer, NextStep, PendingRequest, Retry
from prefect_imagegen.executor.states import State
from prefect_imagegen.failpoints import hit
from prefect_imagegen.ports import Delivery, Submission

MAX_CLAIM_AGE_S = 60.0
"""Seconds; an older claim is given up unsent for a new one: the process may have slept."""
_LISTING_TRIES = 6
_WATCH_S = (1.0, 15.0)


class Claims:
    """Makes claims, and goes on with what earlier claims of the same key led to."""

    def __init__(self, context: ExecutorContext, lookups: Lookups) -> None:
        self._context = context
        self._lookups = lookups
        self._watched = 0
        self._read_after: set[str] = set()

    async def win(self, row: PendingRequest) -> Submission | NextStep | None:
        """Make a claim, so that a POST may be sent (None); or return what an earlier claim of the key led to."""
        context = self._context
        while True:
            row.enter(State.CLAIM)
            claim = self._new_claim(row)
            if await context.ledger.claim(row.key, row.claim_no, claim):
                row.claim, row.claimed_at, row.stored_at = claim, context.clock.monotonic(), claim.store_time
                row.claimant_gone = True
                await context.record(row, "claimed")
                hit("claim")
                return await self._given_up_before(row) if row.claim_no > 1 else None
            step = await self.resume(row, lost=row.claim_no)
            if not isinstance(step, Retry):
                return step

    def _new_claim(self, row: PendingRequest) -> Claim:
        context = self._context
        return Claim(
            context.policy.run_id,
            context.policy.nonce,
            row.attempt_id,
            context.clock.now(),
            row.claim_body,
            context.accounts.name,
            context.accounts.fingerprint,
            context.provider.endpoint,
            layout.heartbeat(context.policy.run_id),
            context.run_liveness.store_now(),
            context.provider.now(),
        )

    async def _given_up_before(self, row: PendingRequest) -> Submission | NextStep | None:
        """Look up calls of earlier runs that were given up on a guess: the history may show them by now."""
        if not row.is_left_behind or row.failures or self._context.policy.on_unknown == "hold":
            return None
        known = await self._context.ledger.known(row.key)
        earlier = _claimed_before(known, row.claim_no)
        doubtful = [attempt for attempt in earlier if self._was_a_guess(attempt)]
        return await self._lookups.before_sending(row, doubtful) if doubtful else None

    def _was_a_guess(self, attempt: KnownAttempt) -> bool:
        """Whether an attempt was closed though the API may have taken the call."""
        outcome = OUTCOMES.get(attempt.error_kind or "")
        if outcome is None:
            return False
        # An id that comes with a refusal names the refusal, not a call.
        is_unnamed = outcome.accepted == "unknown" and attempt.request_id is None
        return is_unnamed or (outcome.accepted == "answered_5xx" and self._context.provider.abilities.queue)

    async def resume(self, row: PendingRequest, *, lost: int = 0) -> Submission | NextStep:
        """What the highest claim of a key led to, whoever made it; `Retry` if the next claim may be made.

        `lost`: the number of a claim that another run made first.
        """
        row.enter(State.RESUME)
        context = self._context
        read_after = frozenset(self._read_after)  # a copy: another row may add a run while we read what is known
        known = await self._known(row, lost)
        if known is None:
            text = f"the store says that claim {lost} exists, and does not show it"
            return row.held(ProviderError("other_run", text))
        last = next((attempt for attempt in reversed(known) if attempt.record is not None), None)
        if last is None:
            row.claim_no = max([row.claim_no, *(attempt.claim_no + 1 for attempt in known)])
            return Retry()
        if not last.is_closed and last.run_id not in read_after:
            if await context.run_liveness.liveness_of(_owner(last)) == "alive":
                return self._leave(row, last)
            # The run has ended: what it wrote after we read the ledger is read once.
            await context.ledger.refresh(at_once=True)
            self._read_after.add(str(last.run_id))
            return await self.resume(row, lost=lost)
        if any(attempt.is_delivered for attempt in known):
            return await self._reused(row, last)
        return self._after_its_end(row, last, known[-1].claim_no) if last.is_closed else await self._follow(row, last)

    def _after_its_end(self, row: PendingRequest, last: KnownAttempt, highest: int) -> NextStep:
        """What follows a closed attempt: the next one, unless the row failed for good in another run."""
        is_final = last.error_kind is not None and is_permanent(last.error_kind) and not last.is_asked
        if is_final and last.run_id != self._context.policy.run_id:
            kind, message = str(last.error_kind), last.error_message or ""
            return row.failed(ProviderError(kind, message, request_id=last.request_id))
        row.claim_no = max(last.claim_no, highest) + 1
        return Retry()

    async def _known(self, row: PendingRequest, lost: int) -> Sequence[KnownAttempt] | None:
        """What is known of a key; None if claim number `lost`, which exists, cannot be read after several tries."""
        for tries in range(_LISTING_TRIES):
            known = await self._context.ledger.known(row.key, lost=lost)
            if not lost or any(attempt.claim_no >= lost and attempt.record is not None for attempt in known):
                return known
            await self._context.control.sleep(0.25 * 2.0**tries)
        return None

    def is_stale(self, row: PendingRequest) -> bool:
        """Whether the claim is too old for its POST: the process may have slept, or the store been out of reach."""
        context = self._context
        if row.claim is None or row.claimed_at is None:
            return False
        # The monotonic clock stands still while a machine sleeps, the wall clock may be set: the larger age counts.
        age = (context.clock.now() - row.claim.time).total_seconds()
        return max(age, context.clock.monotonic() - row.claimed_at) > MAX_CLAIM_AGE_S

    async def adopt(self, row: PendingRequest, attempt: KnownAttempt | None = None) -> RequestResult | None:
        """Record the image if the store has it and the ledger does not; the result, or None without an image.

        It counts as the image of `attempt`, by default of the last earlier one; its cost comes from the history.
        """
        context = self._context
        path = layout.image(row.key.hex(), row.request.extension)
        if await context.store.head(path) is None:
            return None
        facts = await context.stored_facts(path)
        if attempt is None:
            known = await context.ledger.known(row.key)
            earlier = _claimed_before(known, row.claim_no)
            attempt = earlier[-1] if earlier else None
            row.is_late = attempt is not None
        request_id = attempt.request_id if attempt else None
        endpoint = attempt.endpoint if attempt else None
        cost = await context.cost_of(request_id)
        delivery = Delivery(b"", request_id=request_id, cost_usd=cost, endpoint=endpoint)
        return await context.delivered(row, facts, delivery)

    async def _follow(self, row: PendingRequest, last: KnownAttempt) -> Submission | NextStep:
        """Take over the open claim of a run that ended: fetch its result, or find out what became of its call."""
        context, record = self._context, last.record
        if record is None:
            return Retry()
        row.claim_no, row.claim, row.claimed_at = last.claim_no, record.claim, None
        row.stored_at = record.stored or record.claim.store_time
        row.claimant_gone = await context.run_liveness.liveness_of(_owner(last)) == "dead"
        row.request_id, row.stored_request_id = last.request_id, record.request_id
        result = await self.adopt(row, last) or await self._unowned(row, last)
        if result is not None:
            return result
        if context.accounts.forgets:
            return await self._lookups.forgotten(row, last)
        if last.request_id is not None:
            return Submission(row.request, last.request_id, is_old=True)
        if row.ownership == "other" and last.account is not None:
            text = f"run {last.run_id} sent the request with the key of account {last.account}"
            return row.held(ProviderError("other_account", text))
        text = f"run {last.run_id} sent the request and learned nothing of its fate"
        return self._lookups.unknown(row, ProviderError("unknown", text), last)

    async def _unowned(self, row: PendingRequest, last: KnownAttempt) -> RequestResult | None:
        """Find out whose call it is, for `row.ownership`; the row's result if an interruption prevents that."""
        try:
            row.ownership = await self._context.look_up(self._context.accounts.ownership(last))
        except ProviderError as error:
            return row.held(error)
        return None

    def _leave(self, row: PendingRequest, last: KnownAttempt) -> Defer:
        """Leave a row to the run that works on it, as long as that run is alive."""
        text = f"run {last.run_id} is working on the same request"
        error = ProviderError("other_run", text, request_id=last.request_id)
        return Defer(lambda: self._watch(row, last), row.held(error))

    async def _watch(self, row: PendingRequest, last: KnownAttempt) -> NextStep:
        """Wait until the other run has made the image, has ended the attempt, or has ended itself."""
        row.enter(State.WATCH)
        context, path = self._context, layout.image(row.key.hex(), row.request.extension)
        pause, longest = _WATCH_S
        self._watched += 1
        try:
            while True:
                # However many rows are watched, the store gets at most about fifty requests a second.
                await context.clock.sleep(max(pause, self._watched / 50))
                pause = min(longest, 1.5 * pause)
                if await context.store.head(path) is not None:
                    return await self._reused(row, last)
                await context.ledger.refresh()
                known = await context.ledger.known(row.key)
                closed = any(attempt.claim_no == last.claim_no and attempt.is_closed for attempt in known)
                if closed or await context.run_liveness.liveness_of(_owner(last)) != "alive":
                    return Retry()
        finally:
            self._watched -= 1

    async def _reused(self, row: PendingRequest, last: KnownAttempt) -> RequestResult:
        """The result `reused`: another run has made the image, and paid for it."""
        facts = await self._context.stored_facts(layout.image(row.key.hex(), row.request.extension))
        result = RequestResult(row.key, "reused", image=facts, cost_usd=0.0)
        result.request_id, result.endpoint = last.request_id, last.endpoint
        result.created_at = self._context.clock.now()
        return result


def _claimed_before(known: Sequence[KnownAttempt], claim_no: int) -> list[KnownAttempt]:
    """The attempts with a claim of a lower number, in order."""
    return [attempt for attempt in known if attempt.claim_no < claim_no and attempt.record is not None]


def _owner(attempt: KnownAttempt) -> str:
    """The path of the heartbeat of the run that made a claim; claims of older stores do not name it."""
    named = attempt.record.claim.owner if attempt.record else None
    return named or layout.heartbeat(str(attempt.run_id))
