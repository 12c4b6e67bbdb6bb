"""The one HTTP client factory: the httpx API over aiohttp's transport, and what its failures mean."""

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

# Shorter than the 5 s after which common servers close an idle connection: a POST sent on a connection that is
# being closed has an unknown outcome.
KEEPALIVE_S = 4.0
TRANSPORT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, TimeoutError)
"""Everything that a call can raise for want of an answer: the transport lets some of aiohttp's own errors through."""


def make_client(
    *, max_connections: int, connect_timeout: float = 10.0, read_timeout: float | None = 60.0
) -> httpx.AsyncClient:
    """An `httpx.AsyncClient` for so many calls at once; times in seconds; redirects are never followed.

    Plain httpx collapses from 64 calls in flight on (its pool rebuilds its lists for every queued call), so the
    transport is aiohttp's. Limits go to the transport: httpx ignores `limits=` once it is given one.
    """
    limits = httpx.Limits(max_connections=max_connections, keepalive_expiry=KEEPALIVE_S)
    return httpx.AsyncClient(
        transport=AiohttpTransport(limits=limits),
        timeout=httpx.Timeout(read_timeout, connect=connect_timeout, pool=None),
        follow_redirects=False,
    )


def never_sent(error: BaseException) -> bool:
    """Whether a transport error proves that no byte of the request left this machine.

    True for DNS, refused, TLS and connect time-outs only. The transport's own mapping must not be asked: it turns
    a disconnect after sending into `httpx.ConnectTimeout` too, so the aiohttp error beneath decides.
    """
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | httpx.PoolTimeout):
        return True
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) else error
    return isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL)
