"""This machine's cache of references: their facts, their uploads and their signed URLs. Never part of a store.

A SQLite file below `PREFECT_IMAGEGEN_CACHE` (default: the user's cache folder), readable by the user only, because the
addresses of uploaded assets hold the e-mail address of the account. It may be deleted at any time.
"""

import asyncio
import atexit
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Self, TypeVar, TypeVarTuple, Unpack

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
_PATIENCE_S = 30.0
_LARGEST = 1 << 30
_FILE = "references.sqlite"
_logger = logging.getLogger(__name__)
CACHE_VARIABLE = "PREFECT_IMAGEGEN_CACHE"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (uri TEXT PRIMARY KEY, version TEXT NOT NULL, facts TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (account TEXT, sha256 TEXT, url TEXT NOT NULL, PRIMARY KEY (account, sha256))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS signed (uri TEXT, sha256 TEXT, url TEXT NOT NULL, PRIMARY KEY (uri, sha256))
    WITHOUT ROWID;
"""


@cache
def _folder(named: str | None) -> Path:
    """The cache folder, made if it is missing; a temporary one of this process if it cannot be written."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        folder = Path(named) if named else Path(home, "prefect-imagegen")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        return _own_folder()


@cache
def _own_folder() -> Path:
    """A temporary folder of this process, removed at its end."""
    own = tempfile.mkdtemp(prefix="imagegen-cache-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


class ReferenceCache:
    """Facts by URI and version, uploads by account and SHA-256, signed URLs by URI and SHA-256.

    For one event loop, which never blocks on the disk: one thread owns the connection. Other processes may use the same
    file. Use `async with`. Every call may raise RefusedError (`cache_unusable`).
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reference-cache")
        self._file = _CacheFile()

    async def __aenter__(self) -> Self:
        """Enter; the file is opened at the first call only, since most runs have no references."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the file."""
        await self._run(self._file.close)
        self._thread.shutdown(wait=False)

    async def known(self, uri: str) -> tuple[str | None, ReferenceFacts | None]:
        """The version and the facts of a reference, as last remembered; (None, None) if it is unknown."""
        row = await self._run(self._file.first, "SELECT version, facts FROM facts WHERE uri = ?", _name(uri))
        if row is None:
            return None, None
        try:
            content = json.loads(row[1])
            return row[0], ReferenceFacts(**content | {"changes": tuple(content["changes"])})
        except (ValueError, TypeError, KeyError):  # written by another version, or damaged
            return None, None

    async def keep_facts(self, entries: Sequence[tuple[str, str, ReferenceFacts]]) -> None:
        """Remember facts, as (URI, version, facts); they replace those of an older version."""
        rows = [(_name(uri), version, json.dumps(asdict(facts))) for uri, version, facts in entries]
        await self._run(self._file.put, "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)

    async def upload(self, account: str, sha256: str) -> str | None:
        """The URL under which an account has uploaded these bytes; None if it has not."""
        query = "SELECT url FROM uploads WHERE account = ? AND sha256 = ?"
        row = await self._run(self._file.first, query, _name(account), sha256)
        return row[0] if row else None

    async def keep_upload(self, account: str, sha256: str, url: str) -> None:
        """Remember an upload; it replaces an older one of the same bytes."""
        rows = [(_name(account), sha256, url)]
        await self._run(self._file.put, "INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", rows)

    async def signed(self, uri: str, sha256: str) -> str | None:
        """The signed URL by which a reference was last read; `uri` is without its query. None if unknown."""
        row = await self._run(self._file.first, "SELECT url FROM signed WHERE uri = ? AND sha256 = ?", uri, sha256)
        return row[0] if row else None

    async def keep_signed(self, urls: Mapping[tuple[str, str], str]) -> None:
        """Remember signed URLs, by (URI without query, SHA-256). They are kept here since no plan may hold them."""
        rows = [(*key, url) for key, url in urls.items()]
        await self._run(self._file.put, "INSERT OR REPLACE INTO signed VALUES (?, ?, ?)", rows)

    async def _run(self, call: Callable[[Unpack[Arguments]], T], *arguments: *Arguments) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


class _CacheFile:
    """The SQLite file, opened at first use. Blocking, and for one thread."""

    def __init__(self) -> None:
        self._opened: sqlite3.Connection | None = None

    def first(self, query: str, *values: str) -> tuple[str, ...] | None:
        """The first row of a query's result; None if there is none."""

        def look(base: sqlite3.Connection) -> tuple[str, ...] | None:
            with closing(base.execute(query, values)) as rows:
                row: tuple[str, ...] | None = rows.fetchone()
            return row

        return self._with_base(look)

    def put(self, query: str, rows: Sequence[tuple[str, ...]]) -> None:
        """Write rows, all or none of them."""

        def write(base: sqlite3.Connection) -> None:
            with base:
                base.execute("BEGIN IMMEDIATE")
                base.executemany(query, rows)

        if rows:
            self._with_base(write)

    def close(self) -> None:
        """Close the file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _with_base(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` with the connection; a damaged file is replaced, since the cache only saves time."""
        path = _folder(os.environ.get(CACHE_VARIABLE)) / _FILE
        try:
            try:
                return work(self._open(path))
            except (sqlite3.OperationalError, OSError) as error:
                if not _is_forbidden(error):
                    raise
                self.close()
                return work(self._open(_own_folder() / _FILE))
            except sqlite3.DatabaseError as error:
                self.close()
                _logger.warning("The cache of references at %s is damaged (%s), and is made anew.", path, error)
                _remove(path)
                return work(self._open(path))
        except (sqlite3.Error, OSError) as error:
            raise RefusedError(
                "cache_unusable",
                f"The cache of references at {path} cannot be used: {error}.",
                remedy=f"Delete it, or name another folder, on a disk of this machine, in {CACHE_VARIABLE}.",
            ) from error

    def _open(self, path: Path) -> sqlite3.Connection:
        if self._opened is None:
            if path.exists() and path.stat().st_size > _LARGEST:
                _logger.warning("The cache of references at %s has grown beyond 1 GiB, and is made anew.", path)
                _remove(path)
            path.touch(mode=0o600)
            base = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
            try:
                base.executescript(_SCHEMA)
            except sqlite3.Error:
                base.close()
                raise
            self._opened = base
        return self._opened


def _is_forbidden(error: Exception) -> bool:
    """Whether the error means that the file may not be written or read (permissions, read-only disk)."""
    return isinstance(error, PermissionError) or any(
        words in str(error) for words in ("readonly", "unable to open", "Read-only")
    )


def _remove(path: Path) -> None:
    """Remove the file and its journals."""
    for ending in ("", "-journal", "-wal", "-shm"):
        Path(f"{path}{ending}").unlink(missing_ok=True)


def _name(text: str) -> str:
    """The SHA-256 of a text, as a name that reveals nothing."""
    return hashlib.sha256(text.encode()).hexdigest()
