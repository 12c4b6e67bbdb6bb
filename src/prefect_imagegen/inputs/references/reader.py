"""Read, hash and inspect reference images: http(s) through the guarded fetcher, buckets and disks through fsspec.

Reads are bounded in size and number, and private addresses are refused unless allowed.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from os import cpu_count
from typing import Any, Self, TypeVar
from urllib.parse import unquote

import fsspec

from prefect_imagegen.core.choices import DEFAULT_MEGAPIXELS
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.images.reference_pictures import JUDGEMENT, ReferenceFacts, inspect
from prefect_imagegen.core.redact import redact, traceback_of
from prefect_imagegen.core.request.references import BusyReason, family, is_signed, is_web, shown
from prefect_imagegen.inputs.references.cache import ReferenceCache
from prefect_imagegen.net.fetch import Fetched, ReferenceFetcher
from prefect_imagegen.net.guard import FetchError, FetchPolicy
from prefect_imagegen.net.hosts import HostRecords
from prefect_imagegen.store.object_store import close_connections, s3_options

T = TypeVar("T")
READERS = 16
"""The most references that are read at the same time."""
PRESIGNED_S = 6 * 3600
"""Seconds that a presigned URL is valid: it has to outlive the wait for a slot and the API's queue."""
_CHUNK = 1 << 20
_AT_ONCE = 1024
_logger = logging.getLogger(__name__)


