"""Workers of a pool that fail: who is left out, who comes back, and when nobody is left."""

import asyncio
import io
import logging
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.ports import Delivery, Health
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.pool.openai_images import OpenAIImages
from prefect_imagegen.providers.pool.provider import Pool, PoolPolicy
from tests.providers.pool.conftest import (
    DISTILLED,
    Busy,
    LoopClock,
    Simulation,
    Worker,
    make,
    make_all,
    make_many,
)

Engine = Callable[..., Any]


def test_a_lost_worker_is_left_out_until_it_is_healthy(simulated: Simulation) -> None:
    """After a lost call a worker gets none until its health says so; it is asked ever more seldom."""
    dead, alive = Worker("http://dead"), Worker("http://alive")
    dead.errors = [ProviderError("unknown", "connection reset")]

    async def work(pool: Pool) -> None:
        dead.state = Health(False, "gone")
        outcomes = await make_many(pool, 20, at_once=2)
        (lost,) = [outcome for outcome in outcomes if isinstance(outcome, ProviderError)]
        assert (lost.kind, lost.retry_after) == ("worker_lost", 0.0)
        assert "http://dead" in lost.message
        assert alive.made == 19
        await asyncio.sleep(600)
        assert 20 < dead.asked < 40
        dead.state = Health(True)
        await asyncio.sleep(31)
        await make_many(pool, 20, at_once=4)
        assert dead.made > 5

    simulated([dead, alive], work)


def test_three_failures_in_a_row_are_enough(simulated: Simulation) -> None:
    """A 500 is the row's or the worker's fault; three in a row are the worker's."""
    bad = Worker("http://bad")
    bad.errors = [ProviderError("server_error", "500", status=500) for _ in range(2)]

    async def work(pool: Pool) -> None:
        bad.state = Health(False, "broken")
        for _ in range(2):
            with pytest.raises(ProviderError, match="bad"):
                await make(pool)
        await make(pool)
        bad.errors = [ProviderError("server_error", "500", status=500) for _ in range(3)]
        kinds = [outcome.kind for outcome in await make_many(pool, 3, at_once=1) if isinstance(outcome, ProviderError)]
        assert kinds == ["worker_failed"] * 3
        with pytest.raises(ProviderError) as caught:
            await make(pool)
        assert caught.value.kind == "no_worker"

    assert simulated([bad], work, deadline=60.0) >= 60


def test_each_outage_has_its_own_deadline(simulated: Simulation) -> None:
    """A pool that was dark once, and worked since, is waited for as long as ever when it goes dark again."""
    worker = Worker()

    async def outage(pool: Pool) -> None:
        worker.state = Health(False, "restarting")
        worker.errors = [ProviderError("unknown", "connection reset")]
        asyncio.get_running_loop().call_later(40, lambda: setattr(worker, "state", Health(True)))
        outcomes = await make_many(pool, 3, at_once=2)
        assert [outcome.kind for outcome in outcomes if isinstance(outcome, ProviderError)] == ["worker_lost"]

    async def work(pool: Pool) -> None:
        await outage(pool)
        assert not [outcome for outcome in await make_many(pool, 200, at_once=1) if isinstance(outcome, BaseException)]
        await outage(pool)

    assert simulated([worker], work, deadline=100.0) > 200


def test_the_run_waits_for_the_first_worker(
    caplog: pytest.LogCaptureFixture, in_virtual_time: Callable[[Coroutine[Any, Any, Any]], Any]
) -> None:
    """Opening waits until one worker is healthy, says so, and gives up at the deadline."""
    late, never = Worker("http://late", ready=False, detail="warming"), Worker("http://never", ready=False)

    async def run(deadline: float) -> float:
        pool = Pool([late, never], PoolPolicy(deadline=deadline), LoopClock())
        loop = asyncio.get_running_loop()
        loop.call_later(20, lambda: setattr(late, "state", Health(True)))
        try:
            await pool.open()
            assert (await make(pool)).endpoint == "http://late"
            return loop.time()
        finally:
            await pool.aclose()

    with caplog.at_level(logging.WARNING):
        assert 20 <= in_virtual_time(run(600.0)) <= 60
    assert caplog.text.count("Waiting for the first healthy worker, for up to 600 s") == 1
    assert caplog.text.count("Worker http://late is left out until it is healthy: warming (since ") == 1
    assert caplog.text.count("Worker http://late is ready, after ") == 1
    assert "http://late: warming" in caplog.text
    late.state = Health(False, "warming")
    with pytest.raises(ProviderError, match="no worker was ready within 10 s") as caught:
        in_virtual_time(run(10.0))
    assert caught.value.kind == "no_worker"


