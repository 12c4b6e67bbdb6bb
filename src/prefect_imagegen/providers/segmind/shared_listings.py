"""One reading of the request history for all callers that ask for the same hours at the same time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from prefect_imagegen.ports import HistoryRecord

Listing = list[HistoryRecord | None]


class SharedListings:
    """Lets callers that ask for the same listing share one reading of it, started after the last of them asked."""

    def __init__(self) -> None:
        self._next: dict[Any, asyncio.Task[Listing]] = {}
        self._tasks: set[asyncio.Task[Listing]] = set()
        self._locks: dict[Any, asyncio.Lock] = {}

    async def share(self, key: Any, read: Callable[[], Coroutine[Any, Any, Listing]]) -> Listing:
        """The result of `read`, shared by all that ask for `key` before it starts.

        A reading that is already under way is not joined, since it may have passed the rows asked for: the next one
        starts when it has ended.
        """
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.ensure_future(self._read(key, read))
            self._tasks.add(task)
            task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Cancel the readings under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, task: "asyncio.Task[Listing]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: the callers have had it, or have gone

    async def _read(self, key: Any, read: Callable[[], Coroutine[Any, Any, Listing]]) -> Listing:
        async with self._locks.setdefault(key, asyncio.Lock()):
            # From here on it is under way: whoever asks now needs the next one.
            del self._next[key]
            return await read()
