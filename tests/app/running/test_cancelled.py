"""A caller that cancels `agenerate` gets its loop back as it was, and pays for nothing twice."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.manifests import numbered

pytestmark = pytest.mark.anyio
ROWS, IN_FLIGHT = 12, 3
OURS = ("store", "decode", "reference")


def our_threads(before: set[threading.Thread]) -> list[str]:
    """Threads of runs; those of the loop's own pool and of the gateway beside us stay."""
    new = (thread.name for thread in threading.enumerate() if thread not in before)
    return [name for name in new if name.startswith(OURS)]


def sockets_to(port: int) -> int:
    """Connections of this process to a port, by the kernel's table."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that")


async def cancelled(call: Awaitable[object], moment: Callable[[], Awaitable[None]]) -> None:
    """Cancel a call at some moment of it, and wait until it has ended."""
    task = asyncio.ensure_future(call)
    await moment()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def nothing_is_left(tasks: set[asyncio.Task], threads: set[threading.Thread]) -> None:
    assert {task for task in asyncio.all_tasks() if task not in tasks} == set()
    await until(lambda: not our_threads(threads))


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_calls_under_way(version: str, tmp_path: Path) -> None:
    """Cancelled with calls under way, no task, thread or connection is left; the next run settles what was sent."""
    path, store = numbered(tmp_path, ROWS), str(tmp_path / "store")
    with EmbeddedGateway(GatewaySettings(latency_s=1.0)) as gateway:
        backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"), max_in_flight=IN_FLIGHT)
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
        await cancelled(
            prefect_imagegen.agenerate(path, store, backend=backend, api_version=version),
            lambda: until(lambda: len(gateway.account_state.records) >= IN_FLIGHT),
        )
        await nothing_is_left(tasks, threads)
        assert sockets_to(int(gateway.url.rsplit(":", 1)[1])) == 0
        sent = len(gateway.account_state.records)
        assert sent < ROWS
        again = await prefect_imagegen.agenerate(path, store, backend=backend, api_version=version, history_lag=0.0)
        assert (again.generated + again.reused, again.maybe_paid) == (ROWS, 0)
        assert len(gateway.account_state.billed) == ROWS
        assert gateway.account_state.statistics()["billed_twice"] == 0


async def test_rows_that_wait_for_the_history(tmp_path: Path) -> None:
    """Cancelled while rows without an answer wait to be looked up, no task is left; the next run settles."""
    path, store = numbered(tmp_path, ROWS), str(tmp_path / "store")
    script = FaultScript(faults=[Fault(fault="disconnect", when="after", times=ROWS)])
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())

        def is_deferred() -> bool:
            return sum("_wait_out" in repr(task) for task in asyncio.all_tasks()) == ROWS

        await cancelled(
            prefect_imagegen.agenerate(path, store, backend=backend, history_lag=600.0), lambda: until(is_deferred)
        )
        await nothing_is_left(tasks, threads)
        again = await prefect_imagegen.agenerate(path, store, backend=backend, history_lag=0.0)
        assert (again.generated + again.reused, again.maybe_paid) == (ROWS, 0)
        assert gateway.account_state.statistics()["billed_twice"] == 0


@pytest.mark.parametrize("steps", [3, 60])
@pytest.mark.parametrize("kind", ["sandbox", "segmind"])
async def test_at_any_step(kind: str, steps: int, tmp_path: Path) -> None:
    """Cancelled after any number of steps, from planning to the report, nothing of it is left in the caller's loop."""
    path, store = numbered(tmp_path, ROWS), str(tmp_path / "store")
    with EmbeddedGateway(GatewaySettings()) as gateway:
        backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
        if kind == "sandbox":
            backend = ProviderSettings("sandbox")
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
        task = asyncio.ensure_future(prefect_imagegen.agenerate(path, store, backend=backend))
        for _ in range(steps):
            await asyncio.sleep(0.001 if steps > 20 else 0)
        task.cancel()
        await asyncio.wait((task,))
        await nothing_is_left(tasks, threads)
        again = await prefect_imagegen.agenerate(path, store, backend=backend, history_lag=0.0)
        assert again.generated + again.reused == ROWS
        await nothing_is_left(tasks, threads)
        assert gateway.account_state.statistics()["billed_twice"] == 0