def test_a_worker_that_answers_no_call_is_left_out(simulated: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose calls hang one after the other is left out, however well its /health looks; rows go on."""
    hung, well = Busy("http://hung"), Busy("http://well")
    hung.hangs_from = 30

    async def work(pool: Pool) -> None:
        errors = await make_all(pool, [1] * 400, at_once=4)
        assert {error.kind for error in errors} == {"worker_lost"}
        assert len(errors) <= 12
        assert "http://hung" in pool.left_out

    seconds = simulated([hung, well], work)
    assert (hung.made + well.made, hung.made) == (400, 29)
    assert seconds <= 1200
    assert caplog.text.count("Worker http://hung is left out") <= 4
    assert caplog.text.count("Worker http://hung is ready") <= caplog.text.count("Worker http://hung is left out")
    assert "calls in a row were not answered, though /health is well" in caplog.text


@given(
    steps=st.lists(st.sampled_from([1, 4, 30]), min_size=80, max_size=200),
    trouble=st.sampled_from(["hangs", "hangs once", "dies", "refuses", "fails"]),
    at=st.integers(1, 40),
    at_once=st.integers(2, 12),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_worker_s_trouble_is_its_own(
    steps: list[int], trouble: str, at: int, at_once: int, simulated: Simulation
) -> None:
    """With two good workers beside it, a worker that hangs, dies, refuses or fails costs no row, and bounded time."""
    bad, good = Busy("http://bad"), [Busy("http://good-1"), Busy("http://good-2")]
    if trouble == "hangs":
        bad.hangs_from = at
    elif trouble == "hangs once":
        bad.hangs_at = {at}
    elif trouble == "dies":
        bad.dies_at = at
    elif trouble == "refuses":
        bad.refusal = ProviderError("auth", "401: wrong key", status=401)
    else:
        bad.refusal = ProviderError("server_error", "500: boom", status=500)

    async def work(pool: Pool) -> None:
        errors = await make_all(pool, steps, at_once)
        assert {error.kind for error in errors} <= {"worker_lost", "worker_failed"}

    seconds = simulated([bad, *good], work, deadline=300.0)
    assert bad.made + sum(worker.made for worker in good) == len(steps)
    assert seconds <= sum(steps) + 4 * 300


def test_nobody_is_left(simulated: Simulation) -> None:
    """When all refuse, the run ends at once with the reasons of all; who has worked before is waited for."""
    first, second = Busy("http://first"), Busy("http://second")
    first.refusal = ProviderError("auth", "401: wrong key", status=401)
    second.refusal = ProviderError("protocol", "404: no such page", status=404)

    async def work(pool: Pool) -> None:
        (error,) = await make_all(pool, [1], at_once=1)
        assert error.kind == "no_worker"
        assert "http://first: 401: wrong key" in error.message
        assert "http://second: 404: no such page" in error.message

    assert simulated([first, second], work) < 1
    first, second = Busy("http://first"), Busy("http://second")

    async def deploy(pool: Pool) -> None:
        assert await make_all(pool, [1] * 10, at_once=4) == []
        for worker in (first, second):
            worker.refusal = ProviderError("protocol", "404: no such page", status=404)
        loop = asyncio.get_running_loop()
        loop.call_later(20, lambda: setattr(first, "refusal", None))
        assert await make_all(pool, [1] * 10, at_once=4) == []

    assert simulated([first, second], deploy) < 200


@asynccontextmanager
async def pool_over(*engines: Any, **policy: Any) -> Any:
    dialects = [OpenAIImages(engine.url, None, deadline=30.0) for engine in engines]
    pool = Pool(dialects, PoolPolicy(**{"deadline": 30.0, "profile": DISTILLED} | policy), SystemClock())
    try:
        await pool.open()
        yield pool
    finally:
        await pool.aclose()


@pytest.mark.anyio
async def test_real_sockets(images_engine: Engine) -> None:
    """Never more calls at a real server than its limit, and every image comes from the one that is told."""
    engines = [images_engine("vllm_omni", seconds=0.01), images_engine("sglang", seconds=0.03)]
    async with pool_over(*engines) as pool:
        outcomes = await make_many(pool, 60, at_once=20)
    for delivery in outcomes:
        assert isinstance(delivery, Delivery)
        with Image.open(io.BytesIO(delivery.data)) as image:
            assert image.size == (1024, 1024)
    endpoints = [outcome.endpoint for outcome in outcomes if isinstance(outcome, Delivery)]
    assert [endpoints.count(engine.url) for engine in engines] == [len(engine.bodies) for engine in engines]
    assert [engine.most_in_flight for engine in engines] == [2, 2]
    assert [engine.complaints for engine in engines] == [[], []]


@pytest.mark.anyio
async def test_a_worker_that_dies_is_noticed(images_engine: Engine) -> None:
    """A server that goes away in mid-call loses that call only; its refused connections send nobody there again."""
    dying, alive = images_engine("sglang", seconds=0.2), images_engine("sglang", seconds=0.01)
    async with pool_over(dying, alive) as pool:
        calls = [asyncio.create_task(make(pool, number)) for number in range(4)]
        while len(dying.bodies) < 2:  # noqa: ASYNC110 - the server lives in another thread
            await asyncio.sleep(0.01)
        await asyncio.to_thread(dying.stop)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        lost = [outcome for outcome in outcomes if isinstance(outcome, ProviderError)]
        assert {outcome.kind for outcome in lost} == {"worker_lost"}
        assert len(lost) == len(dying.bodies) <= 2
        assert not [outcome for outcome in await make_many(pool, 10, at_once=4) if isinstance(outcome, BaseException)]
