"""What a machine remembers of references: by version, for its user alone, and never at the price of a run."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.reference_pictures import ReferenceFacts
from prefect_imagegen.io import reference_cache
from prefect_imagegen.io.reference_cache import ReferenceCache

URI = "https://example.com/a.png"
FACTS = ReferenceFacts("ab" * 32, 9, 100, 80, "jpeg", ("turned upright",))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_IMAGEGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_facts_belong_to_a_version(folder: Path) -> None:
    """Facts are those of one version; a newer one takes their place, and without a version nothing is known."""
    cache = ReferenceCache()
    cache.keep_facts([(URI, "v1", FACTS)])
    assert cache.facts(URI, "v1") == FACTS
    assert [cache.facts(URI, version) for version in ("v2", None)] == [None, None]
    cache.keep_facts([(URI, "v2", FACTS)])
    assert (cache.version(URI), cache.facts(URI, "v1")) == ("v2", None)
    cache.close()
    later = ReferenceCache()
    assert later.facts(URI, "v2") == FACTS
    later.close()
    assert URI.encode() not in (folder / "references.sqlite").read_bytes()


def test_uploads_and_signed_urls(folder: Path) -> None:
    """Uploads are those of one account; signed URLs are found by what they show."""
    cache = ReferenceCache()
    cache.keep_upload("me", "ab", "https://images.example.com/assets/me@example.com/1.png")
    cache.keep_signed({(URI, "ab"): f"{URI}?sig=1"})
    cache.keep_signed({(URI, "ab"): f"{URI}?sig=2"})
    assert [cache.upload(account, "ab") is None for account in ("me", "you")] == [False, True]
    assert (cache.signed(URI, "ab"), cache.signed(URI, "cd")) == (f"{URI}?sig=2", None)
    cache.close()
    assert (folder / "references.sqlite").stat().st_mode & 0o077 == 0


def test_many_writers(folder: Path) -> None:
    """Several caches of one folder, in several threads, lose nothing."""
    caches = [ReferenceCache() for _ in range(4)]
    with ThreadPoolExecutor(8) as threads:
        for number in range(200):
            threads.submit(caches[number % 4].keep_upload, "me", f"{number}", f"https://host/{number}")
    assert all(caches[0].upload("me", f"{number}") == f"https://host/{number}" for number in range(200))
    for cache in caches:
        cache.close()


def test_a_damaged_cache_is_made_anew(folder: Path) -> None:
    """What is no database any more is thrown away: it only saves time."""
    folder.mkdir()
    (folder / "references.sqlite").write_bytes(b"not a database at all" * 100)
    cache = ReferenceCache()
    assert cache.version(URI) is None
    cache.keep_facts([(URI, "v1", FACTS)])
    assert cache.facts(URI, "v1") == FACTS
    cache.close()


def test_a_cache_that_is_locked_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be written is told with its remedy, not as a traceback of a database."""
    monkeypatch.setattr(reference_cache, "_PATIENCE_S", 0.1)
    cache = ReferenceCache()
    assert cache.version(URI) is None
    other = sqlite3.connect(folder / "references.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RefusedError, match="PREFECT_IMAGEGEN_CACHE"):
        cache.keep_upload("me", "ab", "https://host/1")
    other.execute("ROLLBACK")
    other.close()
    cache.keep_upload("me", "ab", "https://host/1")
    cache.close()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder cannot be made, this process has one of its own."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_IMAGEGEN_CACHE", str(tmp_path / "file" / "cache"))
    first, second = ReferenceCache(), ReferenceCache()
    first.keep_upload("me", "ab", "https://host/1")
    assert second.upload("me", "ab") == "https://host/1"
    first.close()
    second.close()
