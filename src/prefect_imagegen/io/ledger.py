"""The ledger in an object store: claims and request ids as single objects, events as immutable segments."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.events import Claim, ClaimRecord, Event
from prefect_imagegen.core.ledger import EVENT_SCHEMA, LedgerView, events_table, fold
from prefect_imagegen.ports import Clock, ObjectStore

FLUSH_EVENTS = 2_000
FLUSH_SECONDS = 15.0
REFRESH_SECONDS = 5.0
_READERS = 16
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
        if len(self._events) >= FLUSH_EVENTS:
            await self.flush()

    async def flush(self) -> None:
        """Write all events taken in so far as one immutable segment. They stay in memory until that succeeds."""
        async with self._flushing:
            events = self._events[:]
            if not events:
                return
            stamp = self._clock.now().strftime("%Y%m%dT%H%M%S%f")
            path = layout.segment(f"{stamp}-{self._nonce}-{self._segments:06d}")
            data = await asyncio.to_thread(_to_parquet, events_table(events))
            if not await self._store.create(path, data) and await self._store.get(path) != data:
                raise StoreError(
                    "store_conflict", f"{path} exists with other content.", remedy="Run the command again."
                )
            self._segments += 1
            del self._events[: len(events)]

    async def keep_flushing(self) -> None:
        """Flush every 15 seconds, until cancelled."""
        while True:
            await self._clock.sleep(FLUSH_SECONDS)
            await self.flush()

    def is_closed(self, key: bytes, attempt_id: str) -> bool:  # noqa: ARG002 - the port names the key for other ledgers
        """Whether the ledger knows the attempt to have ended."""
        return attempt_id in self._closed or self.view.is_closed(attempt_id)

    def request_ids(self, key: bytes) -> frozenset[str]:
        """The request ids that the ledger knows of a key that has no image."""
        return self.view.request_ids(key)

    async def refresh(self) -> None:
        """Read the segments that other runs have written since; at most every 5 seconds."""
        async with self._refreshing:
            now = self._clock.monotonic()
            if now - self._refreshed < REFRESH_SECONDS:
                return
            for path in await segments(self._store):
                if path in self._seen or self._nonce in path:
                    continue
                data = await self._store.get(path)
                if data is not None:
                    table = await asyncio.to_thread(_from_parquet, path, data)
                    closing = table.filter(pc.is_in(table["type"], pa.array(sorted(_CLOSING))))
                    self._closed.update(closing["attempt_id"].to_pylist())
                self._seen.add(path)
            self._refreshed = self._clock.monotonic()

    async def _read_claim(self, key: bytes, n: int, *, has_id: bool) -> ClaimRecord:
        path = layout.claim(key.hex(), n)
        try:
            body = _json(path, await self._store.get(path))
            body["time"] = datetime.fromisoformat(str(body["time"]))
            claim = Claim(**{one.name: body[one.name] for one in fields(Claim)})  # type: ignore[arg-type]
            request_id = None
            if has_id:
                path = layout.claim_id(key.hex(), n)
                request_id = str(_json(path, await self._store.get(path))["request_id"])
        except (KeyError, ValueError) as error:
            raise _damaged(path) from error
        return ClaimRecord(n, claim, request_id)


async def segments(store: ObjectStore) -> list[str]:
    """The paths of all segments, sorted."""
    return [info.path for info in await store.list(layout.SEGMENTS) if info.path.endswith(".parquet")]


async def load_ledger(store: ObjectStore) -> LedgerView:
    """Read the newest generation and every segment that it has not absorbed, and fold them.

    Raises StoreError that names a damaged file.
    """
    tables = [table async for table in event_tables(store)]
    return await asyncio.to_thread(fold, tables)


async def event_tables(store: ObjectStore) -> AsyncIterator[pa.Table]:
    """All events of the ledger, as tables of `EVENT_SCHEMA` in no particular order; few are in memory at once.

    Raises StoreError that names a damaged file.
    """
    files, absorbed = await _newest_generation(store)
    files += [path for path in await segments(store) if path.rsplit("/", 1)[1] not in absorbed]

    async def read(path: str) -> pa.Table:
        data = await store.get(path)
        if data is None:
            raise StoreError("store_damaged", f"{path} is missing from {store.url}.", remedy="Restore it.")
        return await asyncio.to_thread(_from_parquet, path, data)

    for start in range(0, len(files), _READERS):
        for table in await asyncio.gather(*map(read, files[start : start + _READERS])):
            yield table


async def _newest_generation(store: ObjectStore) -> tuple[list[str], frozenset[str]]:
    """Files and absorbed segment names of the newest generation; nothing if there is none."""
    manifests = {
        int(name[: -len(".json")]): info.path
        for info in await store.list(layout.GENERATIONS)
        if (name := info.path[len(layout.GENERATIONS) + 1 :]).endswith(".json") and name[: -len(".json")].isdigit()
    }
    if not manifests:
        return [], frozenset()
    path = manifests[max(manifests)]
    manifest = _json(path, await store.get(path))
    files, absorbed = manifest.get("files"), manifest.get("absorbed")
    if not isinstance(files, list) or not isinstance(absorbed, list):
        raise _damaged(path)
    return files, frozenset(absorbed)


def _to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _from_parquet(path: str, data: bytes) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(data))
        missing = [name for name in EVENT_SCHEMA.names if name not in table.column_names]
        for name in missing:
            table = table.append_column(name, pa.nulls(len(table), EVENT_SCHEMA.field(name).type))
        return table.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            "store_damaged", f"The ledger file {path} is damaged: {error}.", remedy="Restore it from a backup."
        ) from error


def _json(path: str, data: bytes | None) -> dict[str, object]:
    try:
        value = json.loads(data or b"")
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _damaged(path: str) -> StoreError:
    return StoreError("store_damaged", f"{path} is missing or damaged.", remedy="Restore it from a backup.")
