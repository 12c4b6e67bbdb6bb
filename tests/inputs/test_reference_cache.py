"""What a machine remembers of references: by version, for its user alone, and never at the price of a run."""

import asyncio
import logging
import sqlite3
import sys
from pathlib import Path

import pytest

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.inputs.references import cache as reference_cache
from prefect_imagegen.inputs.references.cache import ReferenceCache

pytestmark = pytest.mark.anyio
URI = "https://example.com/a.png"
FACTS = ReferenceFacts("ab" * 32, 9, 100, 80, "jpeg", ("turned upright",))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_IMAGEGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


async def test_facts_belong_to_a_version(folder: Path) -> None:
    """Facts are those of one version; those of a newer one take their place."""
    async with ReferenceCache() as cache:
        assert await cache.known(URI) == (None, None)
        await cache.keep_facts([(URI, "v1", FACTS)])
        assert await cache.known(URI) == ("v1", FACTS)
        await cache.keep_facts([(URI, "v2", FACTS)])
    async with ReferenceCache() as later:
        assert await later.known(URI) == ("v2", FACTS)
    assert URI.encode() not in (folder / "references.sqlite").read_bytes()


async def test_addresses_that_differ_in_their_query_are_two(folder: Path) -> None:
    """What is known of one address says nothing of one with another query."""
    async with ReferenceCache() as cache:
        await cache.keep_facts([(f"{URI}?v=1", "v1", FACTS)])
        assert await cache.known(f"{URI}?v=2") == (None, None)
        assert await cache.known(URI) == (None, None)


async def test_uploads_and_signed_urls(folder: Path) -> None:
    """Uploads are those of one account; signed URLs are found by what they show."""
    async with ReferenceCache() as cache:
        await cache.keep_upload("me", "ab", "https://images.example.com/assets/me@example.com/1.png")
        await cache.keep_signed({(URI, "ab"): f"{URI}?sig=1"})
        await cache.keep_signed({(URI, "ab"): f"{URI}?sig=2"})
        assert [await cache.upload(account, "ab") is None for account in ("me", "you")] == [False, True]
        assert [await cache.signed(URI, digest) for digest in ("ab", "cd")] == [f"{URI}?sig=2", None]
    assert (folder / "references.sqlite").stat().st_mode & 0o077 == 0


async def test_many_writers(folder: Path) -> None:
    """Several caches of one folder lose nothing."""
    caches = [ReferenceCache() for _ in range(4)]
    await asyncio.gather(*(caches[n % 4].keep_upload("me", f"{n}", f"https://host/{n}") for n in range(200)))
    assert [await caches[0].upload("me", f"{n}") for n in range(200)] == [f"https://host/{n}" for n in range(200)]
    for cache in caches:
        await cache.__aexit__()


_WRITER = """
import asyncio, sys
from prefect_imagegen.inputs.references.cache import ReferenceCache
async def write():
    async with ReferenceCache() as cache:
        for n in range(50):
            await cache.keep_upload("me", f"{sys.argv[1]} {n}", "https://host/")
asyncio.run(write())
"""


async def test_two_processes_share_it(folder: Path) -> None:
    """Two processes that begin together, and write together, lose nothing."""
    start = asyncio.create_subprocess_exec
    writers = [await start(sys.executable, "-c", _WRITER, name) for name in "ab"]
    assert [await writer.wait() for writer in writers] == [0, 0]
    async with ReferenceCache() as cache:
        assert all([await cache.upload("me", f"{name} {n}") for name in "ab" for n in range(50)])


async def test_a_damaged_cache_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is no database any more is thrown away, with a warning: it only saves time."""
    (folder / "references.sqlite").write_bytes(b"not a database at all" * 100)
    (folder / "references.sqlite-journal").write_bytes(b"of the old one")
    with caplog.at_level(logging.WARNING):
        async with ReferenceCache() as cache:
            assert await cache.known(URI) == (None, None)
            await cache.keep_facts([(URI, "v1", FACTS)])
            assert await cache.known(URI) == ("v1", FACTS)
    assert "is damaged" in caplog.text


async def test_damage_that_shows_late(folder: Path) -> None:
    """A file whose head is whole and whose pages are not is found out by a query, and made anew just the same."""
    async with ReferenceCache() as cache:
        await cache.keep_facts([(f"{URI}{n}", "v1", FACTS) for n in range(500)])
    path = folder / "references.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    async with ReferenceCache() as cache:
        assert await cache.known(f"{URI}7") == (None, None)
        await cache.keep_facts([(URI, "v1", FACTS)])
        assert await cache.known(URI) == ("v1", FACTS)


async def test_facts_of_another_version_of_the_program_are_unknown(folder: Path) -> None:
    """Facts that cannot be understood are as if they were not there."""
    async with ReferenceCache() as cache:
        await cache.keep_facts([(URI, "v1", FACTS)])
    for text in ("{}", "[", '{"changes": [], "sha256": "ab", "size": 1, "mood": "blue"}'):
        with sqlite3.connect(folder / "references.sqlite") as base:
            base.execute("UPDATE facts SET facts = ?", (text,))
        base.close()
        async with ReferenceCache() as cache:
            assert await cache.known(URI) == (None, None)


async def test_the_loop_goes_on_while_the_file_is_locked(folder: Path) -> None:
    """A file that another process has locked lets its caller wait, and nobody else: it is read in a thread."""
    async with ReferenceCache() as cache:
        await cache.known(URI)
        other = sqlite3.connect(folder / "references.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        waiting = asyncio.create_task(cache.keep_upload("me", "ab", "https://host/1"))
        # With the file read in the loop this line would never be reached before the writer has given up.
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        other.execute("ROLLBACK")
        other.close()
        await waiting
        assert await cache.upload("me", "ab") == "https://host/1"


async def test_a_cache_that_is_locked_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that stays locked is told with its remedy, not as a traceback of a database."""
    monkeypatch.setattr(reference_cache, "_PATIENCE_S", 0.1)
    async with ReferenceCache() as cache:
        await cache.known(URI)
        other = sqlite3.connect(folder / "references.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RefusedError, match="PREFECT_IMAGEGEN_CACHE"):
            await cache.keep_upload("me", "ab", "https://host/1")
        other.execute("ROLLBACK")
        other.close()
        await cache.keep_upload("me", "ab", "https://host/1")


async def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder cannot be made, this process has one of its own."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_IMAGEGEN_CACHE", str(tmp_path / "file" / "cache"))
    async with ReferenceCache() as first, ReferenceCache() as second:
        await first.keep_upload("me", "ab", "https://host/1")
        assert await second.upload("me", "ab") == "https://host/1"


async def test_a_file_that_may_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another user in a folder that can be written is no error either."""
    path = folder / "references.sqlite"
    connect = sqlite3.connect

    def read_only(place: Path, **options: object) -> sqlite3.Connection:
        return connect(f"file:{place}?mode=ro" if place == path else place, uri=place == path, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)  # root may write any file, so the file's mode proves nothing
    async with ReferenceCache() as cache:
        await cache.keep_upload("me", "file", "https://host/1")
        assert await cache.upload("me", "file") == "https://host/1"
    assert path.read_bytes() == b""


async def test_a_file_that_has_grown_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache does not grow for ever: a file beyond its limit is begun anew."""
    async with ReferenceCache() as cache:
        await cache.keep_upload("me", "large", "https://host/1")
    monkeypatch.setattr(reference_cache, "_LARGEST", 1000)
    async with ReferenceCache() as cache:
        assert await cache.upload("me", "large") is None
