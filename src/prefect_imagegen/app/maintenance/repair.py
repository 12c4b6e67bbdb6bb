"""Repair the problems that `verify` finds in a store."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.images.image import BadImageError, decode, facts_of
from prefect_imagegen.core.ledger.events import ClaimRecord, Event, ImageFacts
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.executor.context import LATE, MORE_IMAGES
from prefect_imagegen.ports import Clock, Delivery, ObjectStore, Provider, Submission
from prefect_imagegen.store.ledger.ledger import StoreLedger

_LOST = frozenset({"output_lost", "bad_output", "generation_failed", "generation_error", "content_policy"})
_OF_THE_CALL = ("model", "cost_class", "seed", "backend", "endpoint", "account")
"""The columns that a delivered event shares with the failed event of the same call."""
Repair = Literal["fetched_again", "adopted", "quarantined"]
REPAIRS: dict[Repair, str] = {
    "fetched_again": "the API still had the paid image: it is in its place",
    "adopted": "whole, and now in the ledger: no run will pay for it",
    "quarantined": "moved to quarantine/ (if it was there) and given free: the next run makes it anew, at its price",
}


class Repairer:
    """Repairs problems of a store, and records the repairs in the ledger.

    `source`: the API to fetch lost images from; None if there is no key. `outputs_live`: how long it keeps them, None
    for ever. `is_sandbox`: the store is one of placeholders.
    """

    def __init__(
        self,
        store: ObjectStore,
        ledger: StoreLedger,
        source: Provider | None,
        run_id: str,
        clock: Clock,
        outputs_live: timedelta | None,
        *,
        is_sandbox: bool,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._source = source
        self._run_id = run_id
        self._clock = clock
        self._outputs_live = outputs_live
        self._is_sandbox = is_sandbox

    @property
    def has_source(self) -> bool:
        """Whether there is an API to fetch lost images from."""
        return self._source is not None

    async def restore(self, event: dict[str, Any], facts: ImageFacts, data: bytes | None) -> Repair | None:
        """Fetch a recorded image that is missing or damaged again, or quarantine it so that the next run makes it anew.

        `data`: the damaged bytes, if there are any. None (no repair) if the API could not be asked, or may still have
        the image: while it keeps outputs, neither an error nor wrong bytes prove that a paid image is lost. An image of
        the sandbox that cost nothing needs no such proof.
        """
        fetched: bytes | None = None
        is_old = self._outputs_live is not None and self._clock.now() - event["time"] > self._outputs_live
        is_free = self._is_sandbox and event["cost_usd"] == 0
        if self._source is None and event["request_id"] is not None and not is_old and not is_free:
            return None
        if self._source is not None and event["request_id"] is not None:
            try:
                fetched = (await _fetched(self._source, event)).data
            except ProviderError as error:
                is_gone = error.kind in _LOST or error.status in (404, 410)
                if not is_gone or not is_old:
                    return None
            if fetched is not None and hashlib.sha256(fetched).hexdigest() != facts.sha256:
                if not is_old:
                    return None
                fetched = None
        if data is not None:
            await self.move_away(facts.path, data)
        if fetched is not None:
            await self._store.create(facts.path, fetched, f"image/{facts.format}")
            return "fetched_again"
        same = {name: event[name] for name in ("request_id", "model", "account")}
        await self._record("quarantined", event["key"], event["attempt_id"], **same)
        return "quarantined"

    async def fetch_late(self, events: Sequence[dict[str, Any]], path: str) -> Repair | None:
        """Store the image of a key whose billed calls all ended without one, from the first call that has it now.

        `events`: the calls' failed events. None (no repair) if no call has the image, or not yet.
        """
        if self._source is None:
            return None
        for event in events:
            try:
                await self._deliver(event, path, await _fetched(self._source, event))
            except (ProviderError, BadImageError):
                continue
            return "fetched_again"
        return None

    async def _deliver(self, event: dict[str, Any], path: str, delivery: Delivery) -> None:
        """Store and record the image that an ended call has delivered after all. Raises BadImageError."""
        data = delivery.data
        decoded = await asyncio.to_thread(decode, data)
        if not await self._store.create(path, data, decoded.content_type):
            data = await self._store.get(path) or b""  # the object that is there counts, whoever wrote it
            decoded = await asyncio.to_thread(decode, data)
        image = facts_of(path, decoded, len(data))
        stem, _, extension = path.rpartition(".")
        for number, further in enumerate(delivery.more, 2):
            media = (await asyncio.to_thread(decode, further)).content_type
            await self._store.create(f"{stem}-{number}.{extension}", further, media)
        flags = (*image.flags, *((MORE_IMAGES,) if delivery.more else ()), LATE)
        cost = await self._cost(event["request_id"]) if delivery.cost_usd is None else delivery.cost_usd
        facts = {**delivery.facts(), "request_id": event["request_id"], "image": replace(image, flags=flags)}
        of_the_call = {name: event[name] for name in _OF_THE_CALL}
        await self._record("delivered", event["key"], event["attempt_id"], **facts | {"cost_usd": cost} | of_the_call)

    async def adopt(self, key: bytes, facts: ImageFacts, claim: ClaimRecord | None) -> Repair:
        """Record a whole image in the ledger, under the claim's attempt if that is open, else under a new attempt."""
        request_id = claim.request_id if claim else None
        attempt_id = f"{key.hex()}-{self._ledger.next_attempt(key)}"
        if claim is not None and not self._ledger.is_closed(claim.claim.attempt_id):
            attempt_id = claim.claim.attempt_id
        cost = await self._cost(request_id)
        call = claim.claim if claim is not None else None
        origin = {"endpoint": call.endpoint, "account": call.account} if call is not None else {}
        await self._record("delivered", key, attempt_id, request_id=request_id, image=facts, cost_usd=cost, **origin)
        return "adopted"

    async def move_away(self, path: str, data: bytes) -> Repair:
        """Move an object to quarantine/."""
        await self._store.create(layout.quarantined(path, hashlib.sha256(data).hexdigest()), data)
        await self._store.delete(path)
        return "quarantined"

    async def _cost(self, request_id: str | None) -> float | None:
        account = self._source.account if self._source is not None else None
        if account is None or request_id is None:
            return None
        try:
            record = await account.record(request_id)
        except ProviderError:
            return None
        return record.cost_usd if record else None

    async def _record(
        self, kind: Literal["delivered", "quarantined"], key: bytes, attempt_id: str, **more: Any
    ) -> None:
        await self._ledger.record(Event(kind, key, attempt_id, self._run_id, self._clock.now(), **more))


async def _fetched(source: Provider, event: dict[str, Any]) -> Delivery:
    """The result of an earlier call, by its event. Raises ProviderError."""
    request = GenerationRequest(str(event["model"]), {})
    return await source.collect(Submission(request, event["request_id"], is_old=True))
