"""The pool: which worker gets a call, who is left out, and who comes back."""

import asyncio
import io
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prefect_imagegen.core.errors import ProviderError, RefusedError
from prefect_imagegen.core.request.profiles import PROFILES
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.ports import Balance, Delivery, Health, Submission
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.pool.openai_images import OpenAIImages
from prefect_imagegen.providers.pool.provider import Pool, PoolPolicy

Engine = Callable[..., Any]
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


@pytest.mark.parametrize(("slowest", "most"), [(1.0, 1.1), (3.0, 1.2)])
def test_the_work_is_spread_well(slowest: float, most: float, simulated: Simulation) -> None:
    """Four workers need at most 1.1 times the ideal time, 1.2 times with one that is three times slower."""
    workers = [Worker(f"http://w{number}", slowness) for number, slowness in enumerate((1.0, 1.0, 1.0, slowest))]

    async def work(pool: Pool) -> None:
        assert not [outcome for outcome in await make_many(pool, 600, at_once=24) if isinstance(outcome, BaseException)]

    seconds = simulated(workers, work)
    whole = sum(random.Random(f"cup {number}").lognormvariate(0, 0.25) for number in range(600))
    assert seconds / (whole / (3 + 1 / slowest)) <= most
    assert [worker.most for worker in workers] == [2, 2, 2, 2]
    assert sum(worker.made for worker in workers) == 600


def test_limits_come_from_the_user_then_from_the_worker(simulated: Simulation) -> None:
    """A worker that tells how many calls it wants at once gets so many, unless the user says otherwise."""
    for own, expected in ((None, [5, 2]), (3, [3, 3])):
        workers = [Worker("http://a", limit=5), Worker("http://b")]

        async def work(pool: Pool) -> None:
            await make_many(pool, 60, at_once=60)

        simulated(workers, work, limit=own)
        assert [worker.most for worker in workers] == expected


def test_a_late_worker_brings_its_room(simulated: Simulation) -> None:
    """Whoever keeps the pipe full learns how many calls a worker wants that was not ready at the start."""
    early, late = Worker("http://early"), Worker("http://late", ready=False)
    capacities: list[int] = []

    async def work(pool: Pool) -> None:
        pool.on_capacity = capacities.append
        assert pool.capacity == 4
        late.state = Health(True, limit=9)
        await asyncio.sleep(60)
        await make_many(pool, 60, at_once=60)

    simulated([early, late], work)
    assert capacities[-1] == 11
    assert (early.most, late.most) == (2, 9)


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


def test_a_busy_worker_is_spared_for_a_while(simulated: Simulation) -> None:
    """A worker that refuses with 429 gets nothing until its time; others go on, and nobody else waits."""
    busy, idle = Worker("http://busy"), Worker("http://idle")
    busy.errors = [ProviderError("rate_limited", "429", status=429, retry_after=50.0)]

    async def work(pool: Pool) -> None:
        outcomes = await make_many(pool, 30, at_once=2)
        assert [outcome.kind for outcome in outcomes if isinstance(outcome, ProviderError)] == ["worker_busy"]
        assert busy.made == 0
        await asyncio.sleep(60)
        await make_many(pool, 10, at_once=4)
        assert busy.made > 0

    assert simulated([busy, idle], work) < 120


def test_a_hung_call_is_cut_by_the_worker_s_own_measure(simulated: Simulation) -> None:
    """A call is lost after ten times what its own worker usually takes, so that a slow worker is not a hung one."""
    fast, slow = Worker("http://fast"), Worker("http://slow", slowness=30.0)

    async def work(pool: Pool) -> None:
        outcomes = await make_many(pool, 900, at_once=4)
        assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert slow.made >= 20
        fast.slowness = 1e6
        started = asyncio.get_running_loop().time()
        slow.errors = []
        outcomes = await make_many(pool, 2, at_once=2)
        lost = [outcome for outcome in outcomes if isinstance(outcome, ProviderError)]
        assert [outcome.kind for outcome in lost] == ["worker_lost"]
        assert "no answer within 3" in lost[0].message
        assert asyncio.get_running_loop().time() - started < 200

    simulated([fast, slow], work)


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


def test_workers_that_cannot_serve_are_refused(simulated: Simulation) -> None:
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


def test_each_model_goes_to_a_worker_that_serves_it(simulated: Simulation) -> None:
    """A worker that names its models gets no others; a model that nobody serves is said."""
    small = Worker("http://small", models=frozenset({"flux-2-klein-4b"}))
    large = Worker("http://large", models=frozenset({"flux-2-klein-9b"}))

    async def work(pool: Pool) -> None:
        await make_many(pool, 10, at_once=4)
        with pytest.raises(ProviderError) as caught:
            await pool.submit(GenerationRequest("flux-9", {"prompt": "a", "seed": 1}), ())
        assert caught.value.kind == "model_unavailable"

    simulated([small, large], work)
    assert (small.made, large.made) == (0, 10)


def test_the_profile_is_applied_and_told(simulated: Simulation) -> None:
    """The worker gets what the profile can do, and the delivery tells it, with the endpoint and no cost."""
    worker = Worker()

    async def work(pool: Pool) -> None:
        submission = await pool.submit(request(), ())
        assert submission.open_body.request.params["cfg"] == 1
        assert submission.request_id is None
        delivery = await pool.collect(submission)
        assert (delivery.applied["cfg"], delivery.applied["steps"]) == (1, 4)
        assert (delivery.cost_usd, delivery.endpoint) == (0.0, "http://w")

    simulated([worker], work, profile=DISTILLED)


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


