"""What a transport failure proves: only some of them, that nothing was sent."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from prefect_imagegen.net import client as client_module
from prefect_imagegen.net.client import TRANSPORT_ERRORS, make_client, never_sent

pytestmark = pytest.mark.anyio
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A raw TCP server that reads one request and then does as told."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = (
            int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length" in head.lower() else 0
        )
        await reader.readexactly(length)
        await answer(reader, writer)
        writer.close()

    running = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with running:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}/"


async def failure(url: str, read_timeout: float = 5.0) -> BaseException:
    async with make_client(max_connections=2, connect_timeout=0.5, read_timeout=read_timeout) as client:
        with pytest.raises(TRANSPORT_ERRORS) as caught:
            await client.post(url, json={"a": 1})
    return caught.value


async def test_refused_and_unknown_hosts_were_never_reached() -> None:
    """A refused connection and a name that does not resolve prove that nothing was sent."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert never_sent(await failure(f"http://127.0.0.1:{port}/"))
    assert never_sent(await failure("http://no-such-host.invalid/"))
    assert never_sent(await failure("gopher://127.0.0.1/"))


async def test_a_connect_time_out_was_never_sent() -> None:
    """A connection that is not accepted in time proves that nothing was sent."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        others = [socket.socket() for _ in range(4)]
        try:
            for other in others:
                other.setblocking(False)
                other.connect_ex(full.getsockname())
            assert never_sent(await failure(f"http://127.0.0.1:{full.getsockname()[1]}/"))
        finally:
            for other in others:
                other.close()


async def test_whatever_fails_after_sending_proves_nothing() -> None:
    """A hang-up, a reset, a time-out and half an answer may all hide a call that was taken and paid."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def half(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()

    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no HTTP\r\n\r\n")
        await writer.drain()

    async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    for answer in (hang_up, reset, half, nonsense, silence):
        async with server(answer) as url:
            error = await failure(url, read_timeout=0.3)
        assert not never_sent(error), (answer.__name__, error)


async def test_redirects_are_not_followed() -> None:
    """A redirect is an answer: a key must not travel to wherever it points."""

    async def moved(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async with server(moved) as url, make_client(max_connections=2) as client:
        assert (await client.get(url)).status_code == 302


async def test_more_than_a_hundred_calls_at_once() -> None:
    """The limit asked for holds; the transport's own default of 100 does not."""
    together = 150
    arrived = 0
    everybody = asyncio.Event()

    async def meet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == together:
            everybody.set()
        await everybody.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()

    async with server(meet) as url, make_client(max_connections=together) as client:
        answers = await asyncio.gather(*(client.get(url) for _ in range(together)))
    assert [answer.status_code for answer in answers] == [httpx.codes.OK] * together


async def test_idle_connections_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits minutes for its answer keeps its connection alive: it is probed every 30 s."""
    made: list[socket.socket] = []
    factory = client_module._probed_socket

    def noted_socket(address: Any) -> socket.socket:
        made.append(factory(address))
        return made[-1]

    monkeypatch.setattr(client_module, "_probed_socket", noted_socket)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with server(answer) as url, make_client(max_connections=1) as client, client.stream("GET", url):
        (used,) = made
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


async def test_the_log_has_no_queries(caplog: pytest.LogCaptureFixture) -> None:
    """What httpx logs of every call names the address without its query, which may be a signature."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    caplog.set_level("INFO", "httpx")
    async with server(answer) as url:
        for _ in range(2):
            async with make_client(max_connections=2) as client:
                await client.get(f"{url}a.png?X-Amz-Signature=hunter2")
    assert [line for line in caplog.messages if f"{url}a.png" in line] == caplog.messages
    assert len(caplog.messages) == 2
    assert "hunter2" not in caplog.text
