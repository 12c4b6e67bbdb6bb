"""Batches: requests that can share one call of a model are gathered, and one batch is worked on at a time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T, R]):
    item: T
    key: Hashable
    since: float
    answer: "asyncio.Future[R]"


class Batcher(Generic[T, R]):
    """Gathers items of equal `key` for `run`, which gets at most `most` of them and answers in their order.

    The oldest item decides which kind is next, so that none starves; it waits at most `delay` seconds for others.
    A batch that fails is taken apart: its items run one by one, and only what fails by itself fails.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        key: Callable[[T], Hashable],
        *,
        most: int,
        delay: float,
    ) -> None:
        self._run = run
        self._key = key
        self._most = most
        self._delay = delay
        self._waiting: list[_Waiting[T, R]] = []
        self._came = asyncio.Event()
        self._working: asyncio.Task[None] | None = None

    async def submit(self, item: T) -> R:
        """Have one item worked on; its result. Raises what working on it raises."""
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        loop = asyncio.get_running_loop()
        one = _Waiting[T, R](item, self._key(item), loop.time(), loop.create_future())
        self._waiting.append(one)
        self._came.set()
        return await one.answer

    async def close(self) -> None:
        """Stop working; what waits is cancelled."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        for one in self._waiting:
            one.answer.cancel()

    async def _work(self) -> None:
        while True:
            self._waiting = [one for one in self._waiting if not one.answer.done()]
            if not self._waiting:
                await self._next()
                continue
            oldest = self._waiting[0]
            batch = [one for one in self._waiting if one.key == oldest.key][: self._most]
            patience = oldest.since + self._delay - asyncio.get_running_loop().time()
            if len(batch) < self._most and patience > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._next(), patience)
                continue
            self._waiting = [one for one in self._waiting if one not in batch]
            await self._finish(batch)

    async def _next(self) -> None:
        self._came.clear()
        await self._came.wait()

    async def _finish(self, batch: "list[_Waiting[T, R]]") -> None:
        try:
            results = await self._run([one.item for one in batch])
            for one, result in zip(batch, results, strict=True):
                if not one.answer.done():
                    one.answer.set_result(result)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            if len(batch) == 1 and not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            for one in batch if len(batch) > 1 else ():
                await self._finish([one])
        finally:
            for one in batch:
                one.answer.cancel()
