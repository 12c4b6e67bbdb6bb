"""Putting right what `verify` finds wrong in a store."""

import hashlib
from typing import Any, Literal

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import BackendError
from prefect_imagegen.core.events import ClaimRecord, Event, ImageFacts
from prefect_imagegen.executor.calls import OUTPUTS_LIVE
from prefect_imagegen.io.segmind import SegmindBackend
from prefect_imagegen.ports import Clock, Ledger, ObjectStore

_SURELY_LOST = frozenset({"output_lost", "bad_output", "generation_failed", "generation_error", "content_policy"})
Repair = Literal["fetched_again", "adopted", "quarantined"]
REPAIRS: dict[Repair, str] = {
    "fetched_again": "the API still had the paid image: it is back in its place",
    "adopted": "whole, and now in the ledger: no run will pay for it",
    "quarantined": "moved to quarantine/ (if it was there) and given free: the next run makes it anew, and pays for it",
}


class Mending:
    """Puts right what is wrong, and tells the ledger."""

    def __init__(
        self, store: ObjectStore, ledger: Ledger, source: SegmindBackend | None, run_id: str, clock: Clock
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._source = source
        self._run_id = run_id
        self._clock = clock

    async def restore(self, event: dict[str, Any], facts: ImageFacts, data: bytes | None) -> Repair | None:
        """Bring back a recorded image from the API, or give its key free; None if the API could not be asked."""
        fetched: bytes | None = None
        if self._source is not None and event["request_id"] is not None:
            try:
                fetched = (await self._source.fetch(event["request_id"])).data
            except BackendError as error:
                gone = error.status in (404, 410) and self._clock.now() - event["time"] > OUTPUTS_LIVE
                if error.kind not in _SURELY_LOST and not gone:
                    return None
        if data is not None:
            await self.move_away(facts.path, data)
        if fetched is not None and hashlib.sha256(fetched).hexdigest() == facts.sha256:
            await self._store.create(facts.path, fetched, f"image/{facts.format}")
            return "fetched_again"
        await self._record("quarantined", event["key"], event["attempt_id"], event["request_id"], model=event["model"])
        return "quarantined"

    async def adopt(self, key: bytes, facts: ImageFacts, claim: ClaimRecord | None) -> Repair:
        """Enter a whole image into the ledger, under its open attempt, else under one of its own."""
        request_id = claim.request_id if claim else None
        attempt_id = f"{key.hex()}-{self._ledger.next_attempt(key)}"
        if claim is not None and not self._ledger.is_closed(claim.claim.attempt_id):
            attempt_id = claim.claim.attempt_id
        cost = await self._cost(request_id)
        await self._record("delivered", key, attempt_id, request_id, image=facts, cost_usd=cost)
        return "adopted"

    async def move_away(self, path: str, data: bytes) -> Repair:
        """Take bytes out of their place, and keep them."""
        await self._store.create(layout.quarantined(path, hashlib.sha256(data).hexdigest()), data)
        await self._store.delete(path)
        return "quarantined"

    async def _cost(self, request_id: str | None) -> float | None:
        if self._source is None or request_id is None:
            return None
        try:
            record = await self._source.record(request_id)
        except BackendError:
            return None
        return record.cost_usd if record else None

    async def _record(
        self,
        kind: Literal["delivered", "quarantined"],
        key: bytes,
        attempt_id: str,
        request_id: str | None,
        **more: Any,
    ) -> None:
        now = self._clock.now()
        await self._ledger.record(Event(kind, key, attempt_id, self._run_id, now, request_id=request_id, **more))