class ReferenceReadError(Exception):
    """A reference cannot be read; the message says why. `is_busy`: its host is busy or out of reach for now."""

    def __init__(self, message: str, *, is_busy: bool = False) -> None:
        super().__init__(message)
        self.is_busy = is_busy


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How references are read: fsspec options by scheme, the policy for http(s), and the largest picture accepted."""

    storage_options: Mapping[str, Mapping[str, Any]]
    policy: FetchPolicy
    max_megapixels: float = DEFAULT_MEGAPIXELS


class ReferenceReader:
    """Reads references, for one event loop. Use `async with`. `hosts`: what earlier fetches learned about hosts."""

    def __init__(self, options: ReadingOptions, cache: ReferenceCache, hosts: HostRecords | None = None) -> None:
        self.cache = cache
        self.remembered = 0
        """How many references had a busy host, so that the facts of an earlier look were used."""
        self._options = options
        self._judgement = f"{JUDGEMENT}:{options.max_megapixels:g}"
        self._systems: dict[str, Any] = {}
        self._fetcher = ReferenceFetcher(options.policy, hosts)
        self._gate = asyncio.Semaphore(READERS)
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="reference")
        # A picture of 64 megapixels takes some 250 MB while it is decoded.
        self._decoders = asyncio.Semaphore(cpu_count() or 1)

    async def __aenter__(self) -> Self:
        """Open the connections."""
        await self._fetcher.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the connections."""
        await self._fetcher.__aexit__(*exc)
        self._threads.shutdown(wait=True)
        for system in self._systems.values():
            close_connections(system)

    async def examine(self, uris: Iterable[str], *, look: bool) -> dict[str, ReferenceFacts | str]:
        """The facts of each reference, by URI, or the reason why it cannot be read.

        `look`: decode the picture too, instead of only hashing its bytes. A reference whose version (ETag or time, and
        size) is in the cache is not read again.
        """
        wanted = sorted(set(uris))
        results: dict[str, ReferenceFacts | str] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            answers = await asyncio.gather(*(self._examine(uri, look) for uri in some))
            read = [(uri, *answer) for uri, answer in zip(some, answers, strict=True)]
            readable = [(uri, version, facts) for uri, version, facts in read if isinstance(facts, ReferenceFacts)]
            await self.cache.keep_facts(
                [(uri, version, facts) for uri, version, facts in readable if version is not None]
            )
            await self.cache.keep_signed(
                {(shown(uri), facts.sha256): uri for uri, _, facts in readable if is_signed(uri)}
            )
            results |= {uri: facts for uri, _, facts in read}
        return results

    async def read(self, uri: str, sha256: str | None) -> bytes:
        """The bytes of a reference. Raises ReferenceReadError, also if `sha256` is given and they differ from it."""
        if is_web(uri):
            source = (await self.cache.signed(uri, sha256) if sha256 else None) or uri
            async with self._fetched(source, None) as fetched:
                data = fetched.data or b""
        else:
            async with self._gate:
                data = await self._run(lambda: self._read_file(*self._open(uri)))
        if sha256 is not None and await self._run(lambda: hashlib.sha256(data).hexdigest()) != sha256:
            raise ReferenceReadError("it has changed since the run was planned; run the same command again")
        return data

    async def unchanged(self, uri: str, sha256: str) -> bool:
        """Whether a file still has these bytes; it is read again only if its version is new."""
        async with self._gate:
            _, facts = await self._examine_file(uri, look=False)
        if isinstance(facts, str):
            raise ReferenceReadError(facts)
        return facts.sha256 == sha256

    async def facts(self, data: bytes) -> ReferenceFacts:
        """The facts of some bytes (SHA-256 and size; the picture is not decoded)."""
        return await self._facts(data, look=False)

    async def decoding(self, function: Callable[[bytes], T], data: bytes) -> T:
        """Call a function on a picture's bytes in a thread, as many at a time as there are processors."""
        async with self._decoders:
            return await self._run(lambda: function(data))

    async def presign(self, uri: str) -> str | None:
        """A presigned URL of a file in a bucket, valid for six hours; None if its store cannot make one."""

        def sign() -> str | None:
            system, path = self._open(uri)
            try:
                url = system.sign(path, expiration=PRESIGNED_S)
            except Exception:  # noqa: BLE001 - each has its own for "this file system, or these credentials, cannot"
                return None
            return url if isinstance(url, str) and is_web(url) else None

        return await self._run(sign)

    async def _examine(self, uri: str, look: bool) -> tuple[str | None, ReferenceFacts | str]:
        """The facts of a reference, or why it cannot be read; and the version to cache them by, None if nothing new."""
        try:
            if is_web(uri):
                return await self._examine_web(uri, look)
            async with self._gate:
                return await self._examine_file(uri, look=look)
        except ReferenceReadError as error:
            return None, BusyReason(error) if error.is_busy else str(error)
        except RefusedError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the trouble of this reference
            _logger.warning("A reference met an unexpected error: %s\n%s", redact(uri), traceback_of(error))
            return None, f"it cannot be read: {redact(f'{type(error).__name__} {error}')}"

    async def _examine_web(self, uri: str, look: bool) -> tuple[str | None, ReferenceFacts | str]:
        version, known = await self._known(uri, look)
        judgement, _, mark = (version or "").partition(" ")
        try:
            async with self._fetched(uri, mark if known and judgement == self._judgement else None) as fetched:
                if fetched.data is None and known is not None:
                    return None, known
                facts = await self._facts(fetched.data or b"", look)
                return (f"{self._judgement} {fetched.version}" if fetched.version else None), facts
        except ReferenceReadError as error:
            if not error.is_busy or known is None:
                raise
            self.remembered += 1
            return None, known

    async def _examine_file(self, uri: str, *, look: bool) -> tuple[str | None, ReferenceFacts | str]:
        system, path = await self._run(lambda: self._open(uri))
        info = await self._run(lambda: _info(system, path))
        mark = next((info[name] for name in ("ETag", "etag", "LastModified", "mtime") if info.get(name)), None)
        version = f"{self._judgement} {mark} {info['size']}" if mark else None
        known_version, known = await self._known(uri, look)
        if known is not None and version is not None and known_version == version:
            return None, known
        data = await self._run(lambda: self._read_file(system, path))
        return version, await self._facts(data, look)

    async def _known(self, uri: str, look: bool) -> tuple[str | None, ReferenceFacts | None]:
        """The cached version and facts of a reference; with `look`, no facts unless the picture was decoded."""
        version, known = await self.cache.known(uri)
        if known is None or not look:
            return version, known and ReferenceFacts(known.sha256, known.size)
        return version, known if known.width is not None or known.problem is not None else None

    async def _facts(self, data: bytes, look: bool) -> ReferenceFacts:
        if not look:
            return await self._run(lambda: ReferenceFacts(hashlib.sha256(data).hexdigest(), len(data)))
        return await self.decoding(partial(inspect, max_megapixels=self._options.max_megapixels), data)

    @asynccontextmanager
    async def _fetched(self, url: str, version: str | None) -> AsyncIterator[Fetched]:
        try:
            async with self._fetcher.fetched(url, version) as fetched:
                yield fetched
        except FetchError as error:
            raise ReferenceReadError(str(error), is_busy=error.kind == "reference_busy") from error

    def _open(self, uri: str) -> tuple[Any, str]:
        """The file system of a URI, and the path in it. Raises ReferenceReadError."""
        scheme = family(uri)
        if scheme not in self._systems:
            options = dict(self._options.storage_options.get(scheme, {}))
            if scheme == "s3":
                options = s3_options(options)
                # By default the client signs URLs with version 2, which newer regions and KMS-encrypted objects refuse.
                options["config_kwargs"].setdefault("signature_version", "s3v4")
            try:
                self._systems[scheme] = fsspec.filesystem(scheme, **options)
            except ImportError as error:
                raise ReferenceReadError(
                    f"it needs a package that is not installed ({error.name}); install the extra prefect-imagegen[s3],"
                    " [gcs] or [azure]"
                ) from error
            except (ValueError, TypeError, OSError) as error:
                raise ReferenceReadError(f"its store cannot be opened: {redact(str(error))}") from error
        system = self._systems[scheme]
        path = system._strip_protocol(uri)  # noqa: SLF001 - fsspec's documented hook
        if scheme == "file" and "%" in path and not system.exists(path):
            path = unquote(path)
        return system, path

    def _read_file(self, system: Any, path: str) -> bytes:
        limit = self._options.policy.max_bytes
        size = _info(system, path)["size"]
        if size > limit:
            raise ReferenceReadError(f"it has {size} bytes, more than {limit}")
        chunks, length = [], 0
        try:
            with system.open(path, "rb", block_size=_CHUNK, cache_type="none") as source:
                while chunk := source.read(_CHUNK):
                    chunks.append(chunk)
                    length += len(chunk)
                    if length > limit:
                        raise ReferenceReadError(f"it has more than {limit} bytes")
        except OSError as error:
            raise _not_read(error) from error
        return b"".join(chunks)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _info(system: Any, path: str) -> Mapping[str, Any]:
    try:
        info: Mapping[str, Any] = system.info(path)
    except Exception as error:  # every file system has its own exceptions
        raise _not_read(error) from error
    if info.get("type") != "file":
        raise ReferenceReadError("it is no file")
    return info


def _not_read(error: Exception) -> ReferenceReadError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ReferenceReadError("it does not exist")
    text = redact(f"{type(error).__name__} {error}")
    if isinstance(error, PermissionError) or "NoCredentials" in text or "AccessDenied" in text:
        return ReferenceReadError("it may not be read; check the credentials (--reference-storage-option)")
    return ReferenceReadError(f"it cannot be read: {text}")
