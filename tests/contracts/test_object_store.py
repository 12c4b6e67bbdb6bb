"""What every object store does: one suite over local files, memory and a real S3 server."""

import asyncio
import json
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import s3fs
from fsspec import AbstractFileSystem
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError, StoreError
from prefect_imagegen.ports import ObjectInfo
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store
from prefect_imagegen.store.store_kind import claim_kind, read_kind
from tests.support import warm_python

pytestmark = pytest.mark.anyio
KINDS = ["local", "memory", pytest.param("s3", marks=pytest.mark.s3)]
WRITERS = 12


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def root(kind, request, tmp_path) -> tuple[str, dict]:
    """Address and options of a fresh, empty root."""
    if kind == "local":
        return str(tmp_path / "new" / "store"), {}
    if kind == "memory":
        return f"memory://{secrets.token_hex(6)}/store", {}
    s3 = request.getfixturevalue("s3")
    return s3.url(), dict(s3.options)


@pytest.fixture
def opened() -> Iterator[list[FsspecObjectStore]]:
    """Stores that are closed at the end of a test."""
    stores: list[FsspecObjectStore] = []
    yield stores
    for store in stores:
        store.close()


@pytest.fixture
def store(root, opened) -> FsspecObjectStore:
    opened.append(open_object_store(*root))
    return opened[-1]


@pytest.fixture
def twin(root, opened) -> FsspecObjectStore:
    """A second store object over the same root, as another process has it."""
    opened.append(open_object_store(*root))
    return opened[-1]


async def test_create_writes_once(store) -> None:
    """A create-only put writes what is new, and leaves what exists as it is."""
    assert await store.create("images/aa/x.png", b"first", "image/png") is True
    assert await store.create("images/aa/x.png", b"second", "image/png") is False
    assert await store.get("images/aa/x.png") == b"first"


async def test_twelve_writers_have_one_winner_each(store, twin) -> None:
    """Of twelve writers at once on each of several keys, through two store objects, one wins, and its bytes stay."""
    keys = 3
    writers = [(n, key) for n in range(WRITERS) for key in range(keys)]
    results = await asyncio.gather(
        *((store, twin)[n % 2].create(f"ledger/claims/aa/{key}/1.json", f"writer {n}".encode()) for n, key in writers)
    )
    for key in range(keys):
        (winner,) = [n for (n, of), won in zip(writers, results, strict=True) if won and of == key]
        assert await store.get(f"ledger/claims/aa/{key}/1.json") == f"writer {winner}".encode()


async def test_put_replaces(store, twin) -> None:
    """A put replaces what is there, and every other reader sees it at once."""
    await store.put("runs/r/heartbeat.json", b"one")
    assert await twin.get("runs/r/heartbeat.json") == b"one"
    await store.put("runs/r/heartbeat.json", b"two, longer")
    assert await twin.get("runs/r/heartbeat.json") == b"two, longer"
    assert (await twin.head("runs/r/heartbeat.json")).size == 11


async def test_a_create_sees_what_was_put(store, twin) -> None:
    """What was put cannot be created."""
    await store.put("x/y", b"1")
    assert await twin.create("x/y", b"2") is False
    assert await store.get("x/y") == b"1"


async def test_delete_removes(store, twin) -> None:
    """A removed object is gone for every reader, and can be created again; removing it twice is no error."""
    await store.create("images/aa/x.png", b"first")
    await store.delete("images/aa/x.png")
    assert await twin.get("images/aa/x.png") is None
    assert list(await twin.list("images")) == []
    await store.delete("images/aa/x.png")
    assert await twin.create("images/aa/x.png", b"second") is True


async def test_absent_things_are_answers(store) -> None:
    """An object that is not there is None, a folder that is not there is empty; neither is an error."""
    for _ in range(2):
        assert await store.get("nothing/here.json") is None
        assert await store.head("nothing/here.json") is None
        assert list(await store.list("nothing")) == []
        await store.put("nothingness/x", b"1")


async def test_a_folder_is_no_object(store) -> None:
    """The folder of an object is no object itself."""
    await store.put("runs/r/run.json", b"{}")
    assert await store.head("runs/r") is None
    assert await store.get("runs/r") is None
    assert await store.get("runs/r/run.json/below") is None
    assert await store.head("runs/r/run.json/below") is None


async def test_list_is_sorted_and_relative(store) -> None:
    """A listing has all objects below a folder at any depth, sorted, with root-relative paths and sizes."""
    for path, size in (("a/2/x", 2), ("a/1", 1), ("a/10/y/z", 3), ("ab/1", 4), ("b", 5)):
        await store.put(path, bytes(size))
    assert [(info.path, info.size) for info in await store.list("a")] == [("a/1", 1), ("a/10/y/z", 3), ("a/2/x", 2)]
    assert [info.path for info in await store.list("a/10")] == ["a/10/y/z"]


