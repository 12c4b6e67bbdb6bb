"""Which worker of a pool gets a call."""

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.ports import Health
from prefect_imagegen.providers.pool.provider import Pool
from tests.providers.pool.conftest import (
    DISTILLED,
    Busy,
    Simulation,
    Worker,
    make_all,
    make_many,
    request,
)


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
