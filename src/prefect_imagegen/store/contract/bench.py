"""What every check of the store contract works with: two clients of one store, and a folder of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from prefect_imagegen.ports import Clock, ObjectStore

T = TypeVar("T")
State = Literal["ok", "warn", "fail", "unknown"]
Outcome = tuple[State, str]
"""The result of a check, and what was observed, in words."""

PATIENCE_S = 20.0
MANY = 1_100
"""More than one page of an S3 listing, which has 1,000 objects."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a check works with: two clients of one store, a folder of its own, and how long to wait (seconds)."""

    first: ObjectStore
    second: ObjectStore
    folder: str
    clock: Clock
    patience: float
    many: int = MANY

    def of(self, name: str) -> "Bench":
        """The same, with a folder below this one for the check `name`."""
        return replace(self, folder=f"{self.folder}/{name}")

    def path(self, name: str) -> str:
        """The root-relative path of the object `name` in the folder."""
        return f"{self.folder}/{name}"


@dataclass(frozen=True, slots=True)
class ContractCheck:
    """One check: `look` runs it; `meaning` and `remedy` tell the user what a bad result means and what to do."""

    name: str
    look: Callable[[Bench], Awaitable[Outcome]]
    meaning: str
    remedy: str


async def all_of(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The results of some calls, once all have ended; then raises the first error.

    Unlike `asyncio.gather`, no call goes on writing after its check is over.
    """
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
