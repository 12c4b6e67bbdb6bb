"""The crash matrix: kill -9 at every step of a run, then the same command again, judged by the gateway's records."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prefect.settings import PREFECT_API_URL
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.verify import verify
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.blocks import ImageStore
from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import Event
from prefect_imagegen.core.ledger.fold import events_table
from prefect_imagegen.flows import generate_images
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.ledger.files import to_parquet
from prefect_imagegen.store.object_store import open_object_store
from tests.support import warm_python
from tests.support.manifests import numbered

ROWS = 6
CHILD = """
import json, sys
import prefect_imagegen
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.providers.settings import ProviderSettings
from pydantic import SecretStr

manifest, url, storage, base_url, version, lag = sys.argv[1:]
prefect_imagegen.generate(
    manifest, StoreSettings(url, json.loads(storage)), api_version=version, max_in_flight=3, history_lag=float(lag),
    backend=ProviderSettings(base_url=base_url, api_key=SecretStr("k")),
)
"""
FLOW = """
import sys
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.flows import generate_images

manifest, store, version = sys.argv[1:]
options = RunOptions(api_version=version, max_in_flight=3, history_lag=0.0)
generate_images(manifest, store, "segmind", options)
"""
POINTS = (
    *("plan", "claim:2", "answer", "request_id:2", "bytes:2", "put-images:2", "image:2"),
    *("segment", "compaction", "finish"),
)
"""`answer`: after the POST and before its answer, which the gateway holds back; the others are named in the product."""


class DeadlyWire:
    """Carries bytes to a server, and kills a process in the middle of the second image that it puts there."""

    def __init__(self, endpoint: str) -> None:
        self.victim = 0
        self._server = urlsplit(endpoint)
        self._images = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((self._server.hostname or "", self._server.port or 80))
                threading.Thread(target=self._up, args=(near, far), daemon=True).start()
                threading.Thread(target=self._down, args=(far, near), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        image = False
        with near, far, contextlib.suppress(OSError):
            while data := near.recv(1 << 16):
                head, end, body = data.partition(b"\r\n\r\n") if data.startswith(b"PUT /") else (b"", b"", data)
                if head:
                    image = b"/images/" in head.partition(b" HTTP")[0].removeprefix(b"PUT /images/")
                    self._images += image
                if image and body and self._images >= 2:
                    far.sendall(head + end + body[: len(body) // 2])
                    os.kill(self.victim, signal.SIGKILL)
                    return
                far.sendall(data)

    @staticmethod
    def _down(far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(1 << 16):
                near.sendall(data)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSettings:
    """A store, on disk and in an object store."""
    if request.param == "local":
        return StoreSettings(str(tmp_path / "store"))
    s3 = request.getfixturevalue("s3")
    return StoreSettings(s3.url(), s3.options)


def crash(
    point: str,
    gateway: EmbeddedGateway,
    arguments: list[str],
    program: str = CHILD,
    wire: DeadlyWire | None = None,
    **environment: str,
) -> None:
    """Run the child until it dies at the point; at `answer` until the gateway has billed a call it does not answer."""
    settings = os.environ | {"PYTHONWARNINGS": "ignore", "PREFECT_IMAGEGEN_CRASH_AT": point} | environment
    child = warm_python.start("-c", program, *arguments, env=settings)
    if wire is not None:
        wire.victim = child.pid
    try:
        if point == "answer":
            end = time.monotonic() + 60
            while not any(record.fault and record.status == "COMPLETED" for record in gateway.account_state.billed):
                assert time.monotonic() < end
                assert child.poll() is None
                time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


def again(gateway: EmbeddedGateway, path: str, place: StoreSettings, version: str, lag: float) -> RunResult:
    settings = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
    return prefect_imagegen.generate(path, place, backend=settings, api_version=version, history_lag=lag)


async def fill_segments(place: StoreSettings) -> None:
    """Enough segments that the run compacts them at its end: failures of a key that no row has."""
    store = open_object_store(place.url, place.storage_options)
    event = Event("failed", bytes(16), "0" * 32 + "-1", "old", datetime(2026, 1, 1, tzinfo=UTC), error_kind="unsent")
    data = to_parquet(events_table([event]))
    try:
        for start in range(0, 520, 20):
            await asyncio.gather(
                *(store.create(layout.segment(f"old-{n:04d}"), data) for n in range(start, start + 20))
            )
    finally:
        store.close()


def assert_whole(gateway: EmbeddedGateway, place: StoreSettings, result: RunResult) -> None:
    """Every image is in the store and in the ledger, whole and unchanged, and the run has its metadata."""
    backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))

    async def check() -> None:
        verified = await verify(place, backend, RunOptions())
        assert (verified.images, verified.problems) == (ROWS, [])
        store = open_object_store(place.url, place.storage_options)
        try:
            assert await store.list(layout.run(str(result.run_id), "metadata"))
        finally:
            store.close()

    asyncio.run(check())


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_step(point: str, version: str, place: StoreSettings, tmp_path: Path) -> None:
    """Wherever a run is killed, the same command delivers every row, and nothing is billed twice."""
    script = FaultScript(faults=[Fault(fault="hang", when="after", times=1)] if point == "answer" else [])
    path = numbered(tmp_path, ROWS)
    with EmbeddedGateway(GatewaySettings(faults=script, latency_s=0.02)) as gateway:
        if point == "compaction":
            asyncio.run(fill_segments(place))
        crash(point, gateway, [path, place.url, json.dumps(dict(place.storage_options)), gateway.url, version, "0"])
        before = len(gateway.account_state.billed)
        result = again(gateway, path, place, version, 0.0)
        assert gateway.account_state.statistics()["billed_twice"] == 0
        assert len(gateway.account_state.billed) == ROWS
        assert (result.generated + result.reused, result.maybe_paid) == (ROWS, 0)
        assert before < ROWS or result.calls == 0
        assert_whole(gateway, place, result)
        settled = again(gateway, path, place, version, 0.0)
        assert (settled.reused, settled.calls) == (ROWS, 0)


@pytest.mark.s3
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_killed_while_an_image_is_on_the_wire(version: str, s3: Any, tmp_path: Path) -> None:
    """Killed with half of an image sent to S3: there is no half image, and nothing is billed twice."""
    place, path, wire = (
        StoreSettings(s3.url(), s3.options),
        numbered(tmp_path, ROWS),
        DeadlyWire(s3.options["endpoint_url"]),
    )
    options = json.dumps(s3.options | {"endpoint_url": wire.url})
    with contextlib.closing(wire), EmbeddedGateway(GatewaySettings(latency_s=0.02)) as gateway:
        crash("none", gateway, [path, place.url, options, gateway.url, version, "0"], wire=wire)
        assert len(gateway.account_state.billed) >= 1
        result = again(gateway, path, place, version, 0.0)
        assert (result.generated + result.reused, result.maybe_paid) == (ROWS, 0)
        assert gateway.account_state.statistics()["billed_twice"] == 0
        assert len(gateway.account_state.billed) == ROWS
        assert_whole(gateway, place, result)


@pytest.mark.prefect
@pytest.mark.s3
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("point", "version"),
    [
        ("claim:2", "v2"),
        ("answer", "v1"),
        ("request_id:2", "v2"),
        ("put-images:2", "v1"),
        ("segment", "v2"),
        ("finish", "v1"),
    ],
)
@pytest.mark.usefixtures("prefect_server")
def test_flows_killed_on_one_server(
    point: str, version: str, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds for flow runs that are killed while a Prefect server keeps running, with a store in S3."""
    script = FaultScript(faults=[Fault(fault="hang", when="after", times=1)] if point == "answer" else [])
    path, name = numbered(tmp_path, ROWS), f"crash-{point.partition(':')[0].replace('_', '-')}-{version}"
    place = StoreSettings(s3.url(), s3.options)
    ImageStore(url=place.url, storage_options=dict(s3.options)).save(name)
    with EmbeddedGateway(GatewaySettings(faults=script, latency_s=0.02)) as gateway:
        account = {"SEGMIND_API_KEY": "k", "SEGMIND_BASE_URL": gateway.url}
        url = str(PREFECT_API_URL.value())
        crash(point, gateway, [path, f"image-store/{name}", version], FLOW, PREFECT_API_URL=url, **account)
        for variable, value in account.items():
            monkeypatch.setenv(variable, value)
        options = RunOptions(api_version=version, history_lag=0.0)
        result = RunResult(**generate_images(path, f"image-store/{name}", "segmind", options))
        assert (result.generated + result.reused, result.maybe_paid) == (ROWS, 0)
        assert gateway.account_state.statistics()["billed_twice"] == 0
        assert len(gateway.account_state.billed) == ROWS
        assert_whole(gateway, place, result)


