"""The gate that all calls of a process go through."""

import asyncio

import pytest

from prefect_imagegen.providers.limits import RateGate

pytestmark = pytest.mark.anyio


class Time:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


async def test_calls_are_spaced() -> None:
    """With 60 requests a minute one call goes out each second, also when many wait at once."""
    time = Time()
    gate = RateGate(60, time.monotonic, time.sleep)
    sent: list[float] = []

    async def call() -> None:
        await gate.acquire()
        sent.append(time.now)

    await asyncio.gather(*(call() for _ in range(5)))
    assert sent == [100.0, 101.0, 102.0, 103.0, 104.0]


@pytest.mark.parametrize("per_minute", [None, 0])
async def test_no_limit(per_minute: float | None) -> None:
    """None and 0 mean no limit."""
    time = Time()
    gate = RateGate(per_minute, time.monotonic, time.sleep)
    for _ in range(100):
        await gate.acquire()
    assert time.now == 100.0


async def test_a_pause_holds_everybody() -> None:
    """After a 429 nobody sends until the pause is over; a shorter pause never cuts a longer one."""
    time = Time()
    gate = RateGate(None, time.monotonic, time.sleep)
    gate.pause(30)
    gate.pause(5)
    await gate.acquire()
    assert time.now == 130.0


async def test_a_run_that_stops_is_let_go() -> None:
    """A sleep that ends early, since the run stops, ends the wait too."""
    time = Time()

    async def woken(_: float) -> None:
        await asyncio.sleep(0)

    waits: list[float] = []

    async def counted(seconds: float) -> None:
        waits.append(seconds)
        await woken(seconds)

    gate = RateGate(1, time.monotonic, counted)
    gate.pause(1000)
    await asyncio.wait_for(asyncio.gather(gate.acquire(), gate.acquire()), 5)
    assert max(waits) == 1000
    assert time.now == 100.0
