"""Runs and their processes: loops, limits, kill -9, and two at the same time."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import prefect_imagegen
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.status import statuses
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.app.running.runs.conftest import VERSIONS, generate, prompts
from tests.support import warm_python
from tests.support.manifests import manifest_of


def test_in_flight_stays_in_its_limit(tmp_path: Path) -> None:
    """Never more calls at once than asked for, over many shards."""
    with EmbeddedGateway(GatewaySettings(latency_s=0.1)) as gateway:
        path = manifest_of(tmp_path, prompt=prompts(60))
        result = generate(gateway, path, str(tmp_path / "store"), max_in_flight=5, shard_size=4)
        assert result.generated == 60
        assert gateway.account_state.max_in_flight == 5


def test_agenerate_runs_inside_a_loop_on_s3(tmp_path: Path, s3: Any) -> None:
    """`agenerate` works in a running loop, and S3 stores keep the same promises as local ones."""
    store, path = StoreSettings(s3.url(), s3.options), manifest_of(tmp_path, prompt=prompts(12))

    async def twice() -> list[RunResult]:
        return [await prefect_imagegen.agenerate(path, store, backend="sandbox") for _ in range(2)]

    first, second = asyncio.run(twice())
    assert (first.generated, second.reused, second.calls) == (12, 12, 0)


CHILD = """
import sys
import prefect_imagegen
from prefect_imagegen.providers.settings import ProviderSettings
from pydantic import SecretStr

prefect_imagegen.generate(
    sys.argv[1], sys.argv[2], backend=ProviderSettings(base_url=sys.argv[3], api_key=SecretStr("k")),
    api_version=sys.argv[4], max_in_flight=8,
)
"""


@VERSIONS
def test_kill_in_mid_run(version: str, tmp_path: Path) -> None:
    """After kill -9, the same command pays for nothing twice: ids are fetched, calls without an answer are held."""
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(60))
    with EmbeddedGateway(GatewaySettings(latency_s=0.3)) as gateway:
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        process = warm_python.start("-c", CHILD, path, store, gateway.url, version, env=environment)
        end = time.monotonic() + 60
        while len(gateway.account_state.billed) < 20:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (died,) = asyncio.run(statuses(StoreSettings(str(store))))
        assert died.state == "abandoned"
        result = generate(gateway, path, str(store), api_version=version)
        statistics = gateway.account_state.statistics()
    assert statistics["billed_twice"] == 0
    assert result.generated + result.reused + result.held == 60
    if version == "v2":
        # Held are at most the calls whose answer was on the wire when the process died.
        assert result.held <= 8
    images = [file for file in (store / "images").rglob("*") if file.is_file() and not file.name.startswith(".tmp-")]
    assert len(images) == 60 - result.held


def test_two_runs_at_once(tmp_path: Path) -> None:
    """Rows that another living run works on are left to it, and reused when it has made them; nothing is called."""
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(8))
    with EmbeddedGateway(GatewaySettings(latency_s=3.0)) as gateway:
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        other = warm_python.start("-c", CHILD, path, store, gateway.url, "v2", env=environment)
        try:
            end = time.monotonic() + 60
            while len(gateway.account_state.records) < 8:
                assert time.monotonic() < end
                time.sleep(0.02)
            result = generate(gateway, path, str(store))
            assert (result.calls, result.failures, result.reused) == (0, {}, 8)
            assert result.cost_usd == 0
            assert other.wait(60) == 0
        finally:
            other.kill()
            other.wait()
        again = generate(gateway, path, str(store))
        assert (again.reused, again.calls) == (8, 0)
        assert len(gateway.account_state.billed) == 8