@pytest.mark.parametrize(("point", "version"), [("answer", "v2"), ("claim:2", "v1")])
def test_killed_with_a_history_that_lags(point: str, version: str, tmp_path: Path) -> None:
    """With a history that shows calls late, and only when they are done, rows wait for it: found, or sent once more.

    No run stays open for what an earlier one left: the same command again settles it when the lag has passed.
    """
    script = FaultScript(faults=[Fault(fault="hang", when="after", times=1)] if point == "answer" else [])
    place, path, lag = StoreSettings(str(tmp_path / "store")), numbered(tmp_path, ROWS), 8.0
    settings = GatewaySettings(faults=script, latency_s=0.02, history_lag_s=lag - 1, history_pending=False)
    with EmbeddedGateway(settings) as gateway:
        crash(point, gateway, [path, place.url, "{}", gateway.url, version, str(lag)])
        end = time.monotonic() + 90
        result = again(gateway, path, place, version, lag)
        assert (result.failures, result.held) == ({"unknown": result.held}, ROWS - result.generated - result.reused)
        while result.held:
            assert time.monotonic() < end
            result = again(gateway, path, place, version, lag)
        assert gateway.account_state.statistics()["billed_twice"] == 0
        assert len(gateway.account_state.billed) == ROWS
        assert (result.generated + result.reused, result.maybe_paid) == (ROWS, 0)
        assert_whole(gateway, place, result)
