"""Batches: which calls go together, in which order, and how a failing batch is split."""

import asyncio
from collections.abc import Sequence

import pytest

from prefect_imagegen.gateway.jobs.batching import Batcher

pytestmark = pytest.mark.anyio


class Model:
    """Doubles numbers; notes its batches, and fails on any with a negative number."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0

    async def run(self, batch: Sequence[int]) -> list[int]:
        """Run one batch."""
        self.running += 1
        assert self.running == 1, "one batch at a time"
        self.batches.append(list(batch))
        await self.gate.wait()
        self.running -= 1
        if min(batch) < 0:
            raise ValueError("negative")
        return [2 * number for number in batch]


async def test_equal_ones_share_a_batch() -> None:
    """Items of one kind go together, at most so many, and each gets its own result."""
    model = Model()
    batcher = Batcher(model.run, lambda number: number % 2, most=3, delay=0.05)
    assert await asyncio.gather(*map(batcher.submit, range(10))) == [2 * number for number in range(10)]
    assert model.batches == [[0, 2, 4], [1, 3, 5], [6, 8], [7, 9]]
    await batcher.close()


async def test_a_full_batch_does_not_wait() -> None:
    """A full batch starts at once; one that is not full waits for the delay, counted from its oldest item."""
    model = Model()
    batcher = Batcher(model.run, lambda _: 0, most=2, delay=60.0)
    assert await asyncio.wait_for(asyncio.gather(batcher.submit(1), batcher.submit(2)), 5) == [2, 4]
    alone = asyncio.create_task(batcher.submit(3))
    await asyncio.sleep(0.1)
    assert not alone.done()
    assert await asyncio.wait_for(batcher.submit(4), 5) == 8
    assert await alone == 6
    await batcher.close()


async def test_items_gather_while_a_batch_runs() -> None:
    """What comes while the model works waits no further delay, and the oldest is served first."""
    model = Model()
    batcher = Batcher(model.run, lambda number: number // 10, most=4, delay=0.0)
    model.gate.clear()
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(batcher.submit(number)) for number in (11, 2, 12, 3, 13)]
    await asyncio.sleep(0.01)
    model.gate.set()
    await asyncio.gather(first, *others)
    assert model.batches == [[1], [11, 12, 13], [2, 3]]
    await batcher.close()


async def test_a_failing_batch_is_taken_apart() -> None:
    """Only the item that fails by itself fails."""
    model = Model()
    batcher = Batcher(model.run, lambda _: 0, most=3, delay=0.01)
    results = await asyncio.gather(*map(batcher.submit, (1, -1, 2)), return_exceptions=True)
    assert [str(result) for result in results] == ["2", "negative", "4"]
    assert model.batches == [[1, -1, 2], [1], [-1], [2]]
    await batcher.close()


async def test_closing_cancels_what_waits() -> None:
    """Nobody waits for ever for a batcher that was closed."""
    model = Model()
    model.gate.clear()
    batcher = Batcher(model.run, lambda _: 0, most=1, delay=0.0)
    tasks = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
    await asyncio.sleep(0.01)
    await batcher.close()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
