"""The ledger in an object store: claims and request ids are single objects, events are immutable segments."""

import asyncio
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.attempts import Attempts
from prefect_imagegen.core.ledger.events import (
    RANK,
    RETRY_ASKED,
    RETRY_ASKED_RANK,
    Claim,
    ClaimRecord,
    Event,
    KnownAttempt,
)
from prefect_imagegen.core.ledger.fold import COURSE, LedgerView, events_table
from prefect_imagegen.core.ledger.keyed_table import KeyedTable, sorted_by_key
from prefect_imagegen.core.policy.outcomes import is_permanent
from prefect_imagegen.failpoints import hit
from prefect_imagegen.ports import Clock, ObjectStore
from prefect_imagegen.store.ledger.files import (
    damaged,
    from_parquet,
    json_object,
    to_parquet,
)
from prefect_imagegen.store.ledger.reading import segments

FLUSH_EVENTS = 2_000
FLUSH_SECONDS = 15.0
REFRESH_SECONDS = 5.0
_CLOSING = frozenset({"failed", "delivered", "quarantined"})
_ATTEMPT = re.compile(r"[0-9a-f]{32}-([1-9][0-9]{0,8})")
_CLAIM_TIMES = ("time", "store_time", "api_time")
_CLAIM_FIELDS = tuple(claim_field.name for claim_field in fields(Claim))
_CLAIM_NEEDS = ("run_id", "nonce", "attempt_id", "time", "body")


