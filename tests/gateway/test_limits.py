"""What one caller may ask of a gateway: every limit ends in a refusal that names it, and costs no memory."""

import base64
import contextlib
import io
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr

from prefect_imagegen.cli.serve import serve
from prefect_imagegen.gateway.http.intake import BadBodyError, parse, patience
from prefect_imagegen.gateway.limits import Gate, Limits, TooBusyError
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.support.gateway_process import StandingGateway, standing_gateway
from tests.support.gateway_runs import api, assert_paid_once, generate

MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}
POST = f"POST /v1/{MODEL} HTTP/1.1\r\nhost: localhost\r\nx-api-key: k\r\ncontent-type: application/json\r\n"


@contextmanager
def gateway(**limits: int) -> Iterator[EmbeddedGateway]:
    with EmbeddedGateway(GatewaySettings(limits=Limits(**limits), allow_loopback=True)) as running:
        yield running
        assert running._runner.gate.bytes == 0  # every call has given its place back
        assert not running._runner.gate.calls


def photo(side: int = 64) -> str:
    sink = io.BytesIO()
    Image.effect_noise((side, side), 90).save(sink, "PNG")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


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


def post(running: EmbeddedGateway, **body: Any) -> httpx.Response:
    return httpx.post(f"{running.url}/v1/{MODEL}", json={"prompt": "a", **body}, headers=KEY, timeout=60)


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


def test_references_are_counted_and_weighed() -> None:
    """Too many, too large, and together too large pictures of a call are refused by name, before they are decoded."""
    with gateway(references=2, reference_bytes=100_000, references_bytes=150_000) as running:
        small, middle, large = photo(), photo(300), photo(600)
        assert post(running, image_urls=[small, small]).status_code == 200
        refused = {
            "image_urls has 3 images, too many (--max-references 2)": [small] * 3,
            "image 2 of image_urls is too large (--max-reference-mb 0.0953674)": [small, large],
            "the images of image_urls are too large (--max-references-mb 0.143051)": [middle, middle],
        }
        for version in ("v1", "v2"):
            for text, urls in refused.items():
                body = {"prompt": "a", "image_urls": urls}
                answer = httpx.post(f"{running.url}/{version}/{MODEL}", json=body, headers=KEY)
                assert (answer.status_code, answer.json()["error"]) == (400 if "many" in text else 413, text)
        for text, urls in refused.items():
            answer = httpx.post(f"{running.url}/upload-asset", json={"data_urls": urls}, headers=KEY)
            assert answer.json()["error"] == text.replace("image_urls", "data_urls")
        assert len(running.account_state.records) == 1


def test_fetched_references_are_weighed_too() -> None:
    """Pictures behind addresses, and uploads, count as those inside the call do."""
    with gateway(reference_bytes=100_000, references_bytes=150_000) as running:
        answer = httpx.post(f"{running.url}/upload-asset", json={"data_urls": [photo(300)]}, headers=KEY)
        (url,) = answer.json()["file_urls"]
        assert post(running, image_urls=[url]).status_code == 200
        for urls in ([url, url], [url.replace("127.0.0.1", "localhost")] * 2):
            answer = post(running, image_urls=urls)
            assert (answer.status_code, "--max-references-mb" in answer.json()["error"]) == (400, True)


