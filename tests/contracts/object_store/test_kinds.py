"""The kind of a store, in store.json: fixed once, and kept apart."""

import asyncio
import json

import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.ports import ObjectInfo
from prefect_imagegen.store.store_kind import claim_kind, read_kind

pytestmark = pytest.mark.anyio


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
