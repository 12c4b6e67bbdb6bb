"""Calls of a pool that take long: which is slow, and which hangs."""

import asyncio

import pytest

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.providers.pool.provider import Pool
from tests.providers.pool.conftest import (
    Busy,
    Simulation,
    Worker,
    make_all,
    make_many,
)


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
