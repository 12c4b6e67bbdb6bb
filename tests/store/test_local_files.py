"""Local files survive a power cut: the bytes, the name, and every folder on the way to it are synced in order."""

import asyncio
import ctypes
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import Claim
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.local_files import create_file, replace_file
from prefect_imagegen.store.object_store import open_object_store

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="a handle's path is told by /proc")
DATA = b"less than a buffer, as most claims are"


class Disk:
    """What was made durable, in order: files with their size at that moment, folders with the names in them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[str, Path]] = []
        self.sizes: list[int] = []
        self.durable: dict[Path, set[str]] = {}
        self._patch(patch, "fsync", self._synced)
        self._patch(patch, "link", lambda _, target, **__: self.steps.append(("name", Path(target))))
        self._patch(patch, "replace", lambda _, target, **__: self.steps.append(("name", Path(target))))
        self._patch(patch, "rename", lambda _, target, **__: self.steps.append(("name", Path(target))))

    def _patch(self, patch: pytest.MonkeyPatch, name: str, note: Callable[..., object]) -> None:
        real = getattr(os, name)

        def recorded(*arguments, **more):
            returned = real(*arguments, **more)
            note(*arguments, **more)
            return returned

        patch.setattr(os, name, recorded)

    def _synced(self, handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.is_dir():
            self.steps.append(("folder", path))
            self.durable[path] = {entry.name for entry in path.iterdir()}
        else:
            self.steps.append(("bytes", path))
            self.sizes.append(os.fstat(handle).st_size)

    def holds(self, path: Path, above: Path) -> bool:
        """Whether a path would be found after a power cut, as far as the folders below `above` are concerned."""
        below = [path, *path.parents]
        return all(level.name in self.durable.get(level.parent, set()) for level in below[: below.index(above)])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("write", [create_file, replace_file])
def test_bytes_come_before_the_name_and_the_name_before_the_answer(write, disk, tmp_path) -> None:
    """All bytes are synced before the file gets its name, and its folder afterwards."""
    target = tmp_path / "x.png"
    write(target, DATA)
    assert [kind for kind, _ in disk.steps] == ["bytes", "name", "folder"]
    (_, file), (_, name), (_, folder) = disk.steps
    assert (file.parent, name, folder) == (tmp_path, target, tmp_path)
    assert disk.sizes == [len(DATA)]
    assert disk.holds(target, tmp_path)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("write", [create_file, replace_file])
@pytest.mark.parametrize("there", [0, 1, 2, 3])
def test_new_folders_are_durable_too(write, there, disk, tmp_path) -> None:
    """However many of its folders are new, the file can be found after a power cut."""
    names = ("a", "b", "c")
    tmp_path.joinpath(*names[:there]).mkdir(parents=True, exist_ok=True)
    target = tmp_path.joinpath(*names, "x.png")
    above = tmp_path.joinpath(*names[:there])
    write(target, DATA)
    assert disk.holds(target, above)
    assert len([kind for kind, _ in disk.steps if kind == "folder"]) == 4 - there


def test_a_file_that_is_there_is_not_written(disk, tmp_path) -> None:
    """A create-only write of a name that exists writes and syncs nothing."""
    target = tmp_path / "x"
    target.write_bytes(b"first")
    assert create_file(target, DATA) is False
    assert disk.steps == []
    assert target.read_bytes() == b"first"


def test_claims_are_durable_before_anything_is_sent(disk, tmp_path) -> None:
    """A claim and its request_id, in folders that are new for each key, are found after a power cut."""
    store = open_object_store(str(tmp_path / "store"))
    ledger = StoreLedger(store, LedgerView.empty(), run_id="r", nonce="n", clock=SystemClock())

    async def work() -> None:
        for first in (1, 2):
            key = bytes([first] * 16)
            assert await ledger.claim(key, 1, Claim("r", "n", f"{key.hex()}-1", datetime.now(UTC), {}))
            assert disk.holds(tmp_path / "store" / layout.claim(key.hex(), 1), tmp_path)
            await ledger.record_request_id(key, 1, "id")
            assert disk.holds(tmp_path / "store" / layout.claim_id(key.hex(), 1), tmp_path)
        await store.put("runs/r/heartbeat.json", b"{}")
        assert disk.holds(tmp_path / "store" / "runs" / "r" / "heartbeat.json", tmp_path)

    asyncio.run(work())
    store.close()


# File systems that cannot do everything


def failing(patch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let a call of the operating system fail, as another file system does."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(os, name, fail)


NO_LINKS = pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])


@NO_LINKS
def test_without_hard_links_a_file_still_has_one_maker(number, tmp_path, monkeypatch) -> None:
    """Where there are no hard links, of many makers at once one wins, its bytes are whole, and nothing else is left."""
    failing(monkeypatch, "link", number)
    target = tmp_path / "new" / "x"
    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(lambda n: create_file(target, b"maker %d" % n), range(16)))
    assert won.count(True) == 1
    assert target.read_bytes() == b"maker %d" % won.index(True)
    assert [path.name for path in target.parent.iterdir()] == ["x"]
    assert create_file(target, b"later") is False


def test_without_links_a_name_that_appears_meanwhile_is_kept(tmp_path, monkeypatch) -> None:
    """A file that another machine makes between the look and the rename is never replaced."""
    failing(monkeypatch, "link", errno.EPERM)
    target = tmp_path / "x"
    target.write_bytes(b"another's")
    monkeypatch.setattr(Path, "exists", lambda path: path == tmp_path)
    assert create_file(target, b"ours") is False
    assert target.read_bytes() == b"another's"
    assert list(tmp_path.glob(".tmp-*")) == []


def test_a_file_system_that_can_neither_is_refused(tmp_path, monkeypatch) -> None:
    """With neither hard links nor exclusive renames the store is refused by that name, and nothing is written."""
    failing(monkeypatch, "link", errno.EPERM)

    class Old:
        """A C library from before exclusive renames."""

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Old())
    store = open_object_store(str(tmp_path))
    with pytest.raises(StoreError) as raised:
        asyncio.run(store.create("x", b"1"))
    assert raised.value.kind == "store_no_create_only"
    assert "hard links" in raised.value.message
    assert list(tmp_path.iterdir()) == []
    store.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", ["create", "put"])
def test_a_full_disk_is_said_and_made_no_fuller(write, number, tmp_path, monkeypatch) -> None:
    """A full disk, or quota, is said as such; what was there stays, and no half file is left."""
    store = open_object_store(str(tmp_path))
    (tmp_path / "x").write_bytes(b"before")
    failing(monkeypatch, "fsync", number)
    with pytest.raises(StoreError) as raised:
        asyncio.run(getattr(store, write)("x" if write == "put" else "y", b"1"))
    assert raised.value.kind == "store_full"
    assert "Make room" in raised.value.remedy
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"before")]
    store.close()


def test_a_name_that_is_too_long_is_said(tmp_path) -> None:
    """A name that the file system does not take is said as too long, not as out of reach."""
    store = open_object_store(str(tmp_path))
    for write in (store.create, store.put):
        with pytest.raises(StoreError) as raised:
            asyncio.run(write("x" * 300, b"1"))
        assert raised.value.kind == "store_name_too_long"
        assert "shorter" in raised.value.remedy
    store.close()


def test_folders_that_cannot_be_synced_are_no_failure(tmp_path, monkeypatch) -> None:
    """Network drives that refuse to sync a folder hold a store all the same; the bytes are synced."""
    real, synced = os.fsync, []

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        synced.append(real(handle))

    monkeypatch.setattr(os, "fsync", fsync)
    assert create_file(tmp_path / "new" / "x", DATA) is True
    replace_file(tmp_path / "new" / "x", DATA)
    assert len(synced) == 2
