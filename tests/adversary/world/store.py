"""An object store in memory that outlives the runs, and what one run sees of it: hiccups, lagging lists."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.ports import ObjectInfo
from prefect_imagegen.store.ledger.files import from_parquet

from .loop import Time

_OP_S = 0.004
MOST_OPERATIONS = 2500
"""A run of a few rows that asks the store more often than this hammers it."""


@dataclass(frozen=True, slots=True)
class StoreTrouble:
    """Operations `op` (or `any`) on paths with `part` in them: of `times` of them, after `skip`, each fails.

    `done`: it is done all the same, and only the answer is lost.
    """

    op: str
    part: str = ""
    skip: int = 0
    times: int = 1
    done: bool = False


@dataclass(slots=True)
class Objects:
    """What the store holds. `offset`: how far its clock is from the truth, in seconds; `list_lag`: how late LIST is.

    `blind`: what lies below the claims of a key is never listed.
    """

    true: Time
    offset: float = 0.0
    list_lag: float = 0.0
    blind: bool = False
    contents: dict[str, tuple[bytes, float, float]] = field(default_factory=dict)
    """By path: the bytes, and when they were written first and last."""
    request_ids: set[str] = field(default_factory=set)
    """The ids in the id object of a claim, or in the ledger."""

    def write(self, path: str, data: bytes) -> None:
        now = self.true.now
        first = self.contents[path][1] if path in self.contents else now
        self.contents[path] = (data, first, now)
        if path.endswith(".id.json"):
            self.request_ids.add(json.loads(data)["request_id"])
        elif path.startswith(layout.SEGMENTS):
            self.request_ids.update(filter(None, from_parquet(path, data)["request_id"].to_pylist()))

    def info(self, path: str) -> ObjectInfo | None:
        entry = self.contents.get(path)
        return None if entry is None else ObjectInfo(path, len(entry[0]), self._moment(entry[2]))

    def listed(self, prefix: str) -> list[ObjectInfo]:
        if self.blind and prefix.startswith("ledger/claims"):
            return []
        paths = [
            path
            for path, (_, first, _) in self.contents.items()
            if path.startswith(f"{prefix}/") and self.true.now >= first + self.list_lag
        ]
        return [info for path in sorted(paths) if (info := self.info(path)) is not None]

    def _moment(self, seconds: float) -> datetime:
        return self.true.moment + timedelta(seconds=seconds - self.true.now + self.offset)


class RunStore:
    """A `ports.ObjectStore`: the store as one run sees it."""

    url = "memory://adversary"

    def __init__(
        self,
        objects: Objects,
        troubles: Sequence[StoreTrouble],
        tick: Callable[[str, int], None],
        rng: Random,
        number: int,
    ) -> None:
        self.dead = False
        self.operations = 0
        self.begun: set[str] = set()
        """The paths of the images that the run began to create."""
        self.failures: list[float] = []
        """The times at which operations failed."""
        self._objects = objects
        self._troubles = [[trouble, 0] for trouble in troubles]
        self._tick = tick
        self._number = number
        self._rng = rng

    async def get(self, path: str) -> bytes | None:
        await self._begin("get", path)
        entry = self._objects.contents.get(path)
        return None if entry is None else entry[0]

    async def create(self, path: str, data: bytes, content_type: str = "") -> bool:
        if path.startswith("images/"):
            self.begun.add(path)
        lost = await self._begin("create", path)
        made = path not in self._objects.contents
        if made:
            self._objects.write(path, data)
        await self._end("create" if made else "lost", path, lost)
        return made

    async def put(self, path: str, data: bytes, content_type: str = "") -> None:
        lost = await self._begin("put", path)
        self._objects.write(path, data)
        await self._end("put", path, lost)

    async def delete(self, path: str) -> None:
        await self._begin("delete", path)
        self._objects.contents.pop(path, None)

    async def head(self, path: str) -> ObjectInfo | None:
        await self._begin("head", path)
        return self._objects.info(path)

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        await self._begin("list", prefix)
        return self._objects.listed(prefix)

    def close(self) -> None:
        """Nothing to close; the real store has this method."""

    async def _begin(self, op: str, path: str) -> bool:
        """Wait for the operation; whether its answer will be lost. Raises StoreError where it fails."""
        if self.dead:
            raise asyncio.CancelledError
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            self._tick("hammering", self._number)
        await asyncio.sleep(_OP_S * (0.5 + self._rng.random()))
        for entry in self._troubles:
            trouble, met = entry
            if trouble.op in (op, "any") and trouble.part in path:
                entry[1] += 1
                if trouble.skip <= met < trouble.skip + trouble.times:
                    if trouble.done:
                        return True
                    raise self._failed(op, path)
        if op in ("create", "put"):
            await self._ticked(f"before {op} {path}")
        return False

    async def _end(self, op: str, path: str, lost: bool) -> None:
        await self._ticked(f"after {op} {path}")
        if lost:
            raise self._failed(op, path)

    async def _ticked(self, event: str) -> None:
        self._tick(event, self._number)
        # A process that was killed at this very point goes no further.
        await asyncio.sleep(0)
        if self.dead:
            raise asyncio.CancelledError

    def _failed(self, op: str, path: str) -> StoreError:
        self.failures.append(self._objects.true.now)
        return StoreError("store_unreachable", f"{op} {path}: the store hiccuped.", remedy="Try again.")
