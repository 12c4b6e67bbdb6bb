"""The ledger in an object store: claims and request ids as single objects, events as immutable segments."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime

import pyarrow as pa

from prefect_imagegen.core import layout
from prefect_imagegen.core.attempts import Attempts
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.events import RANK, Claim, ClaimRecord, Event
from prefect_imagegen.core.ledger import KEY_TYPE, LedgerFold, LedgerView, events_table
from prefect_imagegen.crashpoints import reached
from prefect_imagegen.io.event_file import EventFile
from prefect_imagegen.io.ledger_files import (
    MissingFileError,
    damaged,
    from_parquet,
    json_object,
    ledger_files,
    read_files,
    to_parquet,
)
from prefect_imagegen.ports import Clock, ObjectStore

FLUSH_EVENTS = 2_000
FLUSH_SECONDS = 15.0
REFRESH_SECONDS = 5.0
_TRIES = 3
_CLOSING = frozenset({"failed", "delivered", "quarantined"})


class StoreLedger:
    """A `ports.Ledger` over one store, for one process of one run. `seen` are the segments that `view` holds."""

    def __init__(
        self,
        store: ObjectStore,
        view: LedgerView,
        *,
        run_id: str,
        nonce: str,
        clock: Clock,
        seen: Iterable[str] = (),
    ) -> None:
        self.view = view
        self._seen = set(seen)
        self._refreshing = asyncio.Lock()
        self._refreshed = float("-inf")
        self._store = store
        self._run_id = run_id
        self._nonce = nonce
        self._clock = clock
        self._events: list[Event] = []
        self._closed: set[str] = set()
        self._since = Attempts()  # what was flushed by us, or read of others, after `view`
        self._segments = 0
        self._flushing = asyncio.Lock()

    async def claims(self, key: bytes) -> Sequence[ClaimRecord]:
        """All claims of a key, by number, each with its request_id if it got one."""
        folder = layout.claims_of(key.hex())
        found = {info.path.rsplit("/", 1)[1]: info.modified for info in await self._store.list(folder)}
        numbers = sorted(int(name[: -len(".json")]) for name in found if name[: -len(".json")].isdigit())
        return [
            replace(await self._read_claim(key, n, has_id=f"{n}.id.json" in found), stored=found[layout.claim_name(n)])
            for n in numbers
        ]

    async def claim(self, key: bytes, n: int, claim: Claim) -> bool:
        """Create claim number n: True if it is ours (an own put re-sent by a client library included)."""
        path = layout.claim(key.hex(), n)
        data = json.dumps(asdict(claim) | {"time": claim.time.isoformat()}, ensure_ascii=False).encode()
        if await self._store.create(path, data, "application/json"):
            return True
        found = await self._read_claim(key, n, has_id=False)
        return found.claim.nonce == claim.nonce and found.claim.attempt_id == claim.attempt_id

    async def record_request_id(self, key: bytes, n: int, request_id: str) -> None:
        """Make the request_id of claim n durable."""
        data = json.dumps({"request_id": request_id}).encode()
        path = layout.claim_id(key.hex(), n)
        if not await self._store.create(path, data, "application/json") and await self._store.get(path) != data:
            raise StoreError("store_conflict", f"{path} names another request_id.", remedy="Run `verify` on the store.")

    async def record(self, event: Event) -> None:
        """Take an event in; a full buffer is flushed."""
        self._events.append(event)
        if event.type in _CLOSING:
            self._closed.add(event.attempt_id)
        # Who comes while a segment is being written does not wait for it, to write a tiny one of its own.
        if len(self._events) >= FLUSH_EVENTS and not self._flushing.locked():
            await self.flush()

    async def flush(self) -> None:
        """Write all events taken in so far as one immutable segment. They stay in memory until that succeeds."""
        async with self._flushing:
            events = self._events[:]
            if not events:
                return
            stamp = self._clock.now().strftime("%Y%m%dT%H%M%S%f")
            path = layout.segment(f"{stamp}-{self._nonce}-{self._segments:06d}")
            table = events_table(events)
            data = await asyncio.to_thread(to_parquet, table)
            if not await self._store.create(path, data) and await self._store.get(path) != data:
                raise StoreError(
                    "store_conflict", f"{path} exists with other content.", remedy="Run the command again."
                )
            reached("segment")
            self._segments += 1
            del self._events[: len(events)]
            # Known in 21 bytes from here on, not by its name: a run may make millions.
            self._since.add(table)
            self._closed.difference_update(event.attempt_id for event in events if event.type in _CLOSING)

    async def keep_flushing(self) -> None:
        """Flush every 15 seconds, until cancelled."""
        while True:
            await self._clock.sleep(FLUSH_SECONDS)
            await self.flush()

    def next_attempt(self, key: bytes) -> int:
        """The number of the claim to try first, by what the ledger said when it was read."""
        return self.view.next_attempt(key)

    def is_open(self, key: bytes) -> bool:
        """Whether, when the ledger was read, the key had an attempt without an end, and no image."""
        return bool(self.view.states(pa.array([key], KEY_TYPE))[0].as_py() == "open")

    def is_closed(self, attempt_id: str) -> bool:
        """Whether the ledger knows the attempt to have ended."""
        return attempt_id in self._closed or self._rank_of(attempt_id) >= RANK["failed"]

    def is_delivered(self, attempt_id: str) -> bool:
        """Whether the ledger knows the attempt to have led to an image."""
        return self._rank_of(attempt_id) == RANK["delivered"]

    def _rank_of(self, attempt_id: str) -> int:
        return max(self._since.rank_of(attempt_id), self.view.rank_of(attempt_id))

    def request_ids(self, key: bytes) -> frozenset[str]:
        """The request ids that the ledger knows of a key that has no image."""
        return self.view.request_ids(key)

    async def refresh(self, *, at_once: bool = False) -> None:
        """Read the segments that other runs have written since; at most every 5 seconds, unless `at_once`."""
        async with self._refreshing:
            if not at_once and self._clock.monotonic() - self._refreshed < REFRESH_SECONDS:
                return
            for path in await segments(self._store):
                if path in self._seen or self._nonce in path:
                    continue
                data = await self._store.get(path)
                if data is not None:
                    self._since.add(await asyncio.to_thread(from_parquet, path, data))
                self._seen.add(path)
            self._refreshed = self._clock.monotonic()

    async def _read_claim(self, key: bytes, n: int, *, has_id: bool) -> ClaimRecord:
        path = layout.claim(key.hex(), n)
        try:
            body = json_object(path, await self._store.get(path))
            body["time"] = datetime.fromisoformat(str(body["time"]))
            claim = Claim(**{one.name: body[one.name] for one in fields(Claim)})  # type: ignore[arg-type]
            request_id = None
            if has_id:
                path = layout.claim_id(key.hex(), n)
                request_id = str(json_object(path, await self._store.get(path))["request_id"])
        except (KeyError, ValueError) as error:
            raise damaged(path) from error
        return ClaimRecord(n, claim, request_id)


async def segments(store: ObjectStore) -> list[str]:
    """The paths of all segments, sorted."""
    return [info.path for info in await store.list(layout.SEGMENTS) if info.path.endswith(".parquet")]


async def load_ledger(store: ObjectStore) -> LedgerView:
    """Read the newest generation and every segment that it has not absorbed, and fold them.

    Memory holds some bytes for each attempt; the facts of images wait in a temporary file. Raises StoreError that
    names a damaged file.
    """
    with EventFile() as kept:
        folding = LedgerFold(kept)
        async for table in event_tables(store):
            await asyncio.to_thread(folding.add, table)
        return await asyncio.to_thread(folding.view)


async def event_tables(store: ObjectStore) -> AsyncIterator[pa.Table]:
    """All events of the ledger, as tables of `EVENT_SCHEMA` in no particular order; few are in memory at once.

    Where a compaction took files away under a reader that slept for a day, it begins anew, and events come twice: the
    fold does not mind. Raises StoreError that names a missing or damaged file.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            async for table in read_files(store, await ledger_files(store)):
                yield table
        except MissingFileError as error:
            if not tries_left or error.path in (await ledger_files(store)).paths:
                raise
        else:
            return
