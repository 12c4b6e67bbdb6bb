"""What this machine remembers of references from run to run: their facts, their uploads. Never in the store.

A SQLite file below `PREFECT_IMAGEGEN_CACHE` (default: the user's cache folder), for the user's eyes only: the
addresses of uploaded assets hold the e-mail address of the account. It may be deleted at any time.
"""

import atexit
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cache
from pathlib import Path

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.reference_pictures import ReferenceFacts

_PATIENCE_S = 30.0
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
    """The folder, made if need be; where the user's own cannot be written, one for this process."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    folder = Path(named) if named else Path(home, "prefect-imagegen")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        own = tempfile.mkdtemp(prefix="imagegen-cache-")
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        return Path(own)


class ReferenceCache:
    """Facts by URI and version, uploads by account and SHA-256, signed addresses by URI and SHA-256.

    May be used from several threads and processes at once. Close it with `close`. Every call may raise RefusedError
    (`cache_unusable`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None

    @property
    def _base(self) -> sqlite3.Connection:
        """Opened by the first who asks: most runs have no references."""
        if self._opened is None:
            path = _folder(os.environ.get(CACHE_VARIABLE)) / "references.sqlite"
            try:
                self._opened = _connected(path)
            except sqlite3.OperationalError as error:
                raise _unusable(error) from error
            except sqlite3.DatabaseError:  # it is no database any more, and may be deleted at any time
                path.unlink(missing_ok=True)
                self._opened = _connected(path)
        return self._opened

    def close(self) -> None:
        """Close the file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def version(self, uri: str) -> str | None:
        """The version of a reference that facts are known of."""
        return self._one("SELECT version FROM facts WHERE uri = ?", _name(uri))

    def facts(self, uri: str, version: str | None) -> ReferenceFacts | None:
        """What is known of this version of a reference; nothing of one without a version."""
        if version is None:
            return None
        text = self._one("SELECT facts FROM facts WHERE uri = ? AND version = ?", _name(uri), version)
        if text is None:
            return None
        found = json.loads(text)
        return ReferenceFacts(**found | {"changes": tuple(found["changes"])})

    def keep_facts(self, found: Iterable[tuple[str, str, ReferenceFacts]]) -> None:
        """Remember facts by URI and version; those of an older version go."""
        rows = [(_name(uri), version, json.dumps(asdict(facts))) for uri, version, facts in found]
        self._many("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows)

    def upload(self, account: str, sha256: str) -> str | None:
        """The address under which an account has uploaded these bytes."""
        return self._one("SELECT url FROM uploads WHERE account = ? AND sha256 = ?", _name(account), sha256)

    def keep_upload(self, account: str, sha256: str, url: str) -> None:
        """Remember an upload, in place of an older one of the same bytes."""
        self._many("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", [(_name(account), sha256, url)])

    def signed(self, uri: str, sha256: str) -> str | None:
        """The signed URL by which a reference was last read, by its URI without query."""
        return self._one("SELECT url FROM signed WHERE uri = ? AND sha256 = ?", uri, sha256)

    def keep_signed(self, found: Mapping[tuple[str, str], str]) -> None:
        """Remember signed URLs, which no plan may hold: the next signature takes the place of the last one."""
        self._many("INSERT OR REPLACE INTO signed VALUES (?, ?, ?)", [(*key, url) for key, url in found.items()])

    def _one(self, query: str, *values: str) -> str | None:
        try:
            with self._lock, closing(self._base.execute(query, values)) as rows:
                row = rows.fetchone()
        except sqlite3.Error as error:
            raise _unusable(error) from error
        return None if row is None else str(row[0])

    def _many(self, query: str, rows: Sequence[tuple[str, ...]]) -> None:
        if not rows:
            return
        try:
            with self._lock, self._base as base:
                base.execute("BEGIN IMMEDIATE")
                base.executemany(query, rows)
        except sqlite3.Error as error:
            raise _unusable(error) from error


def _connected(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    base = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
    try:
        base.executescript(_SCHEMA)
    except sqlite3.Error:
        base.close()
        raise
    return base


def _unusable(error: sqlite3.Error) -> RefusedError:
    return RefusedError(
        "cache_unusable",
        f"The cache of references cannot be used: {error}.",
        remedy=f"Delete it, or name another folder, on a disk of this machine, in {CACHE_VARIABLE}.",
    )


def _name(text: str) -> str:
    """A name that tells nothing of what it stands for."""
    return hashlib.sha256(text.encode()).hexdigest()
