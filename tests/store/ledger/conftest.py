"""A ledger in memory, its claims and events, and stores that fail or write twice."""

import asyncio
import io
import secrets
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import Event
from prefect_imagegen.core.ledger.fold import LedgerView, events_table
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store
from tests.support.builders.ledger import event_of

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
KEY, OTHER = bytes(range(16)), b"\xff" * 16


class StillClock:
    """A clock that stands still unless somebody sleeps on it."""

    def __init__(self) -> None:
        self.time = NOW
        self.sleeps: list[float] = []
        self.enough = asyncio.Event()

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += timedelta(seconds=seconds)
        if len(self.sleeps) > 3:
            self.enough.set()
            await asyncio.Event().wait()


@pytest.fixture
def store():
    opened = open_object_store(f"memory://{secrets.token_hex(6)}/store")
    yield opened
    opened.close()


def ledger(store, nonce="n1", view=None) -> StoreLedger:
    return StoreLedger(store, view or LedgerView.empty(), run_id="run-1", nonce=nonce, clock=StillClock())


def event(kind="claimed", key=KEY, attempt="a1", **facts) -> Event:
    return event_of(kind, key, attempt, time=NOW, **facts)


def segment_of(*events) -> bytes:
    sink = io.BytesIO()
    pq.write_table(events_table(events), sink)
    return sink.getvalue()


class FailingStore:
    """A store whose next creates fail, as a store out of reach does; all else goes to the store beneath."""

    def __init__(self, store: FsspecObjectStore, failures: int) -> None:
        self._store = store
        self.failures = failures

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        if self.failures:
            self.failures -= 1
            raise StoreError("store_unreachable", "gone")
        return await self._store.create(path, data, content_type)


class DoublingStore(FailingStore):
    """A store whose client library sends a create again after its answer was lost: the second try meets the first."""

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        await self._store.create(path, data, content_type)
        return await self._store.create(path, data, content_type)
