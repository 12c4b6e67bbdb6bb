"""The pool: which worker gets a call, who is left out, and who comes back."""

import asyncio
import io
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from PIL import Image

from prefect_imagegen.core.errors import BackendError, RefusedError
from prefect_imagegen.core.profiles import PROFILES
from prefect_imagegen.core.request import GenerationRequest
from prefect_imagegen.io.limits import SystemClock
from prefect_imagegen.io.openai_images import OpenAIImages
from prefect_imagegen.io.pool import Pool, PoolPolicy
from prefect_imagegen.ports import Delivery, Health, Submission

Engine = Callable[..., Any]
DISTILLED = PROFILES["klein-distilled"]


def request(number: int = 0) -> GenerationRequest:
    params = {"prompt": f"cup {number}", "seed": number, "steps": 4, "cfg": 3, "aspect_ratio": "1:1"}
    return GenerationRequest("flux-2-klein-9b", params, profile="klein-distilled")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to whatever is due next: hours pass in no time, to the same end each time."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class LoopClock:
    """The clock of the running loop."""

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.monotonic(), UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Worker:
    """A worker that does one call at a time, each as long as its prompt's number draws, times `slowness`."""

    queues = False

    def __init__(self, name: str = "http://w", slowness: float = 1.0, **health: Any) -> None:
        self.endpoint = name
        self.slowness = slowness
        self.state = Health(**{"ready": True} | health)
        self.errors: list[BackendError | None] = []
        self.made = self.in_flight = self.most = self.asked = 0
        self._one = asyncio.Lock()

    async def health(self) -> Health:
        self.asked += 1
        return self.state

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


def simulated(workers: Sequence[Worker], work: Callable[[Pool], Awaitable[None]], **policy: Any) -> float:
    """Do some work over a pool in virtual time; the seconds it took."""

    async def run() -> float:
        pool = Pool(workers, PoolPolicy(**{"free": True, "deadline": 600.0} | policy), LoopClock())
        await pool.open()
        started = asyncio.get_running_loop().time()
        await work(pool)
        seconds = asyncio.get_running_loop().time() - started
        await pool.aclose()
        return seconds

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


async def make(pool: Pool, number: int = 0) -> Delivery:
    return await pool.collect(await pool.submit(request(number), ()))


async def make_many(pool: Pool, count: int, at_once: int) -> list[Delivery | BaseException]:
    gate = asyncio.Semaphore(at_once)

    async def one(number: int) -> Delivery:
        async with gate:
            return await make(pool, number)

    return await asyncio.gather(*map(one, range(count)), return_exceptions=True)


@pytest.mark.parametrize(("slowest", "most"), [(1.0, 1.1), (3.0, 1.2)])
def test_the_work_is_spread_well(slowest: float, most: float) -> None:
    """Four workers need at most 1.1 times the ideal time, 1.2 times with one that is three times slower."""
    workers = [Worker(f"http://w{number}", slowness) for number, slowness in enumerate((1.0, 1.0, 1.0, slowest))]

    async def work(pool: Pool) -> None:
        assert not [one for one in await make_many(pool, 600, at_once=24) if isinstance(one, BaseException)]

    seconds = simulated(workers, work)
    whole = sum(random.Random(f"cup {number}").lognormvariate(0, 0.25) for number in range(600))
    assert seconds / (whole / (3 + 1 / slowest)) <= most
    assert [worker.most for worker in workers] == [2, 2, 2, 2]
    assert sum(worker.made for worker in workers) == 600


def test_limits_come_from_the_user_then_from_the_worker() -> None:
    """A worker that tells its batch gets that many calls and one more, unless the user says otherwise."""
    for given, expected in ((None, [5, 2]), (3, [3, 3])):
        workers = [Worker("http://a", limit=5), Worker("http://b")]

        async def work(pool: Pool) -> None:
            await make_many(pool, 60, at_once=60)

        simulated(workers, work, limit=given)
        assert [worker.most for worker in workers] == expected


def test_a_late_worker_brings_its_room() -> None:
    """Whoever keeps the pipe full learns how many calls a worker wants that was not ready at the start."""
    early, late = Worker("http://early"), Worker("http://late", ready=False)
    told: list[int] = []

    async def work(pool: Pool) -> None:
        pool.on_capacity = told.append
        assert pool.capacity == 4
        late.state = Health(True, limit=9)
        await asyncio.sleep(60)
        await make_many(pool, 60, at_once=60)

    simulated([early, late], work)
    assert told[-1] == 11
    assert (early.most, late.most) == (2, 9)


