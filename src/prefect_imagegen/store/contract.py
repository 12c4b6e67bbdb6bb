"""What a store has to hold for runs to be safe on it, tried out: one list of checks for every kind of store.

`doctor --deep` runs it on a user's store, the tests on every store that they have, with and without faults.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.ports import Clock, ObjectInfo, ObjectStore
from prefect_imagegen.store.checks import CHECKS, MANY, PATIENCE_S, Bench, ContractCheck

_SHOWN = 5
_AT_ONCE = 32
_FULL = "Without room a run stops at its first claim, before it pays for anything."
_UNTRIED = "There was no room to try it; of what the store holds else this says nothing."


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has seen. `unknown`: the store does not tell. `warn`: no danger, but worth knowing."""

    name: str
    state: Literal["ok", "warn", "fail", "unknown"]
    seen: str
    meaning: str = ""
    remedy: str = ""


class StoreContract:
    """All checks on one store, below a folder of their own, seen through two clients as two processes have them.

    `patience`: seconds that a listing may take to show what was written, before it counts as never; `many`: so
    many objects make a long listing.
    """

    def __init__(
        self,
        first: ObjectStore,
        second: ObjectStore,
        folder: str,
        clock: Clock,
        *,
        patience: float = PATIENCE_S,
        many: int = MANY,
    ) -> None:
        self._store = first
        self._folder = folder
        self._written: set[str] = set()
        self._bench = Bench(
            _Recording(first, self._written), _Recording(second, self._written), folder, clock, patience, many
        )

    async def findings(self, checks: Sequence[ContractCheck] = CHECKS) -> AsyncIterator[Finding]:
        """Try one check after the other. What the store refuses is a finding, never an error."""
        for check in checks:
            try:
                state, seen = await check.look(self._bench.of(check.name))
            except StoreError as error:
                if error.kind == "store_full":  # none of what a check looks for
                    yield Finding(check.name, "unknown", error.message, _UNTRIED, error.remedy)
                    yield Finding("contract", "fail", "the other checks were not tried", _FULL, error.remedy)
                    return
                yield Finding(check.name, "fail", error.message, check.meaning, error.remedy)
                continue
            if state == "ok":
                yield Finding(check.name, "ok", seen)
            else:
                yield Finding(check.name, state, seen, check.meaning, check.remedy)

    async def clean(self) -> Finding:
        """Remove everything that was written; what cannot be removed is named."""
        kept, reasons = set(), []
        for path, error in await self._removed(self._written):
            kept.add(path)
            reasons.append(error.message)
        try:
            # What a store keeps under another name than it was given stands in its listing.
            listed = {info.path for info in await self._store.list(self._folder)} - kept
            kept |= {path for path, _ in await self._removed(listed)}
            kept |= {path for path in listed if await self._store.head(path) is not None}
        except StoreError as error:
            reasons.append(error.message)
        left = sorted(kept)
        if not left:
            return Finding("cleanup", "ok", f"{len(self._written):,} objects were written and removed again")
        names = ", ".join(left[:_SHOWN]) + (f" and {len(left) - _SHOWN:,} more" if len(left) > _SHOWN else "")
        because = f" ({reasons[0]})" if reasons else ""
        return Finding(
            "cleanup",
            "warn",
            f"{len(left):,} objects could not be removed: {names}{because}",
            "They do no harm, and take room.",
            f"Remove the folder {self._folder} of the store yourself.",
        )

    async def _removed(self, paths: Collection[str]) -> list[tuple[str, StoreError]]:
        """Remove objects; those for which it failed, with why."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def remove(path: str) -> tuple[str, StoreError] | None:
            async with gate:
                try:
                    await self._store.delete(path)
                except StoreError as error:
                    return path, error
            return None

        return [failure for failure in await asyncio.gather(*map(remove, paths)) if failure is not None]


class _Recording:
    """A store that notes the paths of what is written through it."""

    def __init__(self, store: ObjectStore, written: set[str]) -> None:
        self.url = store.url
        self._store = store
        self._written = written

    async def get(self, path: str) -> bytes | None:
        return await self._store.get(path)

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        self._written.add(path)
        return await self._store.create(path, data, content_type)

    async def put(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        self._written.add(path)
        await self._store.put(path, data, content_type)

    async def delete(self, path: str) -> None:
        await self._store.delete(path)

    async def head(self, path: str) -> ObjectInfo | None:
        return await self._store.head(path)

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        return await self._store.list(prefix)
