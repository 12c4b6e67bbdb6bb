"""How far the answers of a backend may lead: an address that an answer names is a stranger's, like a reference's."""

import socket
from collections.abc import Iterable

import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from prefect_imagegen.net.guard import REACHES, FetchPolicy, Reach, check_address, literal_address, reach_of_host

_POLICY = FetchPolicy(allow_private=True)


class OutwardResolver(AbstractResolver):
    """Looks names up for a backend's client: other hosts than its own lie no further inside than it does itself.

    A gateway on this machine may name this machine, one of a private network that network, and the API public hosts
    only; where clouds keep credentials nobody leads. `own` are the URLs that the user gave.
    """

    def __init__(self, own: Iterable[str]) -> None:
        self._own = frozenset(_host_of(url) for url in own)
        self._deepest: Reach | None = None
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises FetchError where one of them must not be asked."""
        found = await self._inner.resolve(host, port, family)
        if host not in self._own:
            for result in found:
                check_address(result["host"], _POLICY, await self._depth())
        return found

    async def check(self, url: str) -> None:
        """Raise FetchError for a numeric host that must not be asked, since those are not resolved; else ValueError."""
        host = _host_of(url)
        literal = literal_address(host)
        if literal is not None and host not in self._own:
            check_address(literal, _POLICY, await self._depth())

    async def close(self) -> None:
        """Close the resolver beneath."""
        await self._inner.close()

    async def _depth(self) -> Reach:
        """How far inside the user's own hosts lie."""
        if self._deepest is None:
            reaches: list[Reach] = ["public"]
            for host in self._own:
                try:
                    reaches.append(await reach_of_host(host))
                except (OSError, UnicodeError):
                    return "public"  # it may be known the next time
            deepest = max(reaches, key=REACHES.index)
            self._deepest = deepest
            return deepest
        return self._deepest


def _host_of(url: str) -> str:
    """The host that the client connects to, as both of its layers read the URL. Raises ValueError."""
    try:
        return URL(str(httpx.URL(url))).raw_host or ""
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