def test_texts_are_bounded() -> None:
    """Long fields, and much text beside the pictures, are refused; a picture is no text."""
    with gateway(field_chars=1000, text_bytes=8192) as running:
        for field in ("prompt", "negative_prompt", "whatever"):
            answer = post(running, **{field: "x" * 1001})
            assert (answer.status_code, answer.json()["error"]) == (
                400,
                f"{field} is too long (--max-field-chars 1000)",
            )
        assert post(running, image_urls=["https://example.com/" + "x" * 1000]).status_code == 400
        for more in ({"a": [0] * 9000}, {f"k{n}": 1 for n in range(2000)}, {"a": ["data:"] * 2000}):
            answer = post(running, **more)
            assert (answer.status_code, "--max-text-kb 8" in answer.json()["error"]) == (400, True)
        assert post(running, image_urls=[photo(200)]).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {"mask": ["data:image/png;base64," + "A" * 2000]},
        {"mask": {"data:image/png;base64," + "A" * 2000: 1}},
        {"image_urls": [["data:image/png;base64," + "A" * 2000]]},
        {"data:image/png;base64," + "A" * 2000: 1},
    ],
)
def test_only_a_picture_may_be_long(more: dict[str, Any]) -> None:
    """What has the form of a picture is long only where pictures belong: elsewhere it would be kept, and shown."""
    with gateway(field_chars=1000, text_bytes=1500) as running:
        for version in ("v1", "v2"):
            answer = httpx.post(f"{running.url}/{version}/{MODEL}", json={"prompt": "a", **more}, headers=KEY)
            assert (answer.status_code, "--max-field-chars 1000" in answer.json()["error"]) == (400, True)
        assert not running.account_state.records


@pytest.mark.parametrize("more", ['{"":0},' * 140_000, "[]," * 300_000, "0," * 500_000, '{"a":1,"b":[2]},' * 600])
def test_values_are_counted(more: str) -> None:
    """Many small values, which take many times the memory of their text, are refused; commas in a text are none."""
    with pytest.raises(BadBodyError, match=r"too many values \(--max-json-values 1000\)"):
        parse(f'{{"prompt": "a", "more": [{more}0]}}'.encode(), Limits())
    assert parse(b'{"prompt": "%s"}' % (b",[" * 40_000), Limits())


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


def test_a_page_costs_what_it_shows() -> None:
    """Rows of the history that are on other pages are not made, however large they are."""
    with gateway() as running:
        for _ in range(3):
            assert post(running).status_code == 200
        oldest = next(iter(running.account_state.records.values()))
        oldest.body = {"prompt": object()}  # cannot be made into a row
        page = httpx.get(f"{running.url}/inference-request/request-history?per_page=2", headers=KEY).json()
        assert (page["total"], len(page["data"])) == (3, 2)


@pytest.mark.parametrize("nested", ["[" * 40 + "]" * 40, '{"a":' * 40 + "1" + "}" * 40, "[" * 500_000])
def test_depth_is_bounded(nested: str) -> None:
    """Lists and objects within each other are refused beyond a depth; brackets in a text are none."""
    with gateway() as running:
        headers = KEY | {"content-type": "application/json"}
        content = f'{{"prompt": "a", "more": {nested}}}'.encode()
        answer = httpx.post(f"{running.url}/v1/{MODEL}", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            "the body is nested too deeply (--max-json-depth 32)",
        )
        assert post(running, prompt='"\\"' + "[{" * 50).status_code == 200


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_depth_is_that_of_the_value(value: Any) -> None:
    """A body is refused for its depth just where its value is deeper."""

    def depth(part: Any) -> int:
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        return 0 if parts is None else 1 + max(map(depth, parts), default=0)

    body = {"a": value}
    for most in (1, 2, 4):
        for text in (json.dumps(body), json.dumps(body, ensure_ascii=False)):
            data = text.encode("utf-8", "surrogatepass")
            try:
                assert parse(data, Limits(json_depth=most)) == body
                assert depth(body) <= most
            except BadBodyError as error:
                assert depth(body) > most or "half a character" in str(error)  # noqa: PT017


def test_what_json_has_not() -> None:
    """NaN, infinities, half characters and numbers without end are 400, in answers that are JSON themselves."""
    with gateway() as running:
        headers = KEY | {"content-type": "application/json"}
        odd = ("NaN", "-Infinity", '"\\ud83d"', "9" * 5000, '"\\udc00\\ud83d"')
        for value in odd:
            content = f'{{"prompt": "a", "more": {value}}}'.encode()
            answer = httpx.post(f"{running.url}/v2/{MODEL}", content=content, headers=headers)
            assert (answer.status_code, list(answer.json())) == (400, ["error"])
        assert post(running, prompt="🦊 \U0010ffff \x00").status_code == 200
        assert post(running, seed=1 << 63).json()["error"].startswith("seed must be")


