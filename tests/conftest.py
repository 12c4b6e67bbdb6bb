"""Fixtures that every room's tests share: a real S3 server, a real Prefect server, the gateway on a socket."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import prefect_homes, warm_python
from tests.support.images_engine import FakeImagesEngine, misfits

if TYPE_CHECKING:
    from tests.support.seaweedfs import S3Server

# Before anything imports Prefect: no telemetry, and time for the first start of its server.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "AWS_EC2_METADATA_DISABLED": "true",
}
for name in (
    "SEGMIND_API_KEY",
    "SEGMIND_BASE_URL",
    "SEGMIND_HISTORY_URL",
    "SEGMIND_ASSETS_URL",
    "PREFECT_IMAGEGEN_POOL_API_KEY",
):
    os.environ.pop(name, None)

# A slow machine is no failure, and a test run leaves nothing beside the code.
settings.register_profile("tests", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# No test cuts the power, and what kill -9 leaves unwritten the system still has: nobody need wait for a disk.
os.fsync = lambda _: None

DATA = Path(__file__).parent / "data"
_LONGEST = (
    *("deployments/test_docs.py", "adversary/test_adversary.py", "deployments/prefect_yaml/test_endings.py"),
    *("deployments/prefect_yaml/test_runs.py", "app/test_memory.py", "app/test_chaos.py"),
    *("app/running/test_crashes.py", "adversary/queue_api/test_queue_api.py"),
    *("adversary/queue_api/test_queue_sight.py", "flows/test_generate_images.py", "cli/test_planted_secrets.py"),
    *("docs/test_snippets.py", "cli/test_signals.py", "cli/test_runs.py", "cli/test_inputs.py"),
    *("app/planning/references/test_photographs.py", "cli/test_serve.py", "gateway/test_description.py"),
    *("lookalikes/test_contract.py", "app/maintenance/test_paid_images.py", "app/running/runs/test_rows.py"),
    *("app/running/runs/test_processes.py", "app/running/runs/test_stops.py", "app/running/test_later_crashes.py"),
    *("app/running/test_races.py", "app/maintenance/test_verify.py", "flows/test_endings.py"),
    *("flows/test_outages.py", "packaging/test_imports.py", "app/test_growth.py", "app/running/test_promises.py"),
    *("gateway/test_strangers.py", "gateway/test_keeping.py"),
)
"""The files of tests that take longest, the longest first: none of them should be left to the end of a run."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means here: more processes than cores, for much of the suite waits for servers and processes."""
    cores = os.cpu_count() or 1
    return cores + max(1, cores // 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; all others keep their order."""
    tests = Path(__file__).parent
    ranks = {tests / name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio, the loop that Prefect and the gateway use."""
    return "asyncio"


@pytest.fixture(scope="session")
def partiprompts() -> Path:
    """1,632 real prompts (column Prompt), as Parquet."""
    return DATA / "partiprompts.parquet"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests remember of references stays apart from what the user's runs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_IMAGEGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Server]":
    """A real S3 server (SeaweedFS), started once for each process that runs tests."""
    from tests.support import seaweedfs  # noqa: PLC0415 - only tests that use S3 pay for it

    with seaweedfs.serving(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def prefect_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with Prefect's tables and nothing in them, to be copied; see tests/support/prefect_homes.py."""
    return prefect_homes.empty_database(tmp_path_factory)


@pytest.fixture
def prefect_home(tmp_path: Path, prefect_tables: Path) -> Path:
    """The Prefect home of a user in `tmp_path`, whose ephemeral server finds its tables made."""
    return prefect_homes.furnish(tmp_path / "prefect-home", prefect_tables)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory, prefect_tables: Path) -> Iterator[None]:
    """One Prefect server with a database of its own for all tests of a process that need one."""
    from prefect.testing import utilities  # noqa: PLC0415 - pure tests never touch Prefect

    folder = tmp_path_factory.mktemp("prefect-server")
    prefect_homes.furnish(folder, prefect_tables)
    (folder / "prefect.db").rename(folder / "prefect-test.db")
    with pytest.MonkeyPatch.context() as patch:
        # The folder of its database, which it would make empty.
        patch.setattr(utilities, "mkdtemp", lambda: str(folder))
        harness = utilities.prefect_test_harness(server_startup_timeout=120)
        harness.__enter__()
    try:
        yield
    finally:
        harness.__exit__(None, None, None)


@pytest.fixture(name="misfits")
def misfits_fixture() -> Callable[..., Iterator[str]]:
    """What of a body a real engine would not know or refuse."""
    return misfits


_CPU_S = 20
"""Many times what a pass over some megabytes takes on a slow machine, a fraction of what going back and forth does."""


@pytest.fixture
def cpu_limited() -> Callable[[str], None]:
    """Run some code in a process of its own that the system ends if it needs more CPU than one pass over the data."""

    def run(code: str) -> None:
        limited = f"import resource\nresource.setrlimit(resource.RLIMIT_CPU, ({_CPU_S}, {_CPU_S}))\n{code}"
        ended = warm_python.run("-c", limited)
        assert ended.returncode == 0, ended.stderr or f"ended by signal {-ended.returncode}"

    return run


@pytest.fixture
def images_engine() -> Iterator[Callable[..., FakeImagesEngine]]:
    """Start a server of the Images dialect: `images_engine("sglang", seconds=0.1, faults=["500"])`."""
    running: list[FakeImagesEngine] = []

    def start(kind: str = "vllm_omni", **options: Any) -> FakeImagesEngine:
        running.append(FakeImagesEngine(kind, **options).start())
        return running[-1]

    yield start
    for engine in running:
        engine.stop()