async def test_a_listing_is_never_stale(store, twin) -> None:
    """A listing shows what another writer wrote a moment ago, also where it was listed before."""
    assert len(await twin.list("ledger/segments")) == 0
    for n in range(3):
        await store.create(f"ledger/segments/{n}.parquet", b"x")
        assert len(await twin.list("ledger/segments")) == n + 1


async def test_a_long_listing_is_whole(store) -> None:
    """A listing longer than one page of S3 (1,000) is whole."""
    await asyncio.gather(*(store.put(f"many/{n:05d}", b"") for n in range(1_050)))
    assert [info.path for info in await store.list("many")] == [f"many/{n:05d}" for n in range(1_050)]


async def test_head_tells_size_and_time(store) -> None:
    """Size and the store's own time of writing are told, in UTC."""
    await store.put("x", b"12345")
    info = await store.head("x")
    assert (info.path, info.size) == ("x", 5)
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=5)
    (listed,) = await store.list("")
    assert listed.modified is not None


@pytest.mark.parametrize("data", [b"", b"\0\xff" * 4_000_000], ids=["empty", "8 MB"])
async def test_bytes_come_back_as_they_were(store, data) -> None:
    """Nothing and 8 MB both come back byte for byte, created or put; 8 MB keep their create-only rule."""
    assert await store.create("big.bin", data) is True
    assert await store.create("big.bin", b"other") is False
    await store.put("put.bin", data)
    assert await store.get("big.bin") == data == await store.get("put.bin")


async def test_names_of_every_script(store) -> None:
    """Names with spaces and letters of any script are kept."""
    for path in ("runs/ü 1/x.json", "collections/Käse 🧀/a+b&c=d%20.png"):
        assert await store.create(path, path.encode()) is True
        assert await store.get(path) == path.encode()
        assert [info.path for info in await store.list(path.rsplit("/", 1)[0])] == [path]


async def test_many_calls_at_once(store) -> None:
    """More calls at once than there are threads all come back."""
    results = await asyncio.gather(*(store.create(f"p/{n}", b"x" * n) for n in range(100)))
    assert all(results)
    assert [len(data) for data in await asyncio.gather(*(store.get(f"p/{n}") for n in range(100)))] == list(range(100))


UNFIT = {
    "s3://bucket/a//b": "//",
    "s3://bucket//a": "//",
    "s3://bucket/a//": "//",
    "gs://bucket/a//b": "//",
    "abfs://container@account.dfs.core.windows.net//b": "//",
    "memory://a//b": "//",
    "memory:///a//b": "//",
    "hdfs:///a//b": "//",
    "s3://bucket/a/./b": "'.'",
    "s3://bucket/a/../b": "'..'",
    "s3://bucket/..": "'..'",
    "memory://./a": "'.'",
    "s3://bucket/a\\b": "backslash",
    "s3://bucket/a?versionId=1": "query",
    "s3://bucket/a?X-Amz-Signature=secret": "query",
    "gs://bucket/a?generation=7": "query",
    "s3:///a": "no bucket",
    "s3://": "no bucket",
    "s3a:// /a": "no bucket",
    "s3://bucket/a::b": "'::'",
    "simplecache::s3://bucket/a": "'::'",
    "/tmp/a::b": "'::'",
    "a::b": "'::'",
    "": "is empty",
    " ": "is empty",
}


@pytest.mark.parametrize("url", UNFIT)
def test_an_address_that_cannot_be_kept_to_is_refused(url) -> None:
    """Where a listing would not find what a put wrote, the address is refused before anything is written."""
    with pytest.raises(RefusedError) as raised:
        open_object_store(url, {"key": "k", "secret": "s"} if url.startswith("s3") else {})
    assert raised.value.kind == "store_url"
    assert UNFIT[url] in raised.value.message
    assert raised.value.remedy
    assert "secret" not in raised.value.message
    if UNFIT[url] == "//":
        assert "one slash" in raised.value.remedy
        assert "moved first" in raised.value.remedy


@pytest.mark.parametrize(
    "url",
    ["{}", "{}/", "{}/a b/ c", "{}/a#b", "{}/a%2Fb", "{}/*[1]", "{}/ä🧀", "{}/...", "{}/.a", "{}/a:b"],
)
async def test_addresses_that_are_fine(root, opened, url) -> None:
    """Blanks, signs and letters of any script are fine in an address, and so are a bucket alone and a slash behind."""
    opened.append(open_object_store(url.replace("{}", root[0]), root[1]))
    assert await written_and_found(opened[-1])