def test_a_lost_worker_is_left_out_until_it_is_healthy() -> None:
    """After a lost call a worker gets none until its health says so; it is asked ever more seldom."""
    dead, alive = Worker("http://dead"), Worker("http://alive")
    dead.errors = [BackendError("unknown", "connection reset")]

    async def work(pool: Pool) -> None:
        dead.state = Health(False, "gone")
        found = await make_many(pool, 20, at_once=2)
        (lost,) = [one for one in found if isinstance(one, BackendError)]
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


def test_three_failures_in_a_row_are_enough() -> None:
    """A 500 is the row's or the worker's fault; three in a row are the worker's."""
    bad = Worker("http://bad")
    bad.errors = [BackendError("server_error", "500", status=500) for _ in range(2)]

    async def work(pool: Pool) -> None:
        bad.state = Health(False, "broken")
        for _ in range(2):
            with pytest.raises(BackendError, match="bad"):
                await make(pool)
        await make(pool)
        bad.errors = [BackendError("server_error", "500", status=500) for _ in range(3)]
        kinds = [one.kind for one in await make_many(pool, 3, at_once=1) if isinstance(one, BackendError)]
        assert kinds == ["worker_failed"] * 3
        with pytest.raises(BackendError) as caught:
            await make(pool)
        assert caught.value.kind == "no_worker"

    assert simulated([bad], work, deadline=60.0) >= 60


def test_each_outage_has_its_own_deadline() -> None:
    """A pool that was dark once, and worked since, is waited for as long as ever when it goes dark again."""
    worker = Worker()

    async def outage(pool: Pool) -> None:
        worker.state = Health(False, "restarting")
        worker.errors = [BackendError("unknown", "connection reset")]
        asyncio.get_running_loop().call_later(40, lambda: setattr(worker, "state", Health(True)))
        found = await make_many(pool, 3, at_once=2)
        assert [one.kind for one in found if isinstance(one, BackendError)] == ["worker_lost"]

    async def work(pool: Pool) -> None:
        await outage(pool)
        assert not [one for one in await make_many(pool, 200, at_once=1) if isinstance(one, BaseException)]
        await outage(pool)

    assert simulated([worker], work, deadline=100.0) > 200


def test_a_busy_worker_is_spared_for_a_while() -> None:
    """A worker that refuses with 429 gets nothing until its time; others go on, and nobody else waits."""
    busy, idle = Worker("http://busy"), Worker("http://idle")
    busy.errors = [BackendError("rate_limited", "429", status=429, retry_after=50.0)]

    async def work(pool: Pool) -> None:
        found = await make_many(pool, 30, at_once=2)
        assert [one.kind for one in found if isinstance(one, BackendError)] == ["worker_busy"]
        assert busy.made == 0
        await asyncio.sleep(60)
        await make_many(pool, 10, at_once=4)
        assert busy.made > 0

    assert simulated([busy, idle], work) < 120


def test_a_hung_call_is_cut_by_the_worker_s_own_measure() -> None:
    """A call is lost after ten times what its own worker usually takes, so that a slow worker is not a hung one."""
    fast, slow = Worker("http://fast"), Worker("http://slow", slowness=30.0)

    async def work(pool: Pool) -> None:
        found = await make_many(pool, 900, at_once=4)
        assert not [one for one in found if isinstance(one, BaseException)]
        assert slow.made >= 20
        fast.slowness = 1e6
        started = asyncio.get_running_loop().time()
        slow.errors = []
        found = await make_many(pool, 2, at_once=2)
        lost = [one for one in found if isinstance(one, BackendError)]
        assert [one.kind for one in lost] == ["worker_lost"]
        assert "no answer within 3" in lost[0].message
        assert asyncio.get_running_loop().time() - started < 200

    simulated([fast, slow], work)


def test_the_run_waits_for_the_first_worker(caplog: pytest.LogCaptureFixture) -> None:
    """Opening waits until one worker is healthy, says so, and gives up at the deadline."""
    late, never = Worker("http://late", ready=False, detail="warming"), Worker("http://never", ready=False)

    async def run(deadline: float) -> float:
        pool = Pool([late, never], PoolPolicy(free=True, deadline=deadline), LoopClock())
        loop = asyncio.get_running_loop()
        loop.call_later(20, lambda: setattr(late, "state", Health(True)))
        try:
            await pool.open()
            assert (await make(pool)).endpoint == "http://late"
            return loop.time()
        finally:
            await pool.aclose()

    loop = VirtualLoop()
    with caplog.at_level(logging.WARNING):
        assert 20 <= loop.run_until_complete(run(600.0)) <= 60
    loop.close()
    assert "Waiting for the first healthy worker" in caplog.text
    assert "http://late: warming" in caplog.text
    late.state = Health(False, "warming")
    loop = VirtualLoop()
    with pytest.raises(BackendError, match="no worker was ready within 10 s") as caught:
        loop.run_until_complete(run(10.0))
    loop.close()
    assert caught.value.kind == "no_worker"


