"""Claims: winning one before a paid call, going on with those of runs that ended, and settling unknown outcomes."""

from datetime import timedelta

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import BackendError
from prefect_imagegen.core.events import Claim, ClaimRecord
from prefect_imagegen.core.reconcile import next_look
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.crashpoints import reached
from prefect_imagegen.executor.closing import Closing
from prefect_imagegen.executor.kit import Kit
from prefect_imagegen.executor.rows import Again, Park, Row, Step
from prefect_imagegen.ports import Delivery, Submission

CLAIM_FRESH = timedelta(seconds=60)
"""A claim older than this is read again before its POST: the process may have slept."""
CLAIM_SAFE_S = 120.0
"""Nobody sends over the claim of another, unless that process is gone for certain, before it is so old."""
EARLY_LOOK_S = 30.0
_LOOK_AGAIN_S = 30.0
_WATCH_S = (1.0, 15.0)


class Claims:
    """What becomes of a row before its POST, or in place of it."""

    def __init__(self, kit: Kit, closing: Closing) -> None:
        self._kit = kit
        self._closing = closing
        self._watched = 0
        self._read_after: set[str] = set()

    async def win(self, row: Row) -> Submission | Step | None:
        """Win a claim (None), or follow what an earlier one led to."""
        kit = self._kit
        while True:
            now = kit.clock.now()
            claim = Claim(kit.policy.run_id, kit.policy.nonce, row.attempt_id, now, row.claim_body)
            if await kit.ledger.claim(row.key, row.n, claim):
                row.claimed_at, row.stored_at, row.claimant_gone = now, kit.neighbours.store_now(), True
                await kit.record(row, "claimed")
                reached("claim")
                return None
            step = await self.resume(row)
            if not isinstance(step, Again):
                return step

    async def resume(self, row: Row) -> Submission | Step:
        """What the last claim of a key led to, whoever made it; `Again` if the way to the next one is free."""
        kit = self._kit
        claims = await kit.ledger.claims(row.key)
        if not claims:
            return Again()
        last = claims[-1]
        attempt_id, run_id = last.claim.attempt_id, last.claim.run_id
        if not kit.ledger.is_closed(attempt_id) and run_id not in self._read_after:
            if await kit.neighbours.life(run_id) == "live":
                return await self._follow(row, last)
            # It writes no more: what it wrote after we read the ledger is read once.
            await kit.ledger.refresh(at_once=True)
            self._read_after.add(run_id)
        if kit.ledger.is_delivered(attempt_id):
            return await self._reused(row, last)
        if kit.ledger.is_closed(attempt_id):
            row.n = last.n + 1
            return Again()
        return await self._follow(row, last)

    async def still_ours(self, row: Row) -> bool:
        """Whether the claim still stands for us: after a long pause of the process others may have taken it over."""
        if row.claimed_at is None or self._kit.clock.now() - row.claimed_at <= CLAIM_FRESH:
            return True
        return (await self._kit.ledger.claims(row.key))[-1].n == row.n

    async def adopt(self, row: Row, request_id: str | None = None) -> RequestResult | None:
        """The image, if the store has it already without the ledger knowing; its cost as the history tells it."""
        kit = self._kit
        path = layout.image(row.key.hex(), row.request.extension)
        if await kit.store.head(path) is None:
            return None
        facts = await kit.stored_facts(path)
        cost = None
        if request_id is not None:
            try:
                record = await kit.backend.record(request_id)
                cost = record.cost_usd if record else None
            except BackendError:
                cost = None  # the image counts; what it cost stays unknown
        return await kit.delivered(row, facts, Delivery(b"", request_id=request_id, cost_usd=cost))

    def unknown(self, row: Row, error: BackendError) -> Step:
        """A call was sent under the row's claim and nobody knows its fate: look it up before anything else."""
        held = row.held(error)
        if self._kit.policy.on_unknown == "hold":
            return held
        if row.posts:
            # Ours, and bad news at once; what an earlier run left says nothing of how things go now.
            self._kit.control.finished(held)
            row.told = True
        return Park(lambda: self._reconcile(row, held), held)

    async def _follow(self, row: Row, last: ClaimRecord) -> Submission | Step:
        """Go on with the open claim of another run, or leave it to that run as long as it lives."""
        kit, run_id = self._kit, last.claim.run_id
        life = await kit.neighbours.life(run_id)
        if life == "live":
            text = f"run {run_id} is working on the same request"
            error = BackendError("other_run", text, request_id=last.request_id)
            return Park(lambda: self._watch(row, last), row.held(error))
        row.n, row.claimed_at, row.claimant_gone = last.n, last.claim.time, life == "gone"
        row.stored_at = last.stored or last.claim.time
        if (found := await self.adopt(row, last.request_id)) is not None:
            return found
        if last.request_id is not None:
            row.kept_id = last.request_id
            return Submission(row.request, last.request_id)
        return self.unknown(
            row, BackendError("unknown", f"run {run_id} sent the request and learned nothing of its fate")
        )

    async def _watch(self, row: Row, last: ClaimRecord) -> Step:
        """Wait for what a living run does with a row: its image, its end of the attempt, or its own end."""
        kit, path = self._kit, layout.image(row.key.hex(), row.request.extension)
        pause, longest = _WATCH_S
        self._watched += 1
        try:
            while True:
                # However many rows are watched, the store is asked some fifty times a second at most.
                await kit.clock.sleep(max(pause, self._watched / 50))
                pause = min(longest, 1.5 * pause)
                if await kit.store.head(path) is not None:
                    return await self._reused(row, last)
                await kit.ledger.refresh()
                closed = kit.ledger.is_closed(last.claim.attempt_id)
                if closed or await kit.neighbours.life(last.claim.run_id) != "live":
                    return Again()
        finally:
            self._watched -= 1

    async def _reused(self, row: Row, last: ClaimRecord) -> RequestResult:
        """The image that another run has made, and paid for."""
        facts = await self._kit.stored_facts(layout.image(row.key.hex(), row.request.extension))
        result = RequestResult(row.key, "reused", image=facts, cost_usd=0.0)
        result.request_id, result.created_at = last.request_id, self._kit.clock.now()
        return result

    async def _reconcile(self, row: Row, held: RequestResult) -> Step:
        """Look into the history when it is due; absent after its lag means that the call was not accepted."""
        kit, lag = self._kit, self._kit.policy.history_lag
        looked: float | None = None
        once = kit.policy.on_unknown == "retry-once"
        while True:
            due = min(EARLY_LOOK_S, lag) if once else next_look(looked, lag)
            if due is None:
                break
            await kit.clock.sleep(max(0.0, due - self._age(row)))
            row.busy = True
            try:
                age = self._age(row)
                found = await self._look(row)
            except BackendError:
                # A look that failed proves nothing.
                row.busy = False
                await kit.clock.sleep(_LOOK_AGAIN_S)
                continue
            finally:
                row.busy = False
            if found is not None:
                row.accepted = found
                return Again()
            looked = age
            if once:
                break
        if once and row.by_kind["sent_again"]:
            return held
        if not row.claimant_gone:
            await kit.clock.sleep(max(0.0, CLAIM_SAFE_S - self._age(row)))
        kind = "sent_again" if once else "not_accepted"
        return await self._closing.close(row, BackendError(kind, f"{held.error_message}; the history does not know it"))

    async def look(self, row: Row) -> Submission | None:
        """One look into the history right after an answered 5xx: was the work taken after all?"""
        try:
            return await self._look(row)
        except BackendError:
            return None

    async def _look(self, row: Row) -> Submission | None:
        kit = self._kit
        claims = await kit.ledger.claims(row.key)
        known = kit.ledger.request_ids(row.key) | {claim.request_id for claim in claims if claim.request_id}
        body = next((claim.claim.body for claim in claims if claim.n == row.n), row.claim_body)
        since = row.claimed_at or kit.clock.now()
        unnamed = sum(claim.n < row.n and claim.request_id is None for claim in claims)
        request_id = await kit.backend.find(row.request.model, body, since, frozenset(known), unnamed)
        return None if request_id is None else Submission(row.request, request_id)

    def _age(self, row: Row) -> float:
        """Seconds since the row's claim was put, by the store's clock."""
        if row.stored_at is None:
            return 0.0
        return (self._kit.neighbours.store_now() - row.stored_at).total_seconds()