def test_heavy_work_after_light_is_not_cut(simulated: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that take fifty times as long as those before them are waited for, and their worker is not left out."""

    async def work(pool: Pool) -> None:
        assert await make_all(pool, [1] * 100 + [50] * 40 + [1, 50] * 40, at_once=4) == []

    simulated([Busy("http://a"), Busy("http://b", slowness=2.0)], work)
    assert "left out" not in caplog.text


def test_a_worker_that_grows_slow_is_waited_for(simulated: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    """A call that was given up says how long such calls take at least: the next one gets the time it needs."""
    worker = Busy("http://a")

    async def work(pool: Pool) -> None:
        assert await make_all(pool, [1] * 1000, at_once=2) == []
        worker.slowness = 55.0
        errors = await make_all(pool, [1] * 40, at_once=2)
        assert {error.kind for error in errors} == {"worker_lost"}
        assert len(errors) <= 6

    simulated([worker], work)
    assert "left out" not in caplog.text


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
    steps=st.lists(st.sampled_from([1, 4, 30, 100]), min_size=60, max_size=200),
    slowness=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=4),
    at_once=st.integers(1, 16),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_healthy_workers_are_left_alone(
    steps: list[int], slowness: list[float], at_once: int, simulated: Simulation
) -> None:
    """Whatever the mixture of work and the speed of each worker: no call is given up, and no worker left out."""
    workers = [Busy(f"http://w{number}", slow) for number, slow in enumerate(slowness)]

    async def work(pool: Pool) -> None:
        assert await make_all(pool, steps, at_once) == []
        assert pool.left_out == {}

    simulated(workers, work, deadline=2000.0)
    assert sum(worker.made for worker in workers) == len(steps)


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


@pytest.mark.parametrize(
    ("error", "for_good"),
    [
        (ProviderError("auth", "401: wrong key", status=401), True),
        (ProviderError("credits", "406: no credits", status=406), True),
        (ProviderError("sandbox_mismatch", "it is now a sandbox", status=200), True),
        (ProviderError("model_unavailable", "404: Model not found", status=404), False),
        (ProviderError("protocol", "405: another service", status=405), False),
    ],
)
def test_a_worker_that_refuses_is_left_out(
    error: ProviderError, for_good: bool, simulated: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that refuses calls is left out with its reason, said once; no row notices, none waits for it."""
    bad, good = Busy("http://bad"), Busy("http://good")
    bad.refusal = error

    async def work(pool: Pool) -> None:
        assert await make_all(pool, [1] * 50, at_once=4) == []
        assert pool.left_out == {"http://bad": error.message}
        assert good.made == 50
        bad.refusal = None
        await asyncio.sleep(1000)
        assert await make_all(pool, [1] * 50, at_once=4) == []
        assert (bad.made > 10) is not for_good

    simulated([bad, good], work)
    assert caplog.text.count("Worker http://bad is left out") == 1
    assert error.message in caplog.text


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


def test_a_key_is_tried_before_the_first_call(simulated: Simulation, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that rejects our key is named and left out before it gets a row; where all do, nothing begins."""
    wrong, right = Busy("http://wrong"), Busy("http://right")
    wrong.key_trouble = ProviderError("auth", "401: wrong key", status=401)

    async def work(pool: Pool) -> None:
        assert await make_all(pool, [1] * 10, at_once=4) == []
        assert pool.left_out == {"http://wrong": "401: wrong key"}

    simulated([wrong, right], work)
    assert (wrong.taken, right.made) == (0, 10)
    assert caplog.text.count("Worker http://wrong is left out for the rest of this run: 401: wrong key") == 1
    with pytest.raises(
        RefusedError, match=r"No worker takes the key: http://wrong: 401: wrong key.*#key=env"
    ) as caught:
        simulated([wrong], work)
    assert caught.value.kind == "wrong_key"
    late = Busy("http://late", ready=False)
    late.key_trouble = wrong.key_trouble

    async def later(pool: Pool) -> None:
        late.state = Health(True)
        await asyncio.sleep(60)
        assert await make_all(pool, [1] * 10, at_once=4) == []
        assert pool.left_out["http://late"] == "401: wrong key"

    simulated([late, Busy("http://right")], later)
    assert late.taken == 0


def test_a_row_is_bad_only_if_all_say_so(simulated: Simulation) -> None:
    """What one worker refuses as bad another one is asked for; who refuses what others take is left out."""
    strict, other = Busy("http://strict"), Busy("http://other")
    strict.refusal = ProviderError("invalid_request", "422: steps?", status=422)

    async def work(pool: Pool) -> None:
        assert await make_all(pool, [1] * 30, at_once=2) == []
        assert "refuses what others take: 422: steps?" in pool.left_out["http://strict"]
        other.refusal = ProviderError("invalid_request", "400: no", status=400)
        errors = await make_all(pool, [1] * 2, at_once=1)
        assert [error.kind for error in errors] == ["invalid_request"] * 2

    simulated([strict, other], work)
    assert strict.taken <= 10


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
