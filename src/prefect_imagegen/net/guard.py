"""Which addresses a reference URL may make this machine connect to (protection against SSRF).

Refused are private, loopback, link-local and other non-public addresses (by name, by DNS, as IPv6, in numeric
spellings), other schemes than http(s), and credentials in URLs.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from prefect_imagegen.core.errors import ImagegenError

Reach = Literal["public", "private", "loopback"]
REACHES: tuple[Reach, ...] = ("public", "private", "loopback")
"""All reaches, from the outermost to the innermost."""
_INSIDE_OF_CLOUDS = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("168.63.129.16/32", "192.0.0.0/24", "fd00:ec2::/32"),  # Azure, Oracle, AWS
        *("fd20:ce::/32", "fd00:c1::/32", "fd00:42::/32"),  # Google, Oracle, Scaleway
        *("fec0::/10", "64:ff9b:1::/48"),  # site-local; a network's own NAT64, which can mean any IPv4 address
    )
)
"""Addresses where clouds serve credentials, beside link-local ones, and that the standard library takes for public."""
_OFF_WIRE = re.compile(r"[^\x21-\x7e]+")
"""Characters that a request line cannot hold: controls, blanks, and all beyond ASCII."""


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched, and for how long it is tried. Sizes in bytes, times in seconds."""

    allow_loopback: bool = False
    allow_private: bool = False
    """Allow private networks and loopback; link-local addresses (where clouds serve credentials) are never allowed."""
    max_bytes: int = 32 * 1024 * 1024
    max_redirects: int = 5
    timeout: float = 30.0
    """Seconds for one request, body included."""
    patience: float = 120.0
    """Seconds for one reference: all tries and the pauses between them, but not the wait for a turn at its host."""
    at_once: int = 4
    """Requests to one host at the same time."""


class FetchError(ImagegenError):
    """A reference could not or must not be fetched; the message names the URL without its query, and the remedy.

    Kind `reference_busy`: its host is busy or out of reach for now, so the reference itself may be fine.
    """


def reach_of(address: str) -> Reach:
    """From where an IP address can be reached: everywhere (public), one network (private), this machine (loopback)."""
    ip = _inner_address(address)
    if ip.is_loopback:
        return "loopback"
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or _is_inside_of_clouds(ip)
    return "public" if ip.is_global and not special else "private"


def check_address(address: str, policy: FetchPolicy, deepest: Reach = "loopback") -> None:
    """Raise FetchError unless the IP address is public (or loopback or private, where the policy allows that).

    `deepest` is the innermost reach allowed, whatever the policy says: a public host may redirect to public ones only.
    """
    reach = reach_of(address)
    is_allowed = REACHES.index(reach) <= REACHES.index(deepest)
    if reach == "public" or (reach == "loopback" and is_allowed and (policy.allow_loopback or policy.allow_private)):
        return
    ip = _inner_address(address)
    is_barred = ip.is_link_local or ip.is_unspecified or _is_inside_of_clouds(ip)
    if is_allowed and policy.allow_private and ip.is_private and not is_barred:
        return
    raise FetchError(
        "reference_forbidden",
        f"{address} is not a public address.",
        remedy="References must lie at a public http(s) address.",
    )


def _inner_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address itself, or the IPv4 address that an IPv6 address embeds (mapped, 6to4, Teredo, NAT64)."""
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    return ip


def _is_inside_of_clouds(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address in network for network in _INSIDE_OF_CLOUDS)


class GuardedResolver(AbstractResolver):
    """A resolver that checks every address a name resolves to; connections go to just these addresses.

    `reaches` collects the innermost reach of each name.
    """

    def __init__(self, policy: FetchPolicy, deepest: Reach, reaches: MutableMapping[str, Reach]) -> None:
        self._policy = policy
        self._deepest = deepest
        self._reaches = reaches
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises FetchError if one of them is not allowed."""
        results = await self._inner.resolve(host, port, family)
        for result in results:
            check_address(result["host"], self._policy, self._deepest)
        self._reaches[host] = min((reach_of(result["host"]) for result in results), key=REACHES.index)
        return results

    async def close(self) -> None:
        """Close the wrapped resolver."""
        await self._inner.close()


def asked_url(url: str, shown: str) -> URL:
    """The URL to request: byte for byte as written; only what HTTP cannot carry is percent-encoded.

    Its host is the one that is connected to, so it is the one to check. Raises FetchError, whose message shows `shown`.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FetchError("reference_forbidden", f"{shown} is no http(s) URL.", remedy="Use a public http(s) URL.")
        if parts.username is not None:
            raise FetchError("reference_forbidden", f"{shown} has a user part.", remedy="Use a URL without one.")
        host = URL.build(scheme=parts.scheme, host=parts.hostname).raw_host or ""
        return URL.build(
            scheme=parts.scheme,
            host=f"[{host}]" if ":" in host else host,
            port=parts.port,
            path=_on_wire(_without_dots(parts.path)) or "/",
            query_string=_on_wire(parts.query),
            encoded=True,
        )
    except ValueError as error:  # impossible ports, brackets and names
        raise FetchError(
            "reference_forbidden", f"{shown} is no valid URL ({error}).", remedy="Correct the address."
        ) from error


def _on_wire(text: str) -> str:
    return _OFF_WIRE.sub(lambda match: "".join(f"%{byte:02X}" for byte in _bytes(match[0])), text)


def _bytes(text: str) -> bytes:
    """The text as UTF-8; bytes of a header that were no UTF-8 stay as they were."""
    return text.encode("utf-8", "surrogateescape")


def _without_dots(path: str) -> str:
    """The path with its `.` and `..` resolved, as every client sends it."""
    segments = path.split("/")
    if not {".", ".."} & set(segments):
        return path
    resolved: list[str] = []
    for segment in segments:
        if segment == "..":
            del resolved[max(1, len(resolved) - 1) :]
        elif segment != ".":
            resolved.append(segment)
    if segments[-1] in (".", ".."):
        resolved.append("")
    return "/".join(resolved)


async def reach_of_host(host: str) -> Reach:
    """The reach of a host name or numeric spelling: private or loopback if any of its addresses is, else public.

    Raises OSError if the lookup fails, UnicodeError if it is no valid name.
    """
    literal = literal_address(host)
    if literal is None:
        addresses = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        reaches = {reach_of(str(address[0])) for *_, address in addresses}
    else:
        reaches = {reach_of(literal)}
    return next(reach for reach in ("private", "loopback", "public") if reach in reaches)


def literal_address(host: str) -> str | None:
    """The IP address that a numeric host means (decimal, octal and hex spellings too); None for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if host[:1].isdigit() else None
    except OSError:
        return None
