"""Batching: items that can share one call of a model are gathered, and one batch runs at a time."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Waiter(Generic[T, R]):
    item: T
    key: Hashable
    since: float
    answer: "asyncio.Future[R]"


class Batcher(Generic[T, R]):
    """Gathers items of equal `key` into batches of at most `most` for `run`, which returns results in their order.

    The oldest item decides which key is next, so that none starves; it waits at most `delay` seconds for others.
    The items of a batch that fails are run one by one, so that only those at fault fail.
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
        self._waiting: list[_Waiter[T, R]] = []
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: T) -> R:
        """Run one item in a batch; returns its result, or raises its exception."""
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        loop = asyncio.get_running_loop()
        waiter = _Waiter[T, R](item, self._key(item), loop.time(), loop.create_future())
        self._waiting.append(waiter)
        self._arrived.set()
        return await waiter.answer

    async def close(self) -> None:
        """Stop; items that wait are cancelled."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for waiter in self._waiting:
            waiter.answer.cancel()

    async def _work(self) -> None:
        while True:
            self._waiting = [waiter for waiter in self._waiting if not waiter.answer.done()]
            if not self._waiting:
                await self._next_arrival()
                continue
            oldest = self._waiting[0]
            batch = [waiter for waiter in self._waiting if waiter.key == oldest.key][: self._most]
            patience = oldest.since + self._delay - asyncio.get_running_loop().time()
            if len(batch) < self._most and patience > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._next_arrival(), patience)
                continue
            self._waiting = [waiter for waiter in self._waiting if waiter not in batch]
            await self._run_batch(batch)

    async def _next_arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    async def _run_batch(self, batch: "list[_Waiter[T, R]]") -> None:
        try:
            results = await self._run([waiter.item for waiter in batch])
            for waiter, result in zip(batch, results, strict=True):
                if not waiter.answer.done():
                    waiter.answer.set_result(result)
        except Exception as error:  # noqa: BLE001 - whatever it is, no caller may wait for ever
            if len(batch) == 1 and not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            for waiter in batch if len(batch) > 1 else ():
                await self._run_batch([waiter])
        finally:
            for waiter in batch:
                waiter.answer.cancel()
