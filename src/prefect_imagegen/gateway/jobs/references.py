"""The reference images of calls: fetched or read, bounded, and decoded in threads of their own."""

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
"""Seconds for fetching one reference: a caller waits."""
_MAX_THREADS = 4
"""At most so many images are decoded at a time: one may take hundreds of megabytes."""


class BadReferenceError(ValueError):
    """A reference cannot be used; the message is the API's error text."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference image that decodes: its bytes, their SHA-256, and its upright size in pixels."""

    data: bytes
    sha256: str
    size: tuple[int, int]


class References:
    """Loads the reference images of calls, for one event loop."""

    def __init__(self, account_state: AccountState) -> None:
        limits = account_state.settings.limits
        self._account_state = account_state
        self._limits = limits
        self._policy = FetchPolicy(
            allow_loopback=account_state.settings.allow_loopback,
            patience=_FETCH_PATIENCE_S,
            max_bytes=limits.reference_bytes,
        )
        # By account: a host that refuses one account's requests is still asked for the others.
        self._hosts: defaultdict[str, HostRecords] = defaultdict(HostRecords)
        self._threads = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="decode")
        # Limits the bytes in memory to those of so many calls, but never to less than two full batches.
        most = limits.pending_bytes // max(1, limits.references_bytes)
        self.turns = asyncio.Semaphore(max(1, most, 2 * account_state.settings.max_batch))

    async def of_call(self, urls: Sequence[tuple[str, str]], served_at: str, account: str) -> list[Reference]:
        """The images of a call, in order; `urls` are pairs of the place, for messages, and the URL.

        Raises BadReferenceError, BadDataUrlError or FetchError.
        """
        remaining = self._limits.references_bytes

        async def get(url: str) -> bytes:
            nonlocal remaining
            data = await self._data(url, served_at, fetcher)
            remaining -= len(data)
            if remaining < 0:
                raise BadReferenceError(
                    f"the images are too large together ({self._limits.describe('references_bytes')})"
                )
            return data

        async with ReferenceFetcher(self._policy, self._hosts[account]) as fetcher:
            bodies = await asyncio.gather(*(get(url) for _, url in urls))
        pairs = zip(urls, bodies, strict=True)
        return [await self.in_thread(self._decoded, data, place) for (place, _), data in pairs]

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Run CPU-bound work on images in a thread, a few at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def close(self) -> None:
        """Wait for the images being decoded; drop those that wait."""
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    async def _data(self, url: str, served_at: str, fetcher: ReferenceFetcher) -> bytes:
        """The bytes behind one URL; data URLs and our own uploads are not fetched."""
        if url.startswith("data:"):
            return (await self.in_thread(image_of_data_url, url, self._limits.reference_bytes))[0]
        if not url.startswith(f"{served_at}/assets/"):
            return await fetcher.fetch(url)
        path = asset_path(self._account_state, url.rpartition("/")[2])
        if path is None:
            raise FetchError("reference_unreachable", f"{redact(url)} could not be fetched: it is gone.")
        return await asyncio.to_thread(path.read_bytes)

    @staticmethod
    def _decoded(data: bytes, place: str) -> Reference:
        try:
            sha256 = decode(data).sha256
            return Reference(data, sha256, upright_size(data))
        except BadImageError as error:
            # Pillow's texts may repeat hostile bytes: only our own errors are shown.
            is_ours = isinstance(error.__cause__, TooManyPixelsError | BadImageError)
            cause = f": {error.__cause__}" if is_ours else ""
            raise BadReferenceError(f"{place} cannot be decoded{cause}") from None
