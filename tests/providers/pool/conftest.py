"""Workers that exist in virtual time only, and a pool over them."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.request.profiles import PROFILES
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.ports import Balance, Delivery, Health, Submission
from prefect_imagegen.providers.pool.provider import Pool, PoolPolicy

Simulation = Callable[..., float]
DISTILLED = PROFILES["klein-distilled"]


def request(number: int = 0) -> GenerationRequest:
    params = {"prompt": f"cup {number}", "seed": number, "steps": 4, "cfg": 3, "aspect_ratio": "1:1"}
    return GenerationRequest("flux-2-klein-9b", params, profile="klein-distilled")


class LoopClock:
    """The clock of the running loop."""

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.monotonic(), UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Worker:
    """A worker that does one call at a time: a call takes about a second, seeded by its prompt, times `slowness`."""

    queues = False

    def __init__(self, name: str = "http://w", slowness: float = 1.0, **health: Any) -> None:
        self.endpoint = name
        self.slowness = slowness
        self.state = Health(**{"ready": True} | health)
        self.errors: list[ProviderError | None] = []
        self.made = self.in_flight = self.most = self.asked = 0
        self.key_trouble: ProviderError | None = None
        self._one = asyncio.Lock()

    async def health(self) -> Health:
        self.asked += 1
        return self.state

    async def check(self) -> Balance:
        if self.key_trouble is not None:
            raise self.key_trouble
        return Balance(None)

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            async with self._one:
                await asyncio.sleep(self.slowness * random.Random(request.prompt).lognormvariate(0, 0.25))
                error = self.errors.pop(0) if self.errors else None
                if error is not None:
                    raise error
        finally:
            self.in_flight -= 1
        self.made += 1
        return Submission(request, None, open_body=b"image")

    async def collect(self, submission: Submission) -> Delivery:
        return Delivery(submission.open_body, latency_s=1.0)

    async def aclose(self) -> None:
        pass


@pytest.fixture
def simulated(in_virtual_time: Callable[[Coroutine[Any, Any, Any]], Any]) -> Callable[..., float]:
    """Do some work over a pool in virtual time; returns the seconds it took."""

    def run(workers: Sequence[Worker], work: Callable[[Pool], Awaitable[None]], **policy: Any) -> float:
        async def go() -> float:
            pool = Pool(workers, PoolPolicy(**{"deadline": 600.0} | policy), LoopClock())
            try:
                await pool.open()
                started = asyncio.get_running_loop().time()
                await work(pool)
                return asyncio.get_running_loop().time() - started
            finally:
                await pool.aclose()

        return in_virtual_time(go())

    return run


async def make(pool: Pool, number: int = 0) -> Delivery:
    return await pool.collect(await pool.submit(request(number), ()))


async def make_many(pool: Pool, count: int, at_once: int) -> list[Delivery | BaseException]:
    gate = asyncio.Semaphore(at_once)

    async def make_behind_gate(number: int) -> Delivery:
        async with gate:
            return await make(pool, number)

    return await asyncio.gather(*map(make_behind_gate, range(count)), return_exceptions=True)


class Busy(Worker):
    """A worker that takes `steps` times `slowness` seconds for a call, one at a time, and may hang, die or refuse.

    `hangs_at` are the numbers of the calls that it never answers; `refusal` is the error that every call gets.
    """

    def __init__(self, name: str, slowness: float = 1.0, **health: Any) -> None:
        super().__init__(name, slowness, **health)
        self.hangs_at: set[int] = set()
        self.hangs_from = self.dies_at = 1 << 60
        self.refusal: ProviderError | None = None
        self.taken = 0

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        self.taken += 1
        number = self.taken
        if self.refusal is not None:
            raise self.refusal
        if number >= self.dies_at:
            self.state = Health(False, "gone")
            raise ProviderError("unknown", "connection reset")
        if number in self.hangs_at or number >= self.hangs_from:
            await asyncio.sleep(1e7)
        # A worker finishes a drawing that it began, even where the client hangs up.
        await asyncio.shield(asyncio.create_task(self._draw(float(request.params["steps"]))))
        self.made += 1
        return Submission(request, None, open_body=b"image")

    async def _draw(self, steps: float) -> None:
        async with self._one:
            await asyncio.sleep(self.slowness * steps)


def work_of(number: int, steps: int) -> GenerationRequest:
    return GenerationRequest("flux-2-klein-9b", {"prompt": f"cup {number}", "seed": number, "steps": steps})


async def make_all(pool: Pool, steps: Sequence[int], at_once: int, tries: int = 5) -> list[ProviderError]:
    """Make a row for each number of steps, with retries as the executor does them; returns every error."""
    gate, errors = asyncio.Semaphore(at_once), []

    async def row(number: int) -> None:
        async with gate:
            for _ in range(tries):
                try:
                    await pool.collect(await pool.submit(work_of(number, steps[number]), ()))
                except ProviderError as error:
                    errors.append(error)
                    if error.kind not in ("worker_lost", "worker_failed", "worker_busy"):
                        return
                else:
                    return
            errors.append(ProviderError("lost_row", str(number)))

    await asyncio.gather(*map(row, range(len(steps))))
    return errors