async def written_and_found(store) -> bool:
    """Whether what is created is listed under the same path, and read back."""
    path, data = "ledger/claims/aa/1.json", secrets.token_bytes(8)
    assert await store.create(path, data) is True
    assert await store.create(path, b"other") is False
    listings = [await store.list(prefix) for prefix in ("ledger", "ledger/claims/aa", "")]
    return (
        await store.get(path) == data
        and all(path in [info.path for info in listing] for listing in listings)
        and [info.path for info in listings[1]] == [path]
        and (await store.head(path)).path == path
    )


PREFIXES = st.text(st.sampled_from("ab/./\\ ?#%*[]{}:;~+&=@'\"$<>|ä🧀\u0301\u00a0\t\n\x01\x7f"), max_size=9)


@pytest.mark.parametrize("prefix_kind", KINDS)
def test_what_is_written_is_found_at_any_address(prefix_kind, request, tmp_path) -> None:
    """Whatever the address, what was created is listed under the same path and read back, or the address is refused."""
    s3 = request.getfixturevalue("s3") if prefix_kind == "s3" else None
    options = dict(s3.options) if s3 else {}
    refused: list[str] = []

    @given(PREFIXES)
    @settings(max_examples=60 if prefix_kind == "s3" else 200)
    @example("a//b")
    @example("/a")
    @example("a\\b")
    @example("a?versionId=1")
    @example("a::b")
    @example("../a")
    def check(prefix: str) -> None:
        fresh = secrets.token_hex(6)
        if s3:
            base = f"s3://{s3.bucket}/{fresh}"
        elif prefix_kind == "memory":
            base = f"memory://{fresh}"
        else:
            base = str(tmp_path.joinpath(*fresh))  # deep enough for any '..'
        url = f"{base}/{prefix}{fresh}"
        try:
            store = open_object_store(url, options)
        except RefusedError as error:
            assert error.kind == "store_url"  # noqa: PT017 - what is refused is refused for this
            refused.append(prefix)
            return
        try:
            assert asyncio.run(written_and_found(store))
        finally:
            store.close()

    check()
    assert "a::b" in refused
    assert ("a//b" in refused) is (prefix_kind != "local")


# What only one kind does


def test_a_local_path_may_begin_at_home(tmp_path, monkeypatch, opened) -> None:
    """A path that begins with ~ lies in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    opened.append(open_object_store("~/store"))
    asyncio.run(opened[0].put("x", b"1"))
    assert (tmp_path / "store" / "x").read_bytes() == b"1"


async def test_local_files_appear_whole(tmp_path, opened) -> None:
    """A local write leaves the named file alone in its folder, readable by others; half-written ones are not listed."""
    opened.append(open_object_store(f"file://{tmp_path}/store"))
    await opened[0].create("images/x.png", b"1")
    await opened[0].put("images/y.png", b"2")
    assert await opened[0].create("images/x.png", b"3") is False
    folder = tmp_path / "store" / "images"
    assert sorted(path.name for path in folder.iterdir()) == ["x.png", "y.png"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    (folder / ".tmp-left-by-a-crash").write_bytes(b"half")
    assert [info.path for info in await opened[0].list("images")] == ["images/x.png", "images/y.png"]


def test_local_writers_of_two_processes(tmp_path) -> None:
    """Two processes that create the same names share the wins between them, with none won twice and none lost."""
    code = (
        "import asyncio, sys\n"
        "from prefect_imagegen.store.object_store import open_object_store\n"
        "store = open_object_store(sys.argv[1])\n"
        "async def main():\n"
        "    print(*[n for n in range(60) if await store.create(f'k/{n}', b'x')])\n"
        "asyncio.run(main())\n"
    )
    processes = [warm_python.start("-c", code, tmp_path / "store", stdout=subprocess.PIPE) for _ in range(2)]
    won = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(map(int, won[0] + won[1])) == list(range(60))


@pytest.mark.s3
async def test_s3_objects_have_their_content_type(s3, opened) -> None:
    """An object in S3 carries the content type that it was written with, created or put."""
    url = s3.url()
    opened.append(open_object_store(url, s3.options))
    await opened[0].create("a.png", b"1", "image/png")
    await opened[0].put("run.json", b"{}", "application/json")
    await opened[0].put("x", b"1")
    fs = s3fs.S3FileSystem(**s3.options, skip_instance_cache=True)
    types = {name: fs.info(f"{url[5:]}/{name}")["ContentType"] for name in ("a.png", "run.json", "x")}
    assert types == {"a.png": "image/png", "run.json": "application/json", "x": "application/octet-stream"}


# Stores that cannot be used


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


@pytest.mark.parametrize(
    ("url", "options", "kind"),
    [
        ("nonsense://bucket/x", {}, "store_url"),
        ("gs://bucket/x", {}, "store_extra_missing"),
        ("az://container/x", {"account_name": "a", "account_key": "c2VjcmV0"}, "store_extra_missing"),
    ],
)
def test_an_address_that_cannot_be_opened(url, options, kind) -> None:
    """An unknown protocol or a missing package is refused before anything is tried, with what to install."""
    with pytest.raises(RefusedError) as raised:
        open_object_store(url, options)
    assert raised.value.kind == kind
    assert url in raised.value.message
    assert raised.value.remedy
    assert "c2VjcmV0" not in str(raised.value)


def test_credentials_in_an_address_are_not_shown(opened) -> None:
    """A user part in the store's address is not part of the name that is shown."""
    opened.append(open_object_store("memory://me:the-secret-part@host/x"))
    assert opened[0].url == "memory://host/x"