class StoreLedger:
    """A `ports.Ledger` over one store, for one process of one run.

    `view` is the ledger as it was read at the start; `read_segments` are the segments that it includes.
    """

    def __init__(
        self,
        store: ObjectStore,
        view: LedgerView,
        *,
        run_id: str,
        nonce: str,
        clock: Clock,
        read_segments: Iterable[str] = (),
    ) -> None:
        self.view = view
        self._read_segments = set(read_segments)
        self._refreshing = asyncio.Lock()
        self._refreshed = float("-inf")
        self._store = store
        self._run_id = run_id
        self._nonce = nonce
        self._clock = clock
        self._events: list[Event] = []
        self._closed: set[str] = set()
        self._later_attempts = Attempts()  # what was flushed by us, or read of others, after `view`
        self._later_course = KeyedTable(COURSE, self._undelivered)
        """Of the same events, the details of attempts without an image."""
        self._later_segments: list[str] = []
        """The segments that hold those events."""
        self._segments = 0
        self._flushing = asyncio.Lock()

    async def known(self, key: bytes, *, lost: int = 0) -> Sequence[KnownAttempt]:
        """All that is known of the attempts of a key, sorted by number.

        `lost`: the number of a claim that is known to exist. Claims up to it, and those that events name, are read by
        name, so that a listing that lags cannot hide them. Raises StoreError.
        """
        attempts: dict[int, KnownAttempt] = {n: KnownAttempt(n, rank) for n, rank in self._ranks(key).items()}
        for row in (*self.view.course(key), *self._later_rows(key)):
            match = _ATTEMPT.fullmatch(row["attempt_id"])
            if match is not None:
                n = int(match[1])
                attempts[n] = _with_event(attempts.get(n, KnownAttempt(n)), row)
        for record in await self._claims(key, {*attempts, *range(1, lost + 1)}):
            attempts[record.claim_no] = _with_claim(
                attempts.get(record.claim_no, KnownAttempt(record.claim_no)), record
            )
        return [attempts[n] for n in sorted(attempts)]

    async def claims(self, key: bytes, *, lost: int = 0) -> Sequence[ClaimRecord]:
        """All claims of a key, sorted by number, each with its request_id if it has one. `lost`: as in `known`."""
        return await self._claims(key, range(1, lost + 1))

    async def _claims(self, key: bytes, named: Iterable[int]) -> Sequence[ClaimRecord]:
        """The claims that the store lists, and those of the numbers `named` that exist though they are not listed."""
        infos = await self._store.list(layout.claims_of(key.hex()))
        times = {info.path.rsplit("/", 1)[1]: info.modified for info in infos}
        numbers = {int(name[: -len(".json")]) for name in times if name[: -len(".json")].isdigit()}
        records = []
        for n in sorted(numbers.union(named)):
            record = await self._read_claim(key, n, stored=times.get(layout.claim_name(n)))
            if record is not None:
                records.append(record)
            elif n in numbers:
                raise damaged(layout.claim(key.hex(), n))
        return records

    async def claim(self, key: bytes, claim_no: int, claim: Claim) -> bool:
        """Create claim number `claim_no`: True if it is ours, also if an earlier try of this put had made it."""
        path = layout.claim(key.hex(), claim_no)
        content = asdict(claim) | {
            name: moment and moment.isoformat() for name in _CLAIM_TIMES for moment in [getattr(claim, name)]
        }
        if await self._store.create(path, json.dumps(content, ensure_ascii=False).encode(), "application/json"):
            return True
        stored = await self._read_claim(key, claim_no)
        return stored is not None and (stored.claim.nonce, stored.claim.attempt_id) == (claim.nonce, claim.attempt_id)

    async def record_request_id(self, key: bytes, claim_no: int, request_id: str) -> None:
        """Store the request_id of claim `claim_no`. Raises StoreError, also if another request_id is stored there."""
        data = json.dumps({"request_id": request_id}).encode()
        path = layout.claim_id(key.hex(), claim_no)
        if not await self._store.create(path, data, "application/json") and await self._store.get(path) != data:
            raise StoreError("store_conflict", f"{path} names another request_id.", remedy="Run `verify` on the store.")

    async def record(self, event: Event) -> None:
        """Add an event to the buffer; a full buffer is flushed."""
        self._events.append(event)
        if event.type in _CLOSING:
            self._closed.add(event.attempt_id)
        # While a segment is being written, others do not wait for it just to write a tiny one after it.
        if len(self._events) >= FLUSH_EVENTS and not self._flushing.locked():
            await self.flush()

    async def flush(self) -> None:
        """Write all buffered events as one immutable segment; they stay in the buffer until that succeeds."""
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
            hit("segment")
            self._segments += 1
            del self._events[: len(events)]
            # From here on an attempt takes 21 bytes, not a string: a run may have millions.
            self._take_in(table)
            self._later_segments.append(path)
            self._closed.difference_update(event.attempt_id for event in events if event.type in _CLOSING)

    async def keep_flushing(self) -> None:
        """Flush every 15 seconds, until cancelled."""
        while True:
            await self._clock.sleep(FLUSH_SECONDS)
            await self.flush()

    def next_attempt(self, key: bytes) -> int:
        """The number of the claim to try first, by the ledger as it was read at the start."""
        return self.view.next_attempt(key)

    def is_open(self, key: bytes) -> bool:
        """Whether, when the ledger was read, the key had an attempt that had not ended, and no image."""
        return self.view.state(key) == "open"

    def is_finished(self, key: bytes) -> bool:
        """Whether, when the ledger was read, the key had its image or had failed permanently."""
        state = self.view.state(key)
        return state == "delivered" or (state == "failed" and is_permanent(self.view.failure(key)[0]))

    def is_closed(self, attempt_id: str) -> bool:
        """Whether the ledger knows the attempt to have ended."""
        return attempt_id in self._closed or self._rank_of(attempt_id) >= RANK["failed"]

    def _rank_of(self, attempt_id: str) -> int:
        return max(self._later_attempts.rank_of(attempt_id), self.view.rank_of(attempt_id))

    def _ranks(self, key: bytes) -> dict[int, int]:
        """The rank of each attempt of a key, by attempt number, from events alone."""
        ranks = dict(self.view.ranks(key))
        for n, rank in self._later_attempts.ranks(key).items():
            ranks[n] = max(rank, ranks.get(n, -1))
        for event in self._events:
            match = _ATTEMPT.fullmatch(event.attempt_id) if event.key == key else None
            if match is not None:
                asked = event.type == "failed" and event.error_kind == RETRY_ASKED
                rank = RETRY_ASKED_RANK if asked else RANK[event.type]
                ranks[int(match[1])] = max(rank, ranks.get(int(match[1]), -1))
        return {n: rank for n, rank in ranks.items() if n > 0}

    def _later_rows(self, key: bytes) -> list[dict[str, Any]]:
        """The details (`COURSE`) of a key's attempts since the ledger was read."""
        rows = [] if self._later_attempts.state(key) == "delivered" else self._later_course.rows_of(key).to_pylist()
        return rows + [
            {name: getattr(event, name) for name in COURSE.names} for event in self._events if event.key == key
        ]

    def _take_in(self, events: pa.Table) -> None:
        """Fold in events that are stored."""
        self._later_attempts.add(events)
        with_course = pc.and_(pc.is_in(events["type"], pa.array(["submitted", "failed"])), pc.is_valid(events["key"]))
        self._later_course.add(events.filter(with_course).select(COURSE.names))

    def _undelivered(self, course: pa.Table) -> pa.Table:
        delivered = self._later_attempts.delivered_among(course["key"].combine_chunks())
        return sorted_by_key(course.filter(pc.invert(pc.is_in(course["key"], delivered))))

    async def known_ids(self, request_ids: Collection[str]) -> frozenset[str]:
        """Those of some request ids that the ledger knows as calls of this store.

        Segments written since the ledger was read are read again each time: this is asked rarely, and keeping all ids
        would fill the memory.
        """
        ids = {event.request_id for event in self._events if event.request_id in set(request_ids)}
        ids |= self.view.known_ids(request_ids)
        asked = pa.array(sorted(request_ids), pa.string())
        for path in self._later_segments:
            data = await self._store.get(path)
            if data is not None:
                table = await asyncio.to_thread(from_parquet, path, data)
                ids.update(table.filter(pc.is_in(table["request_id"], asked))["request_id"].to_pylist())
        return frozenset(filter(None, ids))

    async def refresh(self, *, at_once: bool = False) -> None:
        """Read the segments that other runs have written since; at most every 5 seconds unless `at_once`."""
        async with self._refreshing:
            if not at_once and self._clock.monotonic() - self._refreshed < REFRESH_SECONDS:
                return
            for path in await segments(self._store):
                if path in self._read_segments or self._nonce in path:
                    continue
                data = await self._store.get(path)
                if data is not None:
                    self._take_in(await asyncio.to_thread(from_parquet, path, data))
                    self._later_segments.append(path)
                self._read_segments.add(path)
            self._refreshed = self._clock.monotonic()

    async def _read_claim(self, key: bytes, claim_no: int, stored: datetime | None = None) -> ClaimRecord | None:
        """The claim of this number, with its request_id if it has one; None if there is none.

        Raises StoreError if it is damaged.
        """
        path, id_path = layout.claim(key.hex(), claim_no), layout.claim_id(key.hex(), claim_no)
        data, about = await asyncio.gather(self._store.get(path), self._store.get(id_path))
        if data is None:
            return None
        try:
            claim = _claim_of(json_object(path, data))
            path = id_path
            request_id = None if about is None else str(json_object(path, about)["request_id"])
        except (KeyError, ValueError, TypeError) as error:
            raise damaged(path) from error
        return ClaimRecord(claim_no, claim, request_id, stored)


