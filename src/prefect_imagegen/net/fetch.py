"""Guarded fetching of reference images: what a stranger's URL may make this machine do is decided here.

Refused are private, loopback, link-local and other non-public addresses (by name, by DNS, as IPv6, in numeric
spellings), other schemes, credentials in URLs, redirects to other hosts, too many redirects, and bodies too large or
not an image.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from prefect_imagegen.core.answers import looks_like_image
from prefect_imagegen.core.errors import ImagegenError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.net.client import TRANSPORT_ERRORS

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched. Sizes in bytes, times in seconds."""

    allow_loopback: bool = False
    allow_private: bool = False
    """Private networks and loopback too; link-local addresses (where clouds keep credentials) never."""
    max_bytes: int = 32 * 1024 * 1024
    max_redirects: int = 3
    timeout: float = 30.0


class FetchError(ImagegenError):
    """A reference could not or must not be fetched; the message names the URL without its query, and the remedy."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer: its bytes, None where nothing has changed since `version` (an ETag or a date, None without one)."""

    data: bytes | None
    version: str | None


Reach = Literal["public", "loopback", "private"]


def reach_of(address: str) -> Reach:
    """From where an IP address can be reached: by everybody, from this machine, or from some network at best."""
    found = _inner_address(address)
    if found.is_loopback:
        return "loopback"
    special = found.is_multicast or found.is_reserved or found.is_unspecified
    return "public" if found.is_global and not special else "private"


def check_address(address: str, policy: FetchPolicy) -> None:
    """Raise FetchError unless the IP address is public (or loopback or private, where the policy allows that)."""
    reach = reach_of(address)
    if reach == "public" or (reach == "loopback" and (policy.allow_loopback or policy.allow_private)):
        return
    found = _inner_address(address)
    if policy.allow_private and found.is_private and not (found.is_link_local or found.is_unspecified):
        return
    raise FetchError(
        "reference_forbidden",
        f"{address} is not a public address.",
        remedy="References must lie at a public http(s) address.",
    )


def _inner_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address, or the IPv4 address that an IPv6 one stands for."""
    found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return found


class _GuardedResolver(AbstractResolver):
    """Checks every address that a name resolves to; the connection goes to just these addresses."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for result in found:
            check_address(result["host"], self._policy)
        return found

    async def close(self) -> None:
        await self._inner.close()


class ReferenceFetcher:
    """Fetches references under one policy, over one session. Use `async with`."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session."""
        connector = aiohttp.TCPConnector(resolver=_GuardedResolver(self._policy), use_dns_cache=False, limit=16)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=self._policy.timeout), trust_env=False
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str) -> bytes:
        """The bytes of the image behind a URL. Raises FetchError."""
        return (await self.fetch_since(url, None)).data or b""

    async def fetch_since(self, url: str, version: str | None) -> Fetched:
        """The image behind a URL, unless it is still the one of `version`. Raises FetchError."""
        shown = redact(url)
        headers = {}
        if version:
            headers["If-None-Match" if version.startswith(('"', "W/")) else "If-Modified-Since"] = version
        try:
            for _ in range(self._policy.max_redirects + 1):
                host = self._check_url(url, shown)
                async with self._get(url, headers) as answer:
                    if answer.status == 304 and version:
                        return Fetched(None, version)
                    if answer.status not in _REDIRECTS:
                        found = answer.headers.get("etag") or answer.headers.get("last-modified")
                        return Fetched(await self._read(answer, shown), found)
                    url = urljoin(url, answer.headers.get("location", ""))
                    if urlsplit(url).hostname != host:
                        raise FetchError(
                            "reference_forbidden",
                            f"{shown} redirects to another host.",
                            remedy=f"Use its final URL: {redact(url)}",
                        )
        except FetchError:
            raise
        except TRANSPORT_ERRORS as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, FetchError):
                    raise FetchError(cause.kind, f"{shown}: {cause.message}", remedy=cause.remedy) from error
                cause = cause.__cause__ or cause.__context__
            raise FetchError(
                "reference_unreachable",
                f"{shown} could not be fetched: {redact(f'{type(error).__name__} {error}')}",
                remedy="Check the URL.",
            ) from error
        raise FetchError("reference_unreachable", f"{shown} redirects too often.", remedy="Use its final URL.")

    @asynccontextmanager
    async def _get(self, url: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("use ReferenceFetcher with `async with`")
        async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
            yield answer

    def _check_url(self, url: str, shown: str) -> str:
        """The URL's host, if it may be asked."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FetchError("reference_forbidden", f"{shown} is no http(s) URL.", remedy="Use a public http(s) URL.")
        if parts.username is not None:
            raise FetchError("reference_forbidden", f"{shown} has a user part.", remedy="Use a URL without one.")
        address = _literal(parts.hostname)
        if address:
            check_address(address, self._policy)
        return parts.hostname

    async def _read(self, answer: aiohttp.ClientResponse, shown: str) -> bytes:
        if answer.status != 200:
            raise FetchError(
                "reference_unreachable", f"{shown} answered with status {answer.status}.", remedy="Check the URL."
            )
        chunks: list[bytes] = []
        size = 0
        async for chunk in answer.content.iter_chunked(1 << 16):
            size += len(chunk)
            if size > self._policy.max_bytes:
                raise FetchError(
                    "reference_too_large",
                    f"{shown} has more than {self._policy.max_bytes} bytes.",
                    remedy="Use a smaller image.",
                )
            chunks.append(chunk)
        data = b"".join(chunks)
        if not looks_like_image(data):
            raise FetchError("reference_not_image", f"{shown} is no image.", remedy="Check the URL.")
        return data


async def reach_of_host(host: str) -> Reach:
    """The narrowest reach of the addresses that a host name (or a numeric spelling) stands for; OSError if none."""
    literal = _literal(host)
    if literal is None:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        reaches = {reach_of(str(address[0])) for *_, address in found}
    else:
        reaches = {reach_of(literal)}
    return next(reach for reach in ("private", "loopback", "public") if reach in reaches)


def _literal(host: str) -> str | None:
    """The address that a numeric spelling of a host means (decimal, octal and hex ones too); None for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if host[:1].isdigit() else None
    except OSError:
        return None