# store.json


async def test_a_new_store_gets_its_kind(store, twin) -> None:
    """A new store is told its kind once; the same kind is welcome again, in this and every other process."""
    assert await read_kind(store, "real") is None
    await claim_kind(store, "real")
    await claim_kind(twin, "real")
    assert await read_kind(twin, "real") == "real"
    assert json.loads(await store.get("store.json")) == {"format": layout.STORE_FORMAT, "kind": "real"}


async def test_reading_the_kind_writes_nothing(store) -> None:
    """Looking at the kind of a new store leaves it empty."""
    await read_kind(store, "sandbox")
    assert list(await store.list("")) == []


@pytest.mark.parametrize(("is_", "wanted"), [("sandbox", "real"), ("real", "sandbox")])
async def test_kinds_never_mix(store, is_, wanted) -> None:
    """A sandbox store is refused for a real run, and a real one for the sandbox."""
    await claim_kind(store, is_)
    for check in (read_kind, claim_kind):
        with pytest.raises(RefusedError) as raised:
            await check(store, wanted)
        assert raised.value.kind == "store_kind"
        assert f"{store.url} is a {is_} store" in raised.value.message
        assert "another --store" in raised.value.remedy
    assert await read_kind(store, is_) == is_


async def test_kinds_raced_for_have_one_winner(store, twin) -> None:
    """Of a real and a sandbox run that start at once on a new store, one is refused."""
    results = await asyncio.gather(claim_kind(store, "real"), claim_kind(twin, "sandbox"), return_exceptions=True)
    assert sorted(isinstance(result, RefusedError) for result in results) == [False, True]


async def test_a_newer_store_is_refused(store) -> None:
    """A store that a newer version wrote is refused, with the upgrade as the remedy, and stays as it is."""
    written = json.dumps({"format": layout.STORE_FORMAT + 1, "kind": "real", "more": []}).encode()
    await store.put("store.json", written)
    for check in (read_kind, claim_kind):
        with pytest.raises(RefusedError) as raised:
            await check(store, "real")
        assert raised.value.kind == "store_newer"
        assert store.url in raised.value.message
        assert "Upgrade" in raised.value.remedy
    assert await store.get("store.json") == written


@pytest.mark.parametrize(
    "data", [b"", b"x", b"[]", b"null", b"7", b"{}", b'{"format": "a", "kind": "real"}', b'{"format": null}', b"\xff"]
)
async def test_a_foreign_store_file_is_refused(store, data) -> None:
    """A store.json that is none of ours is refused rather than overwritten."""
    await store.put("store.json", data)
    with pytest.raises(RefusedError) as raised:
        await claim_kind(store, "real")
    assert raised.value.kind == "store_damaged"
    assert await store.get("store.json") == data


class OverwritingStore:
    """A store that takes a create-only put as any put, as some S3 look-alikes and client libraries do."""

    url = "s3://look-alike/prefix"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def get(self, path: str) -> bytes | None:
        return self.objects.get(path)

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        self.objects[path] = data
        return True

    async def put(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        self.objects[path] = data

    async def head(self, path: str) -> ObjectInfo | None:
        return ObjectInfo(path, len(self.objects[path])) if path in self.objects else None

    async def list(self, prefix: str) -> list[ObjectInfo]:
        return [ObjectInfo(path, len(data)) for path, data in self.objects.items() if path.startswith(f"{prefix}/")]


async def test_a_store_that_overwrites_is_refused() -> None:
    """A store that ignores create-only cannot protect paid images, so it is refused at every start."""
    store = OverwritingStore()
    for _ in range(2):
        with pytest.raises(RefusedError) as raised:
            await claim_kind(store, "real")
        assert raised.value.kind == "store_no_create_only"
        assert store.url in raised.value.message
        assert "conditional puts" in raised.value.remedy