def test_the_gate() -> None:
    """Places are counted by account and over all, bytes over all; what is given back can be taken again."""
    gate = Gate(Limits(calls_of_key=2, pending_bytes=100, body_bytes=80), 3)
    with gate.seat("a") as first, gate.seat("a"):
        with pytest.raises(TooBusyError, match="--max-calls-per-key 2"), gate.seat("a"):
            pass
        with gate.seat("b"):
            with pytest.raises(TooBusyError, match="--queue"), gate.seat("c"):
                pass
            gate.grow(first, 90)
            with pytest.raises(TooBusyError, match="--max-pending-mb"):
                gate.grow(first, 11)
    assert (gate.bytes, dict(gate.calls)) == (0, {})
    # A single body within `body_bytes` is accepted, even where `pending_bytes` is smaller.
    gate = Gate(Limits(pending_bytes=10, body_bytes=80), 3)
    with gate.seat("a") as seat:
        gate.grow(seat, 80)


def test_calls_at_once_of_a_key() -> None:
    """A key over its calls at once gets 429 with Retry-After and nothing is accepted; others go on."""
    accounts = {"alice": [SecretStr("a1"), SecretStr("a2")], "bob": [SecretStr("b")]}
    settings = GatewaySettings(accounts=accounts, limits=Limits(calls_of_key=2), latency_s=60.0)
    with EmbeddedGateway(settings) as running, httpx.Client(base_url=running.url, timeout=30) as client:

        def submit(key: str, path: str = f"/v2/{MODEL}") -> httpx.Response:
            return client.post(path, json={"prompt": "a", "data_urls": [photo()]}, headers={"x-api-key": key})

        assert [submit(key).status_code for key in ("a1", "a2", "a1", "b")] == [200, 200, 429, 200]
        for path in (f"/v1/{MODEL}", f"/v2/{MODEL}", "/upload-asset"):
            refused = submit("a2", path)
            assert refused.status_code == 429
            assert refused.json()["error"].endswith("(--max-calls-per-key 2)")
            assert int(refused.headers["retry-after"]) >= 1
        assert len(running.account_state.records) == 3


def test_bytes_at_once() -> None:
    """Bodies over the bytes of all calls at once get 429, and are taken once there is room."""
    limits = Limits(pending_bytes=150_000, body_bytes=100_000)
    settings = GatewaySettings(limits=limits, latency_s=60.0)
    with EmbeddedGateway(settings) as running, httpx.Client(base_url=running.url, timeout=30, headers=KEY) as client:
        body = {"prompt": "a", "image_urls": [photo(230)]}
        answers = [client.post(f"/v2/{MODEL}", json=body) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert "--max-pending-mb" in answers[2].json()["error"]
        assert client.post(f"/v2/{MODEL}", json={"prompt": "a"}).status_code == 200
        assert len(running.account_state.records) == 3


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_our_client_waits_for_its_turn(tmp_path: Path, version: str) -> None:
    """A refusal for too many calls at once is 'not accepted' to our client: every row is drawn, and paid once."""
    with api(limits=Limits(calls_of_key=2), latency_s=0.05) as running:
        result = generate(running, tmp_path, 12, max_in_flight=8, api_version=version)
        assert (result.generated, result.held, result.failed) == (12, 0, 0)
        assert_paid_once(running, 12)
        calls = running.account_state.calls["run" if version == "v1" else "submit"]
        assert calls > 12  # some calls were refused and sent again


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_our_client_hears_what_is_too_large(tmp_path: Path, version: str) -> None:
    """A body that is too large is a row that the API refuses: not billed, and not held as if it might have been."""
    with api(limits=Limits(body_bytes=100)) as running:
        result = generate(running, tmp_path, 2, api_version=version)
        assert (result.generated, result.held, result.failed) == (0, 0, 2)
        assert not running.account_state.records
