"""A network in memory: raw bytes between the client's real HTTP parser and a service that may do anything."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl, unquote, urlsplit

import aiohttp
import httpx
from aiohttp.client_exceptions import ClientConnectorError
from aiohttp.helpers import ceil_timeout

from prefect_imagegen.net import client

_NO_TLS = httpx.create_ssl_context(verify=False)
"""Nothing is encrypted in memory; making a context for every client would cost more than all calls."""
_ROUND_TRIP_S = 0.002


@dataclass(slots=True)
class Request:
    """One request as it arrived at a host. `key` is the API key that it carries."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def key(self) -> str | None:
        scheme, _, key = self.headers.get("authorization", "").partition(" ")
        return self.headers.get("x-api-key") or (key if scheme == "Key" else None)


@dataclass(slots=True)
class Reply:
    """An answer, and how its bytes go over the wire. Times in seconds.

    `length` says how the body ends: `right` or a number as Content-Length, `chunked`, or `close`. `drip` is a pause
    between pieces of a few bytes; after `cut` bytes of the body, the connection ends as `end` says (`keep`, `close`,
    `reset`). `hang`: no byte is ever sent.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    length: str | int = "right"
    cut: int | None = None
    end: str = "keep"
    hang: bool = False
    silent: bool = False
    """Not even the head is sent before the connection ends."""
    before: bytes = b""
    after: bytes = b""
    note: str = ""

    def pieces(self) -> Iterator[tuple[float, bytes]]:
        """What is sent, each after a pause."""
        if self.silent:
            return
        yield self.delay, self.before + self._head()
        body = self.body
        if self.length == "chunked":
            half = len(body) // 2
            parts = [part for part in (body[:half], body[half:]) if part]
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        body = body if self.cut is None else body[: self.cut]
        body += self.after
        if self.drip and body:
            size = max(1, len(body) // 6)
            for start in range(0, len(body), size):
                yield self.drip, body[start : start + size]
        elif body:
            yield 0.0, body

    @property
    def ends(self) -> str:
        """How the connection goes on."""
        if self.end != "keep":
            return self.end
        return "close" if self.length == "close" or self.cut is not None or self.silent else "keep"

    def _head(self) -> bytes:
        try:
            reason = HTTPStatus(self.status).phrase
        except ValueError:
            reason = "Odd"
        headers = dict(self.headers)
        if self.length == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        elif self.length != "close":
            headers["Content-Length"] = str(len(self.body) if self.length == "right" else self.length)
        if self.ends != "keep":
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass(slots=True)
class Network:
    """The network of one process. `serve` answers requests, `connecting` says what is wrong with a new connection."""

    serve: Callable[[Request, int], Reply]
    connecting: Callable[[str, str, str], str | None]
    abandoned: Callable[[Request], None]
    tick: Callable[[str, int], None]
    sessions: list[aiohttp.ClientSession] = field(default_factory=list)
    dead: bool = False
    number: int = 0
    """The number of the run whose process it belongs to."""

    def die(self) -> None:
        """Drop all connections without a sign to either side, as when the process is killed."""
        self.dead = True
        for session in self.sessions:
            if session.connector is not None:
                session.connector._close()
            session.detach()


class MemoryTransport(asyncio.Transport):
    """Both ends of one connection."""

    def __init__(self, network: Network, host: str, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._network = network
        self._host = host
        self._protocol = protocol
        self._received = bytearray()
        self._closing = False
        self._paused = False
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._ending = "keep"
        self._request: Request | None = None

    def write(self, data: Any) -> None:
        if self._closing or self._network.dead:
            return
        self._received += data
        request = _parsed(self._received, self._host, self._loop.time())
        if request is None:
            return
        self._received.clear()
        self._request = request
        self._network.tick(f"before {request.method} {request.path}", self._network.number)
        if self._network.dead:
            return
        reply = self._network.serve(request, self._network.number)
        self._network.tick(f"after {request.method} {request.path}", self._network.number)
        if reply.hang:
            return
        self._waiting = deque(reply.pieces())
        self._ending = reply.ends
        if not self._waiting:
            self._waiting.append((reply.delay, b""))
        self._next()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self._let_go()
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._next()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def _let_go(self) -> None:
        if self._request is not None and not self._network.dead:
            self._network.abandoned(self._request)
        self._request = None

    def _next(self) -> None:
        if self._waiting and not self._closing:
            self._loop.call_later(max(_ROUND_TRIP_S, self._waiting[0][0]), self._deliver)

    def _deliver(self) -> None:
        if self._closing or self._network.dead or self._paused or not self._waiting:
            return
        _, piece = self._waiting.popleft()
        if not self._waiting:
            self._request = None
        if piece:
            self._protocol.data_received(piece)
        if self._waiting:
            self._next()
        elif self._ending != "keep":
            self._loop.call_soon(self._end)
        self._network.tick("answered", self._network.number)

    def _end(self) -> None:
        if self._closing or self._network.dead:
            return
        self._request, self._closing = None, True
        if self._ending == "reset":
            self._protocol.connection_lost(ConnectionResetError(104, "Connection reset by peer"))
        else:
            self._protocol.eof_received()
            self._protocol.connection_lost(None)


def _parsed(data: bytearray, host: str, now: float) -> Request | None:
    """The request, once all of it is there. Strict: the client has to speak HTTP/1.1 with a length."""
    head, separator, body = bytes(data).partition(b"\r\n\r\n")
    if not separator:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if version != "HTTP/1.1" or "transfer-encoding" in headers:
        raise ValueError(f"a request that the service does not take: {first}")
    length = int(headers.get("content-length", "0"))
    if len(body) < length:
        return None
    if len(body) > length:
        raise ValueError("a request with more bytes than it says")
    parts = urlsplit(target)
    return Request(method, host, unquote(parts.path), dict(parse_qsl(parts.query)), headers, body, now)


class MemoryConnector(aiohttp.BaseConnector):
    """aiohttp's own connection pool, over connections in memory."""

    def __init__(self, network: Network, **options: Any) -> None:
        super().__init__(**options)
        self._network = network

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:  # noqa: ASYNC109 - aiohttp's own
        url = req.url
        trouble = self._network.connecting(req.method, url.host, url.path)
        if trouble == "hang":
            async with ceil_timeout(timeout.sock_connect, ceil_threshold=timeout.ceil_threshold):
                await asyncio.sleep(3600.0)
        if trouble is not None:
            raise ClientConnectorError(req.connection_key, ConnectionRefusedError(111, "Connection refused"))
        protocol = self._factory()
        protocol.connection_made(MemoryTransport(self._network, url.host, protocol))
        return protocol


@contextmanager
def plugged_into(network: Callable[[], Network]) -> Iterator[None]:
    """Within: clients that the product makes speak over the network that is current when they are made."""

    def session(max_connections: int, resolver: object = None) -> aiohttp.ClientSession:
        own = network()
        connector = MemoryConnector(own, limit=max_connections, keepalive_timeout=client.KEEPALIVE_S)
        own.sessions.append(aiohttp.ClientSession(connector=connector))
        return own.sessions[-1]

    with patch.object(client, "_session", session):
        yield
