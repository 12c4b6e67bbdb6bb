"""Stores that cannot be used: out of reach, forbidden, or not there."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem

from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store
from prefect_imagegen.store.store_kind import read_kind

pytestmark = pytest.mark.anyio


async def failure(call) -> StoreError:
    with pytest.raises(StoreError) as raised:
        await call
    error = raised.value
    assert "secret" not in str(error)
    assert error.message.endswith(".")
    assert error.remedy.endswith(".")
    assert "Traceback" not in str(error)
    return error


@pytest.mark.s3
async def test_a_missing_bucket_is_named(s3, opened) -> None:
    """A bucket that does not exist is said by name, with the remedy, at the first look at the store."""
    opened.append(open_object_store("s3://no-such-bucket/prefix", s3.options))
    for look in (opened[0].get, opened[0].head, opened[0].list, lambda _: read_kind(opened[0], "real")):
        error = await failure(look("store.json"))
        assert error.kind == "store_not_found"
        assert "s3://no-such-bucket/prefix" in error.message
        assert "Create it" in error.remedy


@pytest.mark.s3
@pytest.mark.parametrize("change", [{"secret": "wrong-secret"}, {"key": "nobody"}])
async def test_wrong_credentials_are_said(s3, opened, change) -> None:
    """Credentials that the store does not accept are said as such; the secret is not repeated."""
    url = s3.url()
    opened.append(open_object_store(url, {**s3.options, **change}))
    store = opened[0]
    for call, path in (
        (store.create, "x"),
        (store.put, "x"),
        (store.get, "x"),
        (store.head, "x"),
        (store.list, "runs"),
    ):
        error = await failure(call(path, b"1") if call in (store.create, store.put) else call(path))
        assert error.kind == "store_auth"
        assert url in error.message
        assert "credentials" in error.remedy or "--storage-option" in error.remedy


@pytest.mark.s3
async def test_a_read_only_identity_is_said(s3, opened) -> None:
    """Credentials that may read but not write are refused at the first write, with what is to be granted."""
    url = s3.url()
    opened.append(open_object_store(url, s3.options))
    await opened[0].put("x", b"1")
    opened.append(open_object_store(url, s3.read_only_options))
    assert await opened[1].get("x") == b"1"
    assert [info.path for info in await opened[1].list("")] == ["x"]
    for write in (opened[1].create, opened[1].put):
        error = await failure(write("y", b"1"))
        assert error.kind == "store_read_only"
        assert url in error.message
        assert "rights" in error.remedy


@pytest.mark.s3
@pytest.mark.timeout(40)
async def test_an_unreachable_store_is_said_soon(opened) -> None:
    """A store that nobody serves is said after a short connect time and one retry, not after minutes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
        options = {"key": "k", "secret": "the-secret-part", "endpoint_url": endpoint}
        opened.append(open_object_store("s3://bucket/prefix", options))
        for call, arguments in ((opened[0].get, ("x",)), (opened[0].create, ("x", b"1"))):
            error = await failure(call(*arguments))
            assert error.kind == "store_unreachable"
            assert "s3://bucket/prefix" in error.message
            assert "endpoint_url" in error.remedy


class RemoteFileSystem(AbstractFileSystem):
    """An empty file system that says which service it talks to, as those of GCS and Azure do."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base

    def cat_file(self, path: str, **_: object) -> bytes:
        raise FileNotFoundError(path)


async def test_a_service_out_of_reach_is_said_soon(opened, monkeypatch) -> None:
    """Clients that would try for minutes are not even asked: a service out of reach is said after one retry."""
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/storage"
        opened.append(FsspecObjectStore(RemoteFileSystem(address), "/bucket", "gs://bucket"))
        assert await opened[-1].get("x") is None
    opened.append(FsspecObjectStore(RemoteFileSystem(address), "/bucket", "gs://bucket"))
    error = await failure(opened[-1].get("x"))
    assert (error.kind, "gs://bucket" in error.message) == ("store_unreachable", True)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that this process may read but not write, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "there").write_bytes(b"1")
        (folder / "closed").mkdir(mode=0o700)
        (folder / "closed" / "x").write_bytes(b"1")
        root = os.geteuid() == 0
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        else:
            (folder / "closed").chmod(0o000)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            (folder / "closed").chmod(0o700)
            folder.chmod(0o755)


async def test_a_folder_without_permission_is_said(nobody, opened) -> None:
    """A folder that may not be written is said at the first write; one that may not be read, at the first read."""
    opened.append(open_object_store(str(nobody)))
    assert await opened[0].get("there") == b"1"
    for write, path in ((opened[0].create, "x"), (opened[0].put, "there"), (opened[0].create, "new/x")):
        error = await failure(write(path, b"1"))
        assert error.kind == "store_read_only"
        assert str(nobody) in error.message
    assert (await failure(opened[0].get("closed/x"))).kind == "store_auth"


async def test_a_store_inside_a_file_is_said(tmp_path, opened) -> None:
    """A root that is a file, or lies in one, is an error that names it."""
    (tmp_path / "file").write_bytes(b"1")
    for name in ("file", "file/below"):
        opened.append(open_object_store(str(tmp_path / name)))
        error = await failure(opened[-1].create("store.json", b"{}"))
        assert str(tmp_path / "file") in error.message
