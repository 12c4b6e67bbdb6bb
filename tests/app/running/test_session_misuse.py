"""Sessions that flows of users misuse: nothing hangs, nothing is called, and no figures are lost."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec, prepare
from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.app.running.run_session import AlreadyStartedError, open_session
from prefect_imagegen.app.running.session import Session, SessionError
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.manifests import manifest_of

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def gateway() -> Iterator[EmbeddedGateway]:
    with EmbeddedGateway(GatewaySettings()) as gateway:
        yield gateway


@pytest.fixture
def spec(gateway: EmbeddedGateway, tmp_path: Path) -> RunSpec:
    manifest = manifest_of(tmp_path, prompt=[f"scene {number}" for number in range(4)])
    provider = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
    return RunSpec(str(manifest), StoreSettings(str(tmp_path / "store")), provider, RunOptions(shard_size=2))


async def kind_of(work: Coroutine[Any, Any, object]) -> str:
    """The kind of the SessionError that some work raises."""
    with pytest.raises(SessionError) as error:
        await work
    return error.value.kind


def test_a_closed_session_is_refused_at_once(spec: RunSpec, gateway: EmbeddedGateway) -> None:
    """Shards and the end of a run that are asked of a closed session are refused: nothing is waited for."""

    async def use() -> list[str]:
        async with open_session(await prepare(spec)) as session:
            pass
        uses = (session.run_shard(0), session.for_each_shard(session.run_shard), finish(session, 1.0))
        return [await kind_of(work) for work in uses]

    assert asyncio.run(use()) == ["session_closed"] * 3
    assert not gateway.account_state.records


def test_another_event_loop_is_refused(spec: RunSpec, gateway: EmbeddedGateway) -> None:
    """A session that is used in another event loop, as .submit and .map do, is refused before any claim or call."""

    async def use() -> str:
        async with open_session(await prepare(spec)) as session:
            return await asyncio.to_thread(asyncio.run, kind_of(session.run_shard(0)))

    assert asyncio.run(use()) == "session_elsewhere"
    assert not gateway.account_state.records


def test_a_plan_of_another_event_loop_is_refused(spec: RunSpec, gateway: EmbeddedGateway) -> None:
    """A plan made in one event loop and opened in another is refused, before any claim or call."""

    async def use(planned_run: PlannedRun) -> None:
        async with open_session(planned_run):
            pass

    with asyncio.Runner() as runner:
        planned_run = runner.run(prepare(spec))
        assert asyncio.run(kind_of(use(planned_run))) == "session_elsewhere"
        runner.run(planned_run.aclose())
    assert not gateway.account_state.records


def test_a_shard_is_made_once(spec: RunSpec, gateway: EmbeddedGateway) -> None:
    """A shard that is asked for again is not made again, and what it has cost stays in the run's figures."""

    async def use(session: Session) -> None:
        first = await session.run_shard(0)
        assert await session.run_shard(0) == first == Counter(generated=2)
        both = await asyncio.gather(session.run_shard(1), kind_of(session.run_shard(1)))
        assert both == [Counter(generated=2), "shard_open"]
        assert await kind_of(session.run_shard(2)) == "shard_unknown"

    async def whole() -> None:
        async with open_session(await prepare(spec)) as session:
            await use(session)
            result = await finish(session, 1.0)
        assert (result.generated, result.paid, result.calls) == (4, 4, 4)
        assert result.cost_usd == pytest.approx(gateway.account_state.statistics()["charged_usd"])

    asyncio.run(whole())
    assert gateway.account_state.statistics()["billed"] == 4


@pytest.mark.parametrize("nested", [True, False])
def test_a_plan_is_opened_once(spec: RunSpec, gateway: EmbeddedGateway, *, nested: bool) -> None:
    """A plan that is opened a second time, also while the first execution goes on, leaves that one alone."""

    async def again(planned_run: PlannedRun) -> None:
        with pytest.raises(AlreadyStartedError):
            async with open_session(planned_run):
                pass

    async def whole() -> int:
        planned_run = await prepare(spec)
        async with open_session(planned_run) as session:
            if nested:
                await again(planned_run)
            await session.for_each_shard(session.run_shard)
            result = await finish(session, 1.0)
        await again(planned_run)
        return result.generated

    assert asyncio.run(whole()) == 4
    assert gateway.account_state.statistics()["billed"] == 4
