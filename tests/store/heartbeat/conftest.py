"""A store whose clock a test sets, and runs that beat in it."""

import asyncio
import secrets
from datetime import UTC, datetime, timedelta

import pytest

from prefect_imagegen.ports import ObjectInfo
from prefect_imagegen.store.heartbeat import Heartbeat
from prefect_imagegen.store.object_store import open_object_store


class Ticks:
    """A clock whose sleeps are over at once, a few times."""

    def __init__(self) -> None:
        self.sleeps: list[float] = []
        self.enough = asyncio.Event()

    def now(self) -> datetime:
        return datetime(1999, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        if len(self.sleeps) > 3:
            self.enough.set()
            await asyncio.Event().wait()


class DatedStore:
    """A store in memory that keeps the times that a test gives it: the store's own clock."""

    url = "memory://dated"

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, datetime | None]] = {}
        self.time: datetime | None = datetime(2026, 8, 1, tzinfo=UTC)
        self.puts: list[str] = []

    async def get(self, path: str) -> bytes | None:
        return self.objects[path][0] if path in self.objects else None

    async def create(self, path: str, data: bytes, content_type: str = "") -> bool:
        if path in self.objects:
            return False
        await self.put(path, data)
        return True

    async def put(self, path: str, data: bytes, content_type: str = "") -> None:
        self.objects[path] = (data, self.time)
        self.puts.append(path)

    async def head(self, path: str) -> ObjectInfo | None:
        if path not in self.objects:
            return None
        data, modified = self.objects[path]
        return ObjectInfo(path, len(data), modified)

    async def list(self, prefix: str) -> list[ObjectInfo]:
        return [info for path in sorted(self.objects) if (info := await self.head(path))]


@pytest.fixture
def store():
    opened = open_object_store(f"memory://{secrets.token_hex(6)}/store")
    yield opened
    opened.close()


async def beat(store, run_id, process) -> None:
    await Heartbeat(store, run_id, process, Ticks()).beat()


class Passing:
    """A clock that tests set; sleeps pass time, until the horizon."""

    def __init__(self) -> None:
        self.time = 0.0
        self.sleeps: list[float] = []
        self.horizon = float("inf")
        self.enough = asyncio.Event()

    def now(self) -> datetime:
        return datetime(2026, 8, 1, tzinfo=UTC) + timedelta(seconds=self.time)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds
        if self.time >= self.horizon:
            self.enough.set()
            await asyncio.Event().wait()
