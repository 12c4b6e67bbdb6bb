"""Limits on a request as it comes in: its head, length and pace. A refusal names its limit and costs no memory."""

import base64
import contextlib
import json
import re
import socket
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from click.testing import CliRunner

from prefect_imagegen.cli.serve import serve
from prefect_imagegen.gateway.http.intake import patience
from prefect_imagegen.gateway.limits import Limits
from prefect_imagegen.gateway.server import EmbeddedGateway
from tests.gateway.limits.conftest import KEY, MODEL, gateway, photo
from tests.support.gateway_process import StandingGateway, standing_gateway

POST = f"POST /v1/{MODEL} HTTP/1.1\r\nhost: localhost\r\nx-api-key: k\r\ncontent-type: application/json\r\n"


def said(running: EmbeddedGateway | StandingGateway, *pieces: bytes) -> bytes:
    """All that comes back until the gateway closes the connection."""
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=60) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        return answer


def test_every_limit_is_an_option_of_serve() -> None:
    """What a refusal names is an option of `serve`, which shows the default."""
    shown = CliRunner().invoke(serve, ["--help"], terminal_width=200).output
    for entry in fields(Limits):
        assert re.search(
            rf"{entry.metadata['option']} N .*\[default: {entry.default // entry.metadata['unit']};", shown
        )
        assert Limits().describe(entry.name) == f"{entry.metadata['option']} {entry.default / entry.metadata['unit']:g}"


@pytest.mark.parametrize("path", [f"/v1/{MODEL}", f"/v2/{MODEL}", "/upload-asset"])
def test_a_large_body_is_413(path: str) -> None:
    """A body over the limit is 413, announced or in chunks, and nothing is taken on."""
    with gateway(body_bytes=1 << 20) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        headers = KEY | {"content-type": "application/json"}
        for content in (b" " * (3 << 20), iter([b" " * (1 << 16)] * 48)):
            answer = client.post(path, content=content, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (413, "the body is too large (--max-body-mb 1)")
            assert answer.headers["connection"] == "close"
        assert not running.account_state.records
        assert client.get("/health").status_code == 200


def test_an_announced_body_is_not_waited_for() -> None:
    """What announces too much is refused before any of it is sent, and so is what waits for a word to go on."""
    with gateway(body_bytes=1000, receive_s=1) as running:
        for more in ("", "expect: 100-continue\r\n"):
            answer = said(running, f"{POST}{more}content-length: 99999999999\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b" 100 " not in answer


def test_a_chunked_body_without_end_costs_no_memory(tmp_path: Path) -> None:
    """A gateway that is sent hundreds of megabytes in chunks does not grow."""
    pieces = [b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"] * 300
    chunked = (POST + "connection: close\r\ntransfer-encoding: chunked\r\n\r\n").encode()
    with standing_gateway(tmp_path, "limits=Limits(body_bytes=16 << 20)") as running:
        assert httpx.get(f"{running.url}/health").status_code in (200, 503)
        before = running.peak
        for _ in range(2):
            assert b" 413 " in said(running, chunked, *pieces)
        for sent in (chunked.replace(b"POST /v1", b"GET /v1"), chunked.replace(b"x-api-key: k\r\n", b"")):
            said(running, sent, *pieces[:50], b"0\r\n\r\n")
        assert running.peak - before < 64 << 20


def test_slow_readers_cost_no_memory(tmp_path: Path) -> None:
    """Many who fetch a large picture, for which they need no key, and do not read on, hold little of it in memory."""
    picture = base64.b64decode(photo().partition(",")[2]) + b"\0" * (20 << 20)
    with standing_gateway(tmp_path) as running, contextlib.ExitStack() as connections:
        upload = {"data_urls": ["data:image/png;base64," + base64.b64encode(picture).decode()]}
        answer = httpx.post(f"{running.url}/upload-asset", json=upload, headers=KEY, timeout=60)
        (url,) = answer.json()["file_urls"]
        assert httpx.get(url, timeout=60).content == picture
        before = running.peak
        for _ in range(20):
            reader = connections.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=60))
            reader.sendall(f"GET {urlsplit(url).path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            assert reader.recv(15) == b"HTTP/1.1 200 OK"
        assert running.peak - before < 100 << 20


def test_what_drips_is_408() -> None:
    """A head or a body that is not whole in time ends in 408 and a closed connection, however it is sent."""
    with gateway(receive_s=1) as running:
        for sent in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-a: "):
            assert said(running, sent).startswith(b"HTTP/1.1 408 ")
        for length in ("content-length: 50", "transfer-encoding: chunked"):
            answer = said(running, f"{POST}{length}\r\n\r\n".encode(), b'5\r\n{"pro')
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"--receive-seconds 1" in answer
            assert b"x-imagegen-engine: sandbox" in answer
        # A second request that stays unfinished, and a body that stays unfinished after its answer.
        whole = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        assert said(running, whole, b"GET /he").count(b"HTTP/1.1 ") == 2
        assert said(running, whole[:-2], b"content-length: 9\r\n\r\nabc").count(b"HTTP/1.1 200 ") == 1


def test_a_length_that_lies(capfd: pytest.CaptureFixture[str]) -> None:
    """A body shorter than announced is no call, and one that is longer is no second one; neither is a traceback."""
    with gateway(receive_s=1) as running:
        body = json.dumps({"prompt": "a"}).encode()
        with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as connection:
            connection.sendall(f"{POST}content-length: {len(body) + 9}\r\n\r\n".encode() + body)
        assert not running.account_state.records
        answer = said(running, f"{POST}content-length: {len(body)}\r\n\r\n".encode() + body + b"{{{{\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 400 " in answer
        for twice in ("content-length: 5\r\ncontent-length: 6", "content-length: -1", "content-length: 0x9"):
            assert said(running, f"{POST}{twice}\r\n\r\n".encode()).startswith(b"HTTP/1.1 400 ")
        assert len(running.account_state.records) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_large_head_is_431() -> None:
    """Headers, and lines, over the limit are 431 in the form of our errors."""
    with gateway(head_bytes=4096, receive_s=1) as running:
        for sent in (b"GET /" + b"a" * 9000, b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 2000):
            head, _, body = said(running, sent).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 431 ")
            assert json.loads(body) == {"error": "the head of the request is too large (--max-head-kb 4)"}
        assert said(running, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "gzip, identity"])
def test_an_encoded_body_is_415(encoding: str) -> None:
    """Nothing is unpacked that a caller has packed."""
    with gateway() as running:
        headers = KEY | {"content-type": "application/json", "content-encoding": encoding}
        for path in (f"/v1/{MODEL}", f"/v2/{MODEL}", "/upload-asset"):
            answer = httpx.post(running.url + path, content=b"{}", headers=headers)
            assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
        headers["content-encoding"] = "identity"
        assert httpx.post(f"{running.url}/v1/{MODEL}", content=b'{"prompt": "a"}', headers=headers).status_code == 200


def test_patience_grows_with_a_body() -> None:
    """A call with the largest pictures comes whole over a slow line that it shares with others; a drip does not."""
    assert patience(27 << 20, Limits()) > 16 * 27 * 8 / 13  # seconds for sixteen of 27 MB at once, at 13 Mbit a second
    assert patience(1000, Limits()) < 61


def test_a_length_is_told_once() -> None:
    """Of two lengths, one may be what a server between went by: no call, and nothing behind it is read as one."""
    body = json.dumps({"prompt": "a"}).encode()
    both = f"{POST}content-length: {len(body)}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    with gateway(receive_s=1) as running:
        hidden = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        answer = said(running, both + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) + hidden)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert not running.account_state.records
