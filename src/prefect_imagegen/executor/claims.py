"""Claims: winning one before a paid call, and going on with those of runs that ended. See docs/design/pay-once.md."""

from collections.abc import Sequence

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.ledger.events import Claim, KnownAttempt
from prefect_imagegen.core.policy.outcomes import OUTCOMES, is_permanent
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.lookups import Lookups
from prefect_imagegen.executor.pending import Defer, NextStep, PendingRequest, Retry
from prefect_imagegen.failpoints import hit
from prefect_imagegen.ports import Delivery, Submission

CLAIM_FRESH_S = 60.0
"""A claim older than this is given up unsent, for a new one: the process may have slept."""
_LISTING_TRIES = 6
_WATCH_S = (1.0, 15.0)


class Claims:
    """What becomes of a row before its POST, or in place of it."""

    def __init__(self, context: ExecutorContext, lookups: Lookups) -> None:
        self._context = context
        self._lookups = lookups
        self._watched = 0
        self._read_after: set[str] = set()

    async def win(self, row: PendingRequest) -> Submission | NextStep | None:
        """Win a claim (None), or follow what an earlier one led to."""
        context = self._context
        while True:
            claim = self._new_claim(row)
            if await context.ledger.claim(row.key, row.claim_no, claim):
                row.claim, row.claimed, row.stored_at = claim, context.clock.monotonic(), claim.store_time
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
            context.neighbours.store_now(),
            context.provider.now(),
        )

    async def _given_up_before(self, row: PendingRequest) -> Submission | NextStep | None:
        """Look for calls of earlier runs that were given up on a guess: the history may show them by now."""
        if not row.is_left_behind or row.failures or self._context.policy.on_unknown == "hold":
            return None
        known = await self._context.ledger.known(row.key)
        doubtful = [one for one in known if one.n < row.claim_no and one.record is not None and self._was_a_guess(one)]
        return await self._lookups.before_sending(row, doubtful) if doubtful else None

    def _was_a_guess(self, attempt: KnownAttempt) -> bool:
        """Whether an attempt was closed though the API may have taken the call."""
        outcome = OUTCOMES.get(attempt.error_kind or "")
        if outcome is None:
            return False
        # An id that came with a refusal is a name of the refusal, not of a call.
        is_unnamed = outcome.accepted == "unknown" and attempt.request_id is None
        return is_unnamed or (outcome.accepted == "answered_5xx" and self._context.provider.queues)

    async def resume(self, row: PendingRequest, *, lost: int = 0) -> Submission | NextStep:
        """What the highest claim of a key led to, whoever made it; `Again` if the way to the next one is free.

        `lost`: the number of a claim that somebody else was first to make.
        """
        context = self._context
        read_after = frozenset(self._read_after)  # before: another row may add a run while this one's facts are read
        known = await self._known(row, lost)
        if known is None:
            text = f"the store says that claim {lost} exists, and does not show it"
            return row.held(ProviderError("other_run", text))
        last = next((one for one in reversed(known) if one.record is not None), None)
        if last is None:
            row.claim_no = max([row.claim_no, *(one.n + 1 for one in known)])
            return Retry()
        if not last.is_closed and last.run_id not in read_after:
            if await context.neighbours.life(_owner(last)) == "alive":
                return self._leave(row, last)
            # It writes no more: what it wrote after we read the ledger is read once.
            await context.ledger.refresh(at_once=True)
            self._read_after.add(str(last.run_id))
            return await self.resume(row, lost=lost)
        if any(one.is_delivered for one in known):
            return await self._reused(row, last)
        return self._after_its_end(row, last, known[-1].n) if last.is_closed else await self._follow(row, last)

    def _after_its_end(self, row: PendingRequest, last: KnownAttempt, highest: int) -> NextStep:
        """What follows a closed attempt: the next one, unless another run found the row to fail for good."""
        is_final = last.error_kind is not None and is_permanent(last.error_kind) and not last.is_asked
        if is_final and last.run_id != self._context.policy.run_id:
            kind, message = str(last.error_kind), last.error_message or ""
            return row.failed(ProviderError(kind, message, request_id=last.request_id))
        row.claim_no = max(last.n, highest) + 1
        return Retry()

    async def _known(self, row: PendingRequest, lost: int) -> Sequence[KnownAttempt] | None:
        """What is known of a key; None if a claim that exists cannot be read, however often it is asked for."""
        for tries in range(_LISTING_TRIES):
            known = await self._context.ledger.known(row.key, lost=lost)
            if not lost or any(one.n >= lost and one.record is not None for one in known):
                return known
            await self._context.control.sleep(0.25 * 2.0**tries)
        return None

    def is_stale(self, row: PendingRequest) -> bool:
        """Whether a claim has waited too long for its POST: the process may have slept, or the store been away."""
        context = self._context
        if row.claim is None or row.claimed is None:
            return False
        # The monotonic clock stands still while a machine sleeps, the other one may be set.
        asleep = (context.clock.now() - row.claim.time).total_seconds()
        return max(asleep, context.clock.monotonic() - row.claimed) > CLAIM_FRESH_S

    async def adopt(self, row: PendingRequest, attempt: KnownAttempt | None = None) -> RequestResult | None:
        """The image, if the store has it already without the ledger knowing; its cost as the history tells it.

        It is that of `attempt`, or of whichever earlier one made it last.
        """
        context = self._context
        path = layout.image(row.key.hex(), row.request.extension)
        if await context.store.head(path) is None:
            return None
        facts = await context.stored_facts(path)
        if attempt is None:
            known = await context.ledger.known(row.key)
            earlier = [one for one in known if one.n < row.claim_no and one.record is not None]
            attempt = earlier[-1] if earlier else None
            row.late = attempt is not None
        request_id = attempt.request_id if attempt else None
        endpoint = attempt.endpoint if attempt else None
        cost = await self._cost(request_id)
        delivery = Delivery(b"", request_id=request_id, cost_usd=cost, endpoint=endpoint)
        return await context.delivered(row, facts, delivery)

    async def _cost(self, request_id: str | None) -> float | None:
        if request_id is None:
            return None
        try:
            record = await self._context.asked(self._context.provider.record(request_id))
        except ProviderError:
            return None  # the image counts; what it cost stays unknown
        return record.cost_usd if record else None

    async def _follow(self, row: PendingRequest, last: KnownAttempt) -> Submission | NextStep:
        """Go on with the open claim of a run that ended."""
        context, record = self._context, last.record
        if record is None:
            return Retry()
        row.claim_no, row.claim, row.claimed = last.n, record.claim, None
        row.stored_at = record.stored or record.claim.store_time
        row.claimant_gone = await context.neighbours.life(_owner(last)) == "dead"
        row.request_id, row.stored_request_id = last.request_id, record.request_id
        found = await self.adopt(row, last) or await self._unowned(row, last)
        if found is not None:
            return found
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
        """Find out whose call it is; the row's end where the run stops before that is known."""
        try:
            row.ownership = await self._context.asked(self._context.accounts.ownership(last))
        except ProviderError as error:
            return row.held(error)
        return None

    def _leave(self, row: PendingRequest, last: KnownAttempt) -> Defer:
        """Leave a row to the run that works on it, as long as it lives."""
        text = f"run {last.run_id} is working on the same request"
        error = ProviderError("other_run", text, request_id=last.request_id)
        return Defer(lambda: self._watch(row, last), row.held(error))

    async def _watch(self, row: PendingRequest, last: KnownAttempt) -> NextStep:
        """Wait for what a living run does with a row: its image, its end of the attempt, or its own end."""
        context, path = self._context, layout.image(row.key.hex(), row.request.extension)
        pause, longest = _WATCH_S
        self._watched += 1
        try:
            while True:
                # However many rows are watched, the store is asked some fifty times a second at most.
                await context.clock.sleep(max(pause, self._watched / 50))
                pause = min(longest, 1.5 * pause)
                if await context.store.head(path) is not None:
                    return await self._reused(row, last)
                await context.ledger.refresh()
                known = await context.ledger.known(row.key)
                closed = any(one.n == last.n and one.is_closed for one in known)
                if closed or await context.neighbours.life(_owner(last)) != "alive":
                    return Retry()
        finally:
            self._watched -= 1

    async def _reused(self, row: PendingRequest, last: KnownAttempt) -> RequestResult:
        """The image that another run has made, and paid for."""
        facts = await self._context.stored_facts(layout.image(row.key.hex(), row.request.extension))
        result = RequestResult(row.key, "reused", image=facts, cost_usd=0.0)
        result.request_id, result.endpoint = last.request_id, last.endpoint
        result.created_at = self._context.clock.now()
        return result


def _owner(attempt: KnownAttempt) -> str:
    """The path of the heartbeat that vouches for an attempt's claim; claims of older stores name none."""
    named = attempt.record.claim.owner if attempt.record else None
    return named or layout.heartbeat(str(attempt.run_id))
