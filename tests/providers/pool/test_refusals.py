"""Workers of a pool that refuse: a key, a model, a row."""

import asyncio

import pytest

from prefect_imagegen.core.errors import ProviderError, RefusedError
from prefect_imagegen.ports import Health
from prefect_imagegen.providers.pool.provider import Pool
from tests.providers.pool.conftest import (
    DISTILLED,
    Busy,
    Simulation,
    Worker,
    make,
    make_all,
)


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
