"""Which addresses a provider's answers may make this machine connect to.

An address in an answer (of an output, say) is no more trusted than a reference URL.
"""

import socket
from collections.abc import Iterable

import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from prefect_imagegen.net.guard import REACHES, FetchPolicy, Reach, check_address, literal_address, reach_of_host

_POLICY = FetchPolicy(allow_private=True)


class OutwardResolver(AbstractResolver):
    """The resolver of a provider's client: other hosts may not lie further inside than the provider's own.

    A gateway on this machine may name this machine, one in a private network that network, and the public API only
    public hosts. Addresses where clouds serve credentials are never allowed. `own`: the URLs that the user gave.
    """

    def __init__(self, own: Iterable[str]) -> None:
        self._own = frozenset(_host_of(url) for url in own)
        self._deepest: Reach | None = None
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises FetchError if one of them is not allowed."""
        results = await self._inner.resolve(host, port, family)
        if host not in self._own:
            for result in results:
                check_address(result["host"], _POLICY, await self._depth())
        return results

    async def check(self, url: str) -> None:
        """Check a URL with a numeric host, which the resolver never sees.

        Raises FetchError if it is not allowed, ValueError if it is no URL.
        """
        host = _host_of(url)
        literal = literal_address(host)
        if literal is not None and host not in self._own:
            check_address(literal, _POLICY, await self._depth())

    async def close(self) -> None:
        """Close the wrapped resolver."""
        await self._inner.close()

    async def _depth(self) -> Reach:
        """The innermost reach of the user's own hosts."""
        if self._deepest is None:
            reaches: list[Reach] = ["public"]
            for host in self._own:
                try:
                    reaches.append(await reach_of_host(host))
                except (OSError, UnicodeError):
                    return "public"  # not cached: the name may resolve the next time
            deepest = max(reaches, key=REACHES.index)
            self._deepest = deepest
            return deepest
        return self._deepest


def _host_of(url: str) -> str:
    """The host that the client connects to, after httpx and yarl have parsed the URL. Raises ValueError."""
    try:
        return URL(str(httpx.URL(url))).raw_host or ""
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
