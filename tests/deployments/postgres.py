"""A PostgreSQL server of one's own, where the machine has the programs."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_port


def programs() -> Path | None:
    """The folder of initdb and pg_ctl: of the PATH, else where Debian puts them."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


@contextmanager
def serving() -> Iterator[str]:
    """Within: a new cluster in a temporary folder, on a free loopback port; the URL that Prefect wants."""
    place, port = programs(), free_port()
    assert place is not None
    with tempfile.TemporaryDirectory() as folder:
        own: dict[str, str] = {}
        if os.geteuid() == 0:  # it refuses to be run by root
            own = {"user": "postgres"}
            shutil.chown(folder, "postgres")

        def call(*words: str) -> None:
            command = [str(place / words[0]), *words[1:]]
            with Path(folder, "calls").open("w+") as said:  # a pipe would stay open in the server
                done = subprocess.run(command, cwd=folder, stdout=said, stderr=said, check=False, timeout=90, **own)
                said.seek(0)
                assert done.returncode == 0, said.read()

        call("initdb", "-D", f"{folder}/data", "-U", "prefect", "-A", "trust", "--no-sync", "-E", "UTF8")
        settings = f"-h 127.0.0.1 -p {port} -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", settings, "start")
        try:
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect")
            yield f"postgresql+asyncpg://prefect:none@127.0.0.1:{port}/prefect"
        finally:
            call("pg_ctl", "-D", f"{folder}/data", "-w", "-m", "immediate", "stop")
