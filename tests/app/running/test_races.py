"""Several runs on one store: claims and heartbeats decide, no lock. The gateway's records are the judge."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support import warm_python

CHILD = """
import datetime, sys
import prefect_imagegen
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.providers.limits import SystemClock
from pydantic import SecretStr

manifest, store, base_url, ahead = sys.argv[1:]
if float(ahead):
    now = SystemClock.now
    SystemClock.now = lambda self: now(self) + datetime.timedelta(seconds=float(ahead))
result = prefect_imagegen.generate(
    manifest, store, backend=ProviderSettings(base_url=base_url, api_key=SecretStr("k")), max_in_flight=8,
    history_lag=5.0,
)
print(result.generated, result.reused, result.held, result.calls)
"""


def manifest(path: Path, numbers: range) -> str:
    pq.write_table(pa.table({"prompt": [f"prompt number {number}" for number in numbers]}), path)
    return str(path)


@contextmanager
def running(path: str, store: Path, gateway: EmbeddedGateway, ahead: float = 0.0) -> Iterator[warm_python.Process]:
    """Another process that makes a manifest, with a clock that may be ahead by some seconds."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    arguments = (path, store, gateway.url, ahead)
    process = warm_python.start("-c", CHILD, *arguments, env=environment, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def figures(process: warm_python.Process) -> list[int]:
    """generated, reused, held and calls of a run in another process."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return [int(word) for word in out.split()]


def make(gateway: EmbeddedGateway, path: str, store: Path) -> RunResult:
    settings = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
    return prefect_imagegen.generate(path, str(store), backend=settings, max_in_flight=8, history_lag=5.0)


def wait_for(gateway: EmbeddedGateway, records: int) -> None:
    end = time.monotonic() + 60
    while len(gateway.account_state.records) < records:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("ahead", [0.0, 3600.0, -3600.0])
def test_two_processes_with_the_same_manifest(ahead: float, tmp_path: Path) -> None:
    """Two processes that begin together share the work; a clock one hour off in one of them changes nothing."""
    path, store = manifest(tmp_path / "a.parquet", range(60)), tmp_path / "store"
    with EmbeddedGateway(GatewaySettings(latency_s=0.3)) as gateway:
        with running(path, store, gateway) as first_run, running(path, store, gateway, ahead) as other:
            both = [figures(first_run), figures(other)]
        assert len(gateway.account_state.billed) == 60
        assert gateway.account_state.statistics()["billed_twice"] == 0
    for generated, reused, held, _ in both:
        assert (generated + reused, held) == (60, 0)
    assert sum(calls for *_, calls in both) == 60
    assert sum(generated for generated, *_ in both) == 60


def test_two_processes_with_overlapping_manifests(tmp_path: Path) -> None:
    """Rows that two manifests share are made by one of the runs, and reused by the other."""
    store = tmp_path / "store"
    first, second = manifest(tmp_path / "a.parquet", range(40)), manifest(tmp_path / "b.parquet", range(20, 60))
    with EmbeddedGateway(GatewaySettings(latency_s=0.3)) as gateway:
        with running(first, store, gateway) as first_run, running(second, store, gateway) as other:
            both = [figures(first_run), figures(other)]
        assert (len(gateway.account_state.billed), gateway.account_state.statistics()["billed_twice"]) == (60, 0)
    assert [generated + reused for generated, reused, *_ in both] == [40, 40]


def test_a_process_that_sleeps_and_wakes(tmp_path: Path) -> None:
    """A process that stands still in mid-run goes on when it wakes; who comes meanwhile waits for it, then reuses."""
    path, store = manifest(tmp_path / "a.parquet", range(30)), tmp_path / "store"
    with EmbeddedGateway(GatewaySettings(latency_s=0.3)) as gateway:
        with running(path, store, gateway) as sleeper:
            wait_for(gateway, 12)
            sleeper.send_signal(signal.SIGSTOP)
            result = asyncio.run(_while_asleep(sleeper, gateway, path, store))
            generated, reused, held, _ = figures(sleeper)
        assert (generated + reused, held) == (30, 0)
        assert result.generated + result.reused + result.held == 30
        last = make(gateway, path, store)
        assert (last.reused, last.calls) == (30, 0)
        assert (len(gateway.account_state.billed), gateway.account_state.statistics()["billed_twice"]) == (30, 0)


async def _while_asleep(sleeper: warm_python.Process, gateway: EmbeddedGateway, path: str, store: Path) -> RunResult:
    run = asyncio.create_task(asyncio.to_thread(make, gateway, path, store))
    await asyncio.sleep(5.0)
    sleeper.send_signal(signal.SIGCONT)
    return await run
