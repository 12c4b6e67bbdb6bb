"""The factory of all HTTP clients (the httpx API over aiohttp's transport), and what their errors mean."""

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
"""Seconds between TCP keep-alive probes of a connection without traffic.

So a call that waits minutes for its answer survives routers that drop idle connections, and notices a dead machine."""
_PROBES = 4


def _user_agent() -> str:
    """Package name, version and home page; hosts of pictures turn clients without a name away."""
    about = metadata("prefect-imagegen")
    pages = [line.partition(", ")[2] for line in about.get_all("Project-URL", [])]
    return f"prefect-imagegen/{about['Version']} ({f'+{pages[0]}' if pages else 'Prefect plugin, images from tables'})"


USER_AGENT = _user_agent()
TRANSPORT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, TimeoutError)
"""Every exception of a call that got no answer; the transport lets some of aiohttp's own errors through."""


def make_client(
    *,
    max_connections: int,
    connect_timeout: float = 10.0,
    read_timeout: float | None = 60.0,
    resolver: AbstractResolver | None = None,
) -> httpx.AsyncClient:
    """An `httpx.AsyncClient` for up to `max_connections` calls at once; times in seconds; never follows redirects.

    `resolver` replaces the usual DNS lookup. The transport is aiohttp's, because plain httpx collapses from 64 calls in
    flight on: its pool rebuilds its lists for every queued call.
    """
    logging.getLogger("httpx").addFilter(_WITHOUT_QUERIES)  # once: a logger does not take the same filter twice
    return httpx.AsyncClient(
        transport=AiohttpTransport(verify=_tls(), client=partial(_session, max_connections, resolver)),
        timeout=httpx.Timeout(read_timeout, connect=connect_timeout, pool=None),
        follow_redirects=False,
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip"},
    )


class _WithoutQueries(logging.Filter):
    """Removes queries, user parts and asset addresses from httpx's log line of every call."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the addresses of a record; every record passes."""
        if isinstance(record.args, tuple):
            record.args = tuple(redact(str(part)) if isinstance(part, httpx.URL) else part for part in record.args)
        return True


_WITHOUT_QUERIES = _WithoutQueries()


@cache
def _tls() -> ssl.SSLContext:
    """The trusted certificates, loaded once, since that takes longer than a call."""
    return httpx.create_ssl_context()


def _session(max_connections: int, resolver: AbstractResolver | None) -> aiohttp.ClientSession:
    """The aiohttp session of one client; must be made in the event loop that uses it."""
    connector = aiohttp.TCPConnector(
        limit=max_connections,
        resolver=resolver,
        keepalive_timeout=KEEPALIVE_S,
        ssl=_tls(),
        socket_factory=_probed_socket,
    )
    return aiohttp.ClientSession(connector=connector)


def _probed_socket(address: AddrInfoType) -> socket.socket:
    """A socket with TCP keep-alive probes, where the operating system has them."""
    family, kind, protocol, *_ = address
    probed = socket.socket(family, kind, protocol)
    probed.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _PROBE_S), ("TCP_KEEPINTVL", _PROBE_S), ("TCP_KEEPCNT", _PROBES)):
        if hasattr(socket, name):
            probed.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return probed


def never_sent(error: BaseException) -> bool:
    """Whether a transport error proves that no byte of the request left this machine.

    True only for DNS errors, refused connections, TLS errors and connect time-outs. The aiohttp error beneath decides,
    not the httpx error: the transport maps a disconnect after sending to `httpx.ConnectTimeout` too.
    """
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | httpx.PoolTimeout):
        return True
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) else error
    return isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL)
