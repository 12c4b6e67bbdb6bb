"""An object store over any fsspec URL, with create-only puts that really never overwrite.

S3 and its kin: conditional puts, whose refusal comes in two spellings (FileExistsError, or OSError with the code
`PreconditionFailed` beneath). Local files: temporary file, fsync, hard link. Other file systems: the probe at
every start decides.
"""

import asyncio
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import fsspec
import fsspec.asyn
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError, StoreError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.failpoints import hit
from prefect_imagegen.ports import ObjectInfo
from prefect_imagegen.store.address import unfit
from prefect_imagegen.store.errors import is_precondition_failed, no_create_only, refusal_of, store_error
from prefect_imagegen.store.local_files import create_file, replace_file
from prefect_imagegen.store.s3_checksums import ChecksumFallback, is_s3

T = TypeVar("T")
THREADS = 32
_CONNECT_S = 2
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_CONFLICT_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses between tries of a create-only put that met another one at the same time; S3 then asks for a new try."""
_S3_PUT_LIMIT = 5 * 1024**3
"""A single PUT takes up to 5 GiB; multipart uploads are not atomic with a create-only condition."""
_memory_lock = threading.Lock()


def open_object_store(url: str, storage_options: Mapping[str, Any] | None = None) -> "FsspecObjectStore":
    """Open the store at `url` (a local path, `s3://bucket/prefix`, any fsspec URL). Nothing is read or written yet.

    Raises RefusedError for an unknown protocol, a missing extra, options the file system does not take, or an address
    whose objects would be written under other names than they are listed by.
    """
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    if (wrong := unfit(url)) is not None:
        raise RefusedError(
            "store_url", f"{redact(url).strip() or 'The address of the store'} {wrong[0]}.", remedy=wrong[1]
        )
    options = dict(storage_options or {})
    if protocol in ("s3", "s3a"):
        options = s3_options(options)
    try:
        fs, root = fsspec.core.url_to_fs(str(Path(url).expanduser()) if "://" not in url else url, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        raise RefusedError(
            "store_extra_missing",
            f"{redact(url)} needs a package that is not installed ({error.name or error}).",
            remedy=f"Run: pip install 'prefect-imagegen[{extra}]'" if extra else "Install the package it names.",
        ) from error
    except (ValueError, TypeError) as error:
        raise RefusedError(
            "store_url",
            f"{redact(url)} cannot be opened: {redact(str(error))}.",
            remedy="Use a local path, s3://bucket/prefix, gs://..., az://... and options that it knows.",
        ) from error
    return FsspecObjectStore(fs, root, redact(url))


class FsspecObjectStore:
    """A `ports.ObjectStore` over one fsspec file system; calls run in its own thread pool, from any event loop."""

    def __init__(self, fs: Any, root: str, url: str) -> None:
        self.url = url
        self._root = root.rstrip("/")
        self._fs = ChecksumFallback(fs, root, url)
        self._local = isinstance(fs, LocalFileSystem)
        self._memory = isinstance(fs, MemoryFileSystem)
        self._s3 = is_s3(fs)
        self._unproven = None if self._local or self._memory or self._s3 else _service_address(fs)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")

    async def get(self, path: str) -> bytes | None:
        """The bytes of an object; None if there is none."""
        return await self._run(path, lambda fs: _none_if_absent(lambda: bytes(fs.cat_file(self._full(path)))))

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        """Create-only put: True if written, False if the path exists (and stays as it is)."""
        return await self._run(path, lambda fs: self._create(fs, path, data, content_type), writing=True)

    async def put(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Write or replace an object, atomically."""
        await self._run(path, lambda fs: self._put(fs, path, data, content_type), writing=True)

    async def delete(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""
        await self._run(path, lambda fs: _none_if_absent(lambda: fs.rm_file(self._full(path))), writing=True)

    async def head(self, path: str) -> ObjectInfo | None:
        """Size and time of an object; None if there is none."""
        return await self._run(path, lambda fs: self._head(fs, path))

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        """All objects below a folder, sorted by path; empty if there are none."""
        return await self._run(prefix, lambda fs: self._find(fs, prefix))

    async def folders(self, prefix: str) -> Sequence[str]:
        """The names of the folders directly in a folder, sorted; empty if there are none. Lists nothing below them."""
        return await self._run(prefix, lambda fs: self._folders(fs, prefix))

    async def prune(self, prefix: str) -> None:
        """Remove a folder and the folders below it, as far as they are empty; only needed for local files."""
        if self._local:
            await self._run(prefix, lambda _: _prune(Path(self._full(prefix))), writing=True)

    def close(self) -> None:
        """Close the connections and shut down the threads."""
        for fs in self._fs.opened:
            close_connections(fs)
        self._threads.shutdown(wait=False)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    async def _run(self, path: str, call: Callable[[Any], T], *, writing: bool = False) -> T:
        def work() -> T:
            if self._unproven is not None:
                prove_reachable(self._unproven)
                self._unproven = None
            return self._fs.call(call, writing=writing)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except StoreError:
            raise
        except Exception as error:  # every file system has its own exceptions
            raise store_error(self.url, path, error, writing=writing) from error

    def _create(self, fs: Any, path: str, data: bytes, content_type: str) -> bool:
        full, crash_point = self._full(path), f"put-{path.partition('/')[0]}"
        if self._local:
            return create_file(Path(full), data, crash_point)
        if self._memory:
            with _memory_lock:
                if fs.exists(full):
                    return False
                fs.pipe_file(full, data)
                return True
        hit(crash_point)
        return self._create_remotely(fs, full, data, content_type)

    def _create_remotely(self, fs: Any, full: str, data: bytes, content_type: str) -> bool:
        for pause in (*_CONFLICT_PAUSES_S, None):
            try:
                fs.pipe_file(full, data, mode="create", **self._s3_arguments(content_type))
            except Exception as error:
                if is_precondition_failed(error):
                    return False
                refusal = refusal_of(error)
                if refusal.is_unfit and self._takes_plain_puts(fs):
                    raise no_create_only(self.url, refusal) from error
                if not refusal.is_conflict or pause is None:
                    raise
                if _none_if_absent(lambda: fs.info(full)) is not None:
                    return False
                time.sleep(pause)
            else:
                break
        return True

    def _takes_plain_puts(self, fs: Any) -> bool:
        """Whether the store takes a plain put, so that it was the create-only condition that it refused."""
        probe = self._full(layout.probe(secrets.token_hex(8)))
        try:
            fs.pipe_file(probe, b"1", **self._s3_arguments("text/plain"))
        except Exception:  # noqa: BLE001 - then the condition is not what was refused
            return False
        with suppress(Exception):
            fs.rm_file(probe)
        return True

    def _put(self, fs: Any, path: str, data: bytes, content_type: str) -> None:
        full = self._full(path)
        if self._local:
            replace_file(Path(full), data)
        else:
            fs.pipe_file(full, data, **self._s3_arguments(content_type))

    def _s3_arguments(self, content_type: str) -> dict[str, Any]:
        return {"ContentType": content_type, "chunksize": _S3_PUT_LIMIT} if self._s3 else {}

    def _head(self, fs: Any, path: str) -> ObjectInfo | None:
        info = _none_if_absent(lambda: fs.info(self._full(path)))
        if info is None or info.get("type") == "directory":
            return None
        return ObjectInfo(path, int(info["size"]), _modified(info), _content_type(info))

    def _find(self, fs: Any, prefix: str) -> Sequence[ObjectInfo]:
        listing = _none_if_absent(lambda: fs.find(self._full(prefix), detail=True)) or {}
        start = len(fs._strip_protocol(self._root).rstrip("/")) + 1  # noqa: SLF001 - fsspec's documented hook
        infos = (
            ObjectInfo(name.rstrip("/")[start:], int(info["size"] or 0), _modified(info))
            for name, info in listing.items()
            if info.get("type") != "directory" and "/.tmp-" not in name
        )
        return sorted(infos, key=lambda info: info.path)

    def _folders(self, fs: Any, prefix: str) -> Sequence[str]:
        listing = _none_if_absent(lambda: fs.ls(self._full(prefix), detail=True)) or []
        return sorted(info["name"].rstrip("/").rpartition("/")[2] for info in listing if info["type"] == "directory")


def s3_options(options: dict[str, Any]) -> dict[str, Any]:
    """The user's options for s3fs, with short connect times and no listing cache unless they say otherwise."""
    config = {
        "connect_timeout": _CONNECT_S,
        "read_timeout": 60,
        "retries": {"total_max_attempts": 2, "mode": "standard"},
        "max_pool_connections": THREADS,
    }
    for name in ("use_listings_cache", "skip_instance_cache"):
        options.setdefault(name, name == "skip_instance_cache")
    options["config_kwargs"] = config | dict(options.get("config_kwargs") or {})
    return options


def prove_reachable(address: str) -> None:
    """Connect to a service within 2 s, with one retry; OSError if it cannot be reached.

    The clients of GCS and Azure try for over a minute (measured: 73 s and 84 s) before they report it. Nothing is
    checked where a proxy stands in between.
    """
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return
    for last_try in (False, True):
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
        except OSError:
            if last_try:
                raise
        else:
            return


def _service_address(fs: Any) -> str | None:
    """The address that gcsfs (`base`) or adlfs (`service_client`) talks to; None for other file systems."""
    address = getattr(fs, "base", None) or getattr(getattr(fs, "service_client", None), "url", None)
    return address if isinstance(address, str) and address.startswith("http") else None


def close_connections(fs: Any) -> None:
    """Close the sessions of a file system that we opened.

    s3fs closes its session when it is collected, which may happen in a foreign loop and leaks the sockets then.
    """
    creator = getattr(fs, "_s3creator", None)
    if creator is not None:
        fsspec.asyn.sync(fs.loop, creator.__aexit__, None, None, None)


def _prune(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            Path(path).rmdir()


def _none_if_absent(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except FileNotFoundError as error:
        # A missing bucket is an error; a missing object is an answer.
        if refusal_of(error).code == "NoSuchBucket":
            raise
        return None
    except (NotADirectoryError, IsADirectoryError):
        return None


def _content_type(info: Mapping[str, Any]) -> str | None:
    """The content type as s3fs, gcsfs or adlfs report it; None if they report none."""
    content_type = (
        info.get("ContentType") or info.get("contentType") or (info.get("content_settings") or {}).get("content_type")
    )
    return str(content_type) if content_type else None


def _modified(info: Mapping[str, Any]) -> datetime | None:
    value = next(
        (info[name] for name in ("LastModified", "mtime", "updated", "last_modified", "created") if info.get(name)),
        None,
    )
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None
