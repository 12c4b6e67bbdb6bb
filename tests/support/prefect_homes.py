"""Homes and servers of Prefect that start soon: the tables of the database are made once in a test run, and copied."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ports import free_port

_MAKE_TABLES = (
    "import asyncio\n"
    "from prefect.server.database import provide_database_interface\n"
    "asyncio.run(provide_database_interface().create_db())\n"
)
_SERVER = [sys.executable, "-m", "prefect", "server", "start"]
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def empty_database(temporary: pytest.TempPathFactory) -> Path:
    """A SQLite database with Prefect's tables, and nothing in them; it is for copying.

    All processes of a test run share it: making it takes as long as all that a server does besides when it starts.
    """
    base = temporary.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prefect-tables"
    folder.mkdir(exist_ok=True)
    database = folder / "prefect.db"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
            environment = kept | QUIET | {"PREFECT_HOME": str(folder)}
            subprocess.run([sys.executable, "-c", _MAKE_TABLES], env=environment, check=True, timeout=300)
            (folder / "made").touch()
    return database


def furnish(home: Path, database: Path) -> Path:
    """Put such a database into a home that is about to be used for the first time; the home."""
    home.mkdir(parents=True, exist_ok=True)
    for file in database.parent.glob("prefect.db*"):
        shutil.copy(file, home / file.name)
    return home


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """Within: a server on this home, and nobody else's; the URL of its API."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = kept | QUIET | {"PREFECT_HOME": str(home), "PREFECT_UI_ENABLED": "0"}
    with (home / "server.log").open("ab") as log:
        command = [*_SERVER, "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    api = f"http://127.0.0.1:{port}/api"
    try:
        _wait_until_healthy(api, process)
        yield api
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(api: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{api}/health") as answer:
                assert answer.status == 200
                return
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
