"""Which addresses may be asked for a reference: what a stranger's URL may make this machine do is decided here.

Refused are private, loopback, link-local and other non-public addresses (by name, by DNS, as IPv6, in numeric
spellings), other schemes, and credentials in URLs.
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
"""From the outermost to the innermost."""
_INSIDE_OF_CLOUDS = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("168.63.129.16/32", "192.0.0.0/24", "fd00:ec2::/32"),  # Azure, Oracle, AWS
        *("fd20:ce::/32", "fd00:c1::/32", "fd00:42::/32"),  # Google, Oracle, Scaleway
        *("fec0::/10", "64:ff9b:1::/48"),  # site-local; NAT64 of a network's own, which stands for any IPv4 address
    )
)
"""Where clouds keep credentials besides link-local addresses, and what the standard library takes for public."""
_OFF_WIRE = re.compile(r"[^\x21-\x7e]+")
"""What a request line cannot hold: controls, blanks, and all beyond ASCII."""


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched, and how patiently. Sizes in bytes, times in seconds."""

    allow_loopback: bool = False
    allow_private: bool = False
    """Private networks and loopback too; link-local addresses (where clouds keep credentials) and their kin never."""
    max_bytes: int = 32 * 1024 * 1024
    max_redirects: int = 5
    timeout: float = 30.0
    """For one request, body included."""
    patience: float = 120.0
    """For one reference, all tries and the pauses between them; waiting for its turn at a host is not counted."""
    at_once: int = 4
    """Requests that one host is asked at the same time."""


class FetchError(ImagegenError):
    """A reference could not or must not be fetched; the message names the URL without its query, and the remedy.

    `reference_busy` says that its host is busy or out of reach for now: nothing is known to be wrong with it.
    """


def reach_of(address: str) -> Reach:
    """From where an IP address can be reached: by everybody, from this machine, or from some network at best."""
    found = _inner_address(address)
    if found.is_loopback:
        return "loopback"
    special = found.is_multicast or found.is_reserved or found.is_unspecified or _is_inside_of_clouds(found)
    return "public" if found.is_global and not special else "private"


def check_address(address: str, policy: FetchPolicy, deepest: Reach = "loopback") -> None:
    """Raise FetchError unless the IP address is public (or loopback or private, where the policy allows that).

    `deepest` bounds what the policy allows: a public host may lead to public ones only.
    """
    reach = reach_of(address)
    is_allowed = REACHES.index(reach) <= REACHES.index(deepest)
    if reach == "public" or (reach == "loopback" and is_allowed and (policy.allow_loopback or policy.allow_private)):
        return
    found = _inner_address(address)
    is_barred = found.is_link_local or found.is_unspecified or _is_inside_of_clouds(found)
    if is_allowed and policy.allow_private and found.is_private and not is_barred:
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


def _is_inside_of_clouds(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address in network for network in _INSIDE_OF_CLOUDS)


class GuardedResolver(AbstractResolver):
    """Checks every address that a name resolves to; the connection goes to just these addresses.

    `reaches` takes down how far inside each name led.
    """

    def __init__(self, policy: FetchPolicy, deepest: Reach, reaches: MutableMapping[str, Reach]) -> None:
        self._policy = policy
        self._deepest = deepest
        self._reaches = reaches
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises FetchError where one of them must not be asked."""
        found = await self._inner.resolve(host, port, family)
        for result in found:
            check_address(result["host"], self._policy, self._deepest)
        self._reaches[host] = min((reach_of(result["host"]) for result in found), key=REACHES.index)
        return found

    async def close(self) -> None:
        """Close the resolver beneath."""
        await self._inner.close()


def asked_url(url: str, shown: str) -> URL:
    """A URL as it goes on the wire: byte for byte as it is written; what HTTP cannot carry is percent-encoded.

    The host is the one that is connected to, so it is the one to be checked. Raises FetchError (`shown` names it).
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
    except ValueError as error:  # of ports, brackets, and names that cannot be
        raise FetchError(
            "reference_forbidden", f"{shown} is no valid URL ({error}).", remedy="Correct the address."
        ) from error


def _on_wire(text: str) -> str:
    return _OFF_WIRE.sub(lambda found: "".join(f"%{byte:02X}" for byte in _bytes(found[0])), text)


def _bytes(text: str) -> bytes:
    """Characters as UTF-8; what came as other bytes in a header stays these bytes."""
    return text.encode("utf-8", "surrogateescape")


def _without_dots(path: str) -> str:
    """The path with its `.` and `..` resolved, as every client sends it."""
    segments = path.split("/")
    if not {".", ".."} & set(segments):
        return path
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[max(1, len(kept) - 1) :]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join(kept)


async def reach_of_host(host: str) -> Reach:
    """The narrowest reach of the addresses that a host name (or a numeric spelling) stands for.

    Raises OSError, or UnicodeError where it is no name at all.
    """
    literal = literal_address(host)
    if literal is None:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        reaches = {reach_of(str(address[0])) for *_, address in found}
    else:
        reaches = {reach_of(literal)}
    return next(reach for reach in ("private", "loopback", "public") if reach in reaches)


def literal_address(host: str) -> str | None:
    """The address that a numeric spelling of a host means (decimal, octal and hex ones too); None for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if host[:1].isdigit() else None
    except OSError:
        return None