def test_workers_that_cannot_serve_are_refused() -> None:
    """A profile that no worker runs, and placeholders beside real images, are refused; one misfit is left out."""
    base = Worker("http://base", profile="klein-base")
    with pytest.raises(RefusedError, match="runs the profile klein-base, not klein-distilled"):
        simulated([base], make_one, profile=DISTILLED)
    fitting = Worker("http://fitting", profile="klein-distilled")
    simulated([base, fitting], make_one, profile=DISTILLED)
    assert (base.made, fitting.made) == (0, 1)
    with pytest.raises(RefusedError, match="some are not"):
        simulated([Worker("http://toy", engine="sandbox"), Worker("http://gpu", engine="diffusers")], make_one)


async def make_one(pool: Pool) -> None:
    await make(pool)


def test_each_model_goes_to_a_worker_that_serves_it() -> None:
    """A worker that names its models gets no others; a model that nobody serves is said."""
    small = Worker("http://small", models=frozenset({"flux-2-klein-4b"}))
    large = Worker("http://large", models=frozenset({"flux-2-klein-9b"}))

    async def work(pool: Pool) -> None:
        await make_many(pool, 10, at_once=4)
        with pytest.raises(BackendError) as caught:
            await pool.submit(GenerationRequest("flux-9", {"prompt": "a", "seed": 1}), ())
        assert caught.value.kind == "model_unavailable"

    simulated([small, large], work)
    assert (small.made, large.made) == (0, 10)


def test_the_profile_is_applied_and_told() -> None:
    """The worker gets what the profile can do, and the delivery tells it, with the endpoint and no cost."""
    worker = Worker()

    async def work(pool: Pool) -> None:
        found = await pool.submit(request(), ())
        assert found.open_body.request.params["cfg"] == 1
        assert found.request_id is None
        delivery = await pool.collect(found)
        assert (delivery.applied["cfg"], delivery.applied["steps"]) == (1, 4)
        assert (delivery.cost_usd, delivery.endpoint) == (0.0, "http://w")

    simulated([worker], work, profile=DISTILLED)


@asynccontextmanager
async def pool_over(*engines: Any, **policy: Any) -> Any:
    dialects = [OpenAIImages(engine.url, None, deadline=30.0) for engine in engines]
    pool = Pool(dialects, PoolPolicy(**{"free": True, "deadline": 30.0, "profile": DISTILLED} | policy), SystemClock())
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
        found = await make_many(pool, 60, at_once=20)
    for delivery in found:
        assert isinstance(delivery, Delivery)
        with Image.open(io.BytesIO(delivery.data)) as image:
            assert image.size == (1024, 1024)
    told = [one.endpoint for one in found if isinstance(one, Delivery)]
    assert [told.count(engine.url) for engine in engines] == [len(engine.bodies) for engine in engines]
    assert [engine.most_in_flight for engine in engines] == [2, 2]
    assert [engine.complaints for engine in engines] == [[], []]


@pytest.mark.anyio
async def test_a_worker_that_dies_is_noticed(images_engine: Engine) -> None:
    """A server that goes away in mid-call loses that call only; its refused connections send nobody there again."""
    dying, alive = images_engine("sglang", seconds=0.2), images_engine("sglang", seconds=0.01)
    async with pool_over(dying, alive) as pool:
        calls = [asyncio.create_task(make(pool, number)) for number in range(4)]
        while not dying.bodies:  # noqa: ASYNC110 - the server lives in another thread
            await asyncio.sleep(0.01)
        await asyncio.to_thread(dying.stop)
        found = await asyncio.gather(*calls, return_exceptions=True)
        lost = [one for one in found if isinstance(one, BackendError)]
        assert {one.kind for one in lost} == {"worker_lost"}
        assert len(lost) == len(dying.bodies) <= 2
        assert not [one for one in await make_many(pool, 10, at_once=4) if isinstance(one, BaseException)]