def _claim_of(content: Mapping[str, Any]) -> Claim:
    """Parse a claim; a later version of this package may have added fields, an earlier one had fewer."""
    values = {name: content[name] for name in _CLAIM_NEEDS} | {
        name: content[name] for name in _CLAIM_FIELDS if name in content
    }
    for name in _CLAIM_TIMES:
        if values.get(name) is not None:
            values[name] = datetime.fromisoformat(str(values[name]))
    return Claim(**values)


def _with_event(known: KnownAttempt, row: Mapping[str, Any]) -> KnownAttempt:
    """Add an event to what is known of an attempt.

    A user's request to resend it (RETRY_ASKED) does not replace the error that ended it.
    """
    asked = row["error_kind"] == RETRY_ASKED
    ends = row["type"] == "failed" and (known.error_kind in (None, RETRY_ASKED) or not asked)
    return replace(
        known,
        request_id=known.request_id or row["request_id"],
        error_kind=row["error_kind"] if ends else known.error_kind,
        error_message=row["error_message"] if ends else known.error_message,
        is_asked=known.is_asked or asked,
        account=known.account or row["account"],
        endpoint=known.endpoint or row["endpoint"],
        run_id=known.run_id or row["run_id"],
    )


def _with_claim(known: KnownAttempt, record: ClaimRecord) -> KnownAttempt:
    """Add its claim to what is known of an attempt; the claim's account and endpoint are those of the call."""
    return replace(
        known,
        record=record,
        request_id=record.request_id or known.request_id,
        account=record.claim.account or known.account,
        endpoint=record.claim.endpoint or known.endpoint,
        run_id=record.claim.run_id,
    )
