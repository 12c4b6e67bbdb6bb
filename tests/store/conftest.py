"""A store in memory whose clock the tests set, and which lets others act between two calls."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from prefect_imagegen.ports import ObjectInfo


class TimedStore:
    """A `ports.ObjectStore` in memory. `now` is its own time; `before` is awaited ahead of every call."""

    url = "timed://store"

    def __init__(self) -> None:
        self.now = datetime(2026, 8, 1, 12, tzinfo=UTC)
        self.objects: dict[str, tuple[bytes, datetime | None]] = {}
        self.before: Callable[[str, str], Awaitable[None]] = _nothing
        self.tells_time = True

    def later(self, hours: float) -> None:
        """Let time go by."""
        self.now += timedelta(hours=hours)

    async def get(self, path: str) -> bytes | None:
        await self.before("get", path)
        return self.objects[path][0] if path in self.objects else None

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        await self.before("create", path)
        if path in self.objects:
            return False
        self.objects[path] = (data, self.now)
        return True

    async def put(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        await self.before("put", path)
        self.objects[path] = (data, self.now)

    async def delete(self, path: str) -> None:
        await self.before("delete", path)
        self.objects.pop(path, None)

    async def head(self, path: str) -> ObjectInfo | None:
        await self.before("head", path)
        return self._info(path) if path in self.objects else None

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        await self.before("list", prefix)
        return [self._info(path) for path in sorted(self.objects) if path.startswith(f"{prefix}/")]

    def _info(self, path: str) -> ObjectInfo:
        data, modified = self.objects[path]
        return ObjectInfo(path, len(data), modified if self.tells_time else None)


async def _nothing(call: str, path: str) -> None:
    """Let the call through."""


@pytest.fixture
def timed_store() -> TimedStore:
    """A fresh store."""
    return TimedStore()
