"""The one HTTP client factory: the httpx API over aiohttp's transport, and what its failures mean."""

import logging
import socket
import ssl
from functools import cache, partial
from importlib.metadata import metadata

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver
from aiohttp.connector import AddrInfoType
from httpx_aiohttp import AiohttpTransport

from prefect_imagegen.core.redact import redact

# Shorter than the 5 s after which common servers close an idle connection: a POST sent on a connection that is
# being closed has an unknown outcome.
KEEPALIVE_S = 4.0
_PROBE_S = 30
"""A connection without traffic is probed so often: a call that waits minutes for its answer outlives routers that
forget idle connections, and notices a machine that is gone."""
_PROBES = 4


def _user_agent() -> str:
    """Who asks, and where to read about it: hosts of pictures turn nameless clients away."""
    about = metadata("prefect-imagegen")
    pages = [line.partition(", ")[2] for line in about.get_all("Project-URL", [])]
    return f"prefect-imagegen/{about['Version']} ({f'+{pages[0]}' if pages else 'Prefect plugin, images from tables'})"


USER_AGENT = _user_agent()
TRANSPORT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, TimeoutError)
"""Everything that a call can raise for want of an answer: the transport lets some of aiohttp's own errors through."""


def make_client(
    *,
    max_connections: int,
    connect_timeout: float = 10.0,
    read_timeout: float | None = 60.0,
    resolver: AbstractResolver | None = None,
) -> httpx.AsyncClient:
    """An `httpx.AsyncClient` for so many calls at once; times in seconds; redirects are never followed.

    `resolver` looks names up, if it is not to be done in the usual way.

    Plain httpx collapses from 64 calls in flight on (its pool rebuilds its lists for every queued call), so the
    transport is aiohttp's.
    """
    logging.getLogger("httpx").addFilter(_WITHOUT_QUERIES)  # once: a logger does not take the same filter twice
    return httpx.AsyncClient(
        transport=AiohttpTransport(verify=_tls(), client=partial(_session, max_connections, resolver)),
        timeout=httpx.Timeout(read_timeout, connect=connect_timeout, pool=None),
        follow_redirects=False,
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip"},
    )


class _WithoutQueries(logging.Filter):
    """Takes the queries, user parts and asset addresses out of what httpx logs of every call."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the addresses of a record; every record passes."""
        if isinstance(record.args, tuple):
            record.args = tuple(redact(str(part)) if isinstance(part, httpx.URL) else part for part in record.args)
        return True


_WITHOUT_QUERIES = _WithoutQueries()


@cache
def _tls() -> ssl.SSLContext:
    """The trusted certificates, read once: that takes longer than a call."""
    return httpx.create_ssl_context()


def _session(max_connections: int, resolver: AbstractResolver | None) -> aiohttp.ClientSession:
    """The connections of one client; made in the loop that uses them."""
    connector = aiohttp.TCPConnector(
        limit=max_connections,
        resolver=resolver,
        keepalive_timeout=KEEPALIVE_S,
        ssl=_tls(),
        socket_factory=_probed_socket,
    )
    return aiohttp.ClientSession(connector=connector)


def _probed_socket(address: AddrInfoType) -> socket.socket:
    """A socket that is probed while it is idle, where the system can."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _PROBE_S), ("TCP_KEEPINTVL", _PROBE_S), ("TCP_KEEPCNT", _PROBES)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def never_sent(error: BaseException) -> bool:
    """Whether a transport error proves that no byte of the request left this machine.

    True for DNS, refused, TLS and connect time-outs only. The transport's own mapping must not be asked: it turns
    a disconnect after sending into `httpx.ConnectTimeout` too, so the aiohttp error beneath decides.
    """
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | httpx.PoolTimeout):
        return True
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) else error
    return isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL)
