"""What every object store does: one suite over local files, memory and a real S3 server."""

import asyncio
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
import s3fs

from prefect_imagegen.store.object_store import open_object_store
from tests.support import warm_python

pytestmark = pytest.mark.anyio
WRITERS = 12


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


async def test_folders_are_named_without_what_is_in_them(store):
    """The folders directly in a folder are named, sorted; neither its objects nor folders below those; absent: none."""
    for path in ("runs/b/x/1", "runs/a/2", "runs/c", "runs/b/3", "other/d/4"):
        await store.put(path, b"1")
    assert await store.folders("runs") == ["a", "b"]
    assert await store.folders("none") == []


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
