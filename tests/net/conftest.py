"""Servers that misbehave, an internet of three hosts on this machine, and clocks that nobody waits for."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_imagegen.net.hosts import HostRecords, Timing
from tests.support.builders.images import png

START = datetime(2026, 11, 26, tzinfo=UTC)
Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def picture() -> bytes:
    """A small PNG."""
    return png()


class FakeTime:
    """Clocks that go on by being slept on; `slept` has how long each sleep was to be."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += max(0.0, seconds)
        await asyncio.sleep(0)

    def records(self) -> HostRecords:
        """Host records that go by these clocks; every die shows the middle."""
        return HostRecords(
            Timing(lambda: self.seconds, lambda: START + timedelta(seconds=self.seconds), self.sleep, lambda: 0.5)
        )


def whole(data: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An answer in HTTP, with its length."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(data)}", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + data


@asynccontextmanager
async def raw_server(answer: Answer, **options: Any) -> AsyncIterator[int]:
    """A TCP server that reads the head of a request and lets `answer` write what it likes; its port."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(await reader.readuntil(b"\r\n\r\n"), writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, **options)
    async with server:
        yield server.sockets[0].getsockname()[1]


def target_of(head: bytes) -> bytes:
    """What a request asks for, byte for byte."""
    return head.split(b"\r\n")[0].removeprefix(b"GET ").removesuffix(b" HTTP/1.1")


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


def lay_internet(patch: pytest.MonkeyPatch) -> Callable[[dict[str, str], int], None]:
    """A function that gives names addresses of anywhere; every connection to them ends at a port of this machine.

    Names that it was not given do not exist.
    """

    def lay(names: dict[str, str], port: int) -> None:
        def resolve(host: Any, asked_port: Any, *args: Any, **kwargs: Any) -> list[Any]:
            host.encode("idna")  # as the real one does, and fails for what is no name
            if host not in names:
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (names[host], asked_port))]

        loop = asyncio.get_running_loop()
        connect = loop.sock_connect

        async def sock_connect(sock: socket.socket, address: Any) -> None:
            await connect(sock, ("127.0.0.1", port) if address[0] in names.values() else address)

        patch.setattr(socket, "getaddrinfo", resolve)
        patch.setattr(loop, "sock_connect", sock_connect)

    return lay


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str], int], None]:
    """Lay an internet of names: see `lay_internet`."""
    return lay_internet(monkeypatch)
