"""Run the checks of the store contract on one store.

`doctor --deep` runs them on a user's store; the tests run them on every store they have, with and without faults.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.ports import Clock, ObjectInfo, ObjectStore
from prefect_imagegen.store.contract.bench import MANY, PATIENCE_S, Bench, ContractCheck
from prefect_imagegen.store.contract.checks import CHECKS

_SHOWN = 5
_AT_ONCE = 32
_FULL = "Without room a run stops at its first claim, before it pays for anything."
_UNTRIED = "There was no room to try it; of what the store holds else this says nothing."


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check on one store.

    `state`: `ok`; `warn` (no danger, but worth knowing); `fail`; `unknown` (the store does not say). `observed` is what
    the store did, `meaning` what that means for runs, `remedy` what to do about it.
    """

    name: str
    state: Literal["ok", "warn", "fail", "unknown"]
    observed: str
    meaning: str = ""
    remedy: str = ""


class StoreContract:
    """The checks of the contract on one store, below `folder`.

    `first` and `second` are two clients of the same store, as two processes would have them. `patience`: seconds after
    which a listing that still does not show a write counts as never showing it. `many`: objects of a long listing.
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
        """Run one check after the other. A StoreError is a finding too; nothing is raised."""
        for check in checks:
            try:
                state, observed = await check.look(self._bench.of(check.name))
            except StoreError as error:
                if error.kind == "store_full":  # says nothing about what the check tests
                    yield Finding(check.name, "unknown", error.message, _UNTRIED, error.remedy)
                    yield Finding("contract", "fail", "the other checks were not tried", _FULL, error.remedy)
                    return
                yield Finding(check.name, "fail", error.message, check.meaning, error.remedy)
                continue
            if state == "ok":
                yield Finding(check.name, "ok", observed)
            else:
                yield Finding(check.name, state, observed, check.meaning, check.remedy)

    async def clean(self) -> Finding:
        """Remove everything that the checks wrote; the finding names what could not be removed."""
        remaining, reasons = set(), []
        for path, error in await self._removed(self._written):
            remaining.add(path)
            reasons.append(error.message)
        try:
            # A store may keep an object under another name than it was written by: its listing shows that one.
            listed = {info.path for info in await self._store.list(self._folder)} - remaining
            remaining |= {path for path, _ in await self._removed(listed)}
            remaining |= {path for path in listed if await self._store.head(path) is not None}
        except StoreError as error:
            reasons.append(error.message)
        leftovers = sorted(remaining)
        if not leftovers:
            return Finding("cleanup", "ok", f"{len(self._written):,} objects were written and removed again")
        names = ", ".join(leftovers[:_SHOWN]) + (
            f" and {len(leftovers) - _SHOWN:,} more" if len(leftovers) > _SHOWN else ""
        )
        because = f" ({reasons[0]})" if reasons else ""
        return Finding(
            "cleanup",
            "warn",
            f"{len(leftovers):,} objects could not be removed: {names}{because}",
            "They do no harm, and take room.",
            f"Remove the folder {self._folder} of the store yourself.",
        )

    async def _removed(self, paths: Collection[str]) -> list[tuple[str, StoreError]]:
        """Remove objects; returns the paths for which that failed, each with its error."""
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
    """An object store that collects the paths of all puts in `written`."""

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
