"""The pictures that a call names: had from where they lie, bounded, and decoded in threads of their own."""

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from prefect_imagegen.core.images.image import BadImageError, TooManyPixelsError, decode, upright_size
from prefect_imagegen.core.redact import redact
from prefect_imagegen.gateway.state.account import AccountState
from prefect_imagegen.gateway.state.uploads import asset_path, image_of_data_url
from prefect_imagegen.net.fetch import ReferenceFetcher
from prefect_imagegen.net.guard import FetchError, FetchPolicy
from prefect_imagegen.net.hosts import HostRecords

T = TypeVar("T")
_FETCH_PATIENCE_S = 30.0
"""For one reference: somebody waits for the answer."""
_MOST_THREADS = 4
"""A decoded picture may take hundreds of megabytes: so many are decoded at a time."""


class BadReferenceError(ValueError):
    """A reference cannot be used; the message is the API's error text."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture that decodes: its bytes, their SHA-256, and its size in pixels as it is seen."""

    data: bytes
    sha256: str
    size: tuple[int, int]


class References:
    """Gets the pictures of calls. Lives in one event loop."""

    def __init__(self, books: AccountState) -> None:
        limits = books.settings.limits
        self._books = books
        self._limits = limits
        self._policy = FetchPolicy(
            allow_loopback=books.settings.allow_loopback, patience=_FETCH_PATIENCE_S, max_bytes=limits.reference_bytes
        )
        # What one account makes a host refuse is no reason to let it be for the others.
        self._hosts: defaultdict[str, HostRecords] = defaultdict(HostRecords)
        self._threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="decode")
        # Bytes in memory at a time: those of so many calls. A batch has to come together all the same.
        most = limits.pending_bytes // max(1, limits.references_bytes)
        self.turns = asyncio.Semaphore(max(1, most, 2 * books.settings.max_batch))

    async def of_call(self, urls: Sequence[str], served_at: str, account: str) -> list[Reference]:
        """The pictures behind an account's URLs, in order. Raises BadReferenceError, BadDataUrlError or FetchError."""
        left = self._limits.references_bytes

        async def get(url: str) -> bytes:
            nonlocal left
            data = await self._data(url, served_at, fetcher)
            left -= len(data)
            if left < 0:
                raise BadReferenceError(f"the images are too large together ({self._limits.told('references_bytes')})")
            return data

        async with ReferenceFetcher(self._policy, self._hosts[account]) as fetcher:
            pictures = await asyncio.gather(*map(get, urls))
        return [await self.in_thread(self._decoded, data, position) for position, data in enumerate(pictures, 1)]

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Have CPU-bound work about pictures done beside the event loop, a few at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def close(self) -> None:
        """Wait for what is being decoded; forget the rest."""
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    async def _data(self, url: str, served_at: str, fetcher: ReferenceFetcher) -> bytes:
        """The bytes behind one URL; uploads, and data inside the call, need no fetching."""
        if url.startswith("data:"):
            return (await self.in_thread(image_of_data_url, url, self._limits.reference_bytes))[0]
        if not url.startswith(f"{served_at}/assets/"):
            return await fetcher.fetch(url)
        path = asset_path(self._books, url.rpartition("/")[2])
        if path is None:
            raise FetchError("reference_unreachable", f"{redact(url)} could not be fetched: it is gone.")
        return await asyncio.to_thread(path.read_bytes)

    @staticmethod
    def _decoded(data: bytes, position: int) -> Reference:
        try:
            sha256 = decode(data).sha256
            return Reference(data, sha256, upright_size(data))
        except BadImageError as error:
            # What Pillow says of hostile bytes is theirs as much as its own.
            is_ours = isinstance(error.__cause__, TooManyPixelsError | BadImageError)
            cause = f": {error.__cause__}" if is_ours else ""
            raise BadReferenceError(f"image {position} of image_urls cannot be decoded{cause}") from None
