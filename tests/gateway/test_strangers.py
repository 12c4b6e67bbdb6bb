"""Callers without a right: wrong keys, other accounts' work, guessed names, foreign hosts, texts that forge logs."""

import base64
import json
import re
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from pydantic import SecretStr

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.gateway.server import EmbeddedGateway, check_settings
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.gateway.state import account as records
from tests.support.builders.images import data_url, encoded
from tests.support.gateway_process import standing_gateway

MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}
HISTORY = "/inference-request/request-history"


def photo() -> str:
    return data_url(encoded(Image.new("RGB", (64, 64), "teal")))


def raw(gateway: EmbeddedGateway, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to these raw bytes."""
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(request + b"connection: close\r\n\r\n")
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_keys_are_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is compared, in constant time, with every one that is set: time tells neither its letters nor whose."""
    compared = []
    compare = records.hmac.compare_digest
    monkeypatch.setattr(records.hmac, "compare_digest", lambda *pair: compared.append(pair) or compare(*pair))
    accounts = {"alice": [SecretStr("a1"), SecretStr("a2")], "bob": [SecretStr("b")]}
    with EmbeddedGateway(GatewaySettings(accounts=accounts, api_key=SecretStr("own"))) as gateway:
        for key, status in (("a1", 200), ("own", 200), ("a", 401), ("a11", 401), ("ÿ", 401)):
            compared.clear()
            headers = {"x-api-key": key.encode("latin-1")}
            assert httpx.get(f"{gateway.url}/v1/get-user-credits", headers=headers).status_code == status
            assert len(compared) == 4
            assert {type(compared_key) for pair in compared for compared_key in pair} == {bytes}


def test_others_see_nothing_of_a_job() -> None:
    """A job of one key is not there for another one: to poll, in the history, or told apart from none at all."""
    accounts = {"alice": [SecretStr("a")], "bob": [SecretStr("b")]}
    with EmbeddedGateway(GatewaySettings(accounts=accounts)) as gateway, httpx.Client(base_url=gateway.url) as client:
        job = client.post(f"/v2/{MODEL}", json={"prompt": "secret"}, headers={"x-api-key": "a"}).json()["request_id"]
        unknown = "00000000-0000-4000-8000-000000000000"
        for path in ("/v2/requests/{}", "/v2/requests/{}/status", "/v1/requests/{}", HISTORY + "/{}"):
            foreign = client.get(path.format(job), headers={"x-api-key": "b"})
            absent = client.get(path.format(unknown), headers={"x-api-key": "b"})
            assert foreign.status_code == absent.status_code == 404
            assert foreign.text.replace(job, "") == absent.text.replace(unknown, "")
            assert client.get(path.format(job)).status_code == 401
        assert client.get(HISTORY, headers={"x-api-key": "b"}).json()["data"] == []


WALKS = (
    "..",
    "../gateway.json",
    "..%2fa",
    "%2e%2e%2fa",
    "%2e%2e/a",
    "..%5ca",
    "a%00.png",
    "%00",
    "a" * 5000,
    "a" * 255 + ".png",
    "%ff%fe",
    "%c0%ae%c0%ae",
    "assets/../x",
    ".",
    "%2fetc%2fpasswd",
    "//etc/passwd",
)


@pytest.mark.parametrize("walk", WALKS)
def test_names_lead_nowhere(walk: str, tmp_path: Path) -> None:
    """No spelling of a name leads out of the folder of outputs or uploads, or to an error of the gateway."""
    (tmp_path / "a").write_text("secret")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gateway.json").write_text("secret")
    with EmbeddedGateway(GatewaySettings(data_dir=tmp_path / "data")) as gateway:
        httpx.post(f"{gateway.url}/upload-asset", json={"data_urls": [photo()]}, headers=KEY)
        for place in ("/generations/", "/assets/", "/v2/requests/", HISTORY + "/"):
            status, body = raw(gateway, f"GET {place}{walk} HTTP/1.1\r\nhost: localhost\r\nx-api-key: k\r\n".encode())
            assert status in (400, 404) or (place, status) == (HISTORY + "/", 200), (place, body)
            assert b"secret" not in body
            assert len(body) < 300


def test_uploads_cannot_be_guessed(tmp_path: Path) -> None:
    """Who has a picture cannot find out whether somebody else has uploaded it, nor can links lead out."""
    names = []
    for _ in range(2):
        with EmbeddedGateway(GatewaySettings(data_dir=tmp_path)) as gateway:
            urls = [
                httpx.post(f"{gateway.url}/upload-asset", json={"data_urls": [photo()]}, headers=KEY).json()[
                    "file_urls"
                ]
                for _ in range(2)
            ]
            assert urls[0] == urls[1]  # the same picture is kept once
            names.append(urlsplit(urls[0][0]).path)
    assert names[0] != names[1]
    assert re.fullmatch(r"/assets/[0-9a-f]{64}\.png", names[0])


HOSTS = (
    "evil.example",
    "evil.example:80",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.1@evil.example",
)


@pytest.mark.parametrize("host", [*HOSTS, 'a"b', "a/b", "a?b", "localhost:99999999", "[::1", "a b", "", "a#", "a\\b"])
def test_without_a_key_it_is_known_by_its_own_names(host: str) -> None:
    """A gateway without a key turns away other names than this machine's: a web page could have made them up."""
    with EmbeddedGateway(GatewaySettings()) as gateway:
        for start in ("GET /health", f"POST /v2/{MODEL}"):
            status, body = raw(gateway, f"{start} HTTP/1.1\r\nhost: {host}\r\nx-api-key: k\r\n".encode())
            assert status in (400, 421)
            assert b"http://" not in body
        for own in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8700", "app.localhost", "127.1.2.3"):
            assert raw(gateway, f"GET /health HTTP/1.1\r\nhost: {own}\r\n".encode())[0] == 200


@pytest.mark.parametrize("public", ["https://images.example.com", "https://images.example.com/gateway/"])
def test_a_public_url_is_the_only_one(public: str) -> None:
    """With `--public-url` every address in an answer begins with it, whatever a caller or a proxy says in headers."""
    forged = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "gopher", "forwarded": "host=evil.example"}
    settings = GatewaySettings(api_key=SecretStr("k"), public_url=public)
    with (
        EmbeddedGateway(settings) as gateway,
        httpx.Client(base_url=gateway.url, headers=KEY | forged | {"host": "evil.example"}) as client,
    ):
        (asset,) = client.post("/upload-asset", json={"data_urls": [photo()]}).json()["file_urls"]
        job = client.post(f"/v1/{MODEL}", json={"prompt": "a", "image_urls": [asset]}).headers["x-request-id"]
        texts = [client.get(path).text for path in (f"/v2/requests/{job}", f"{HISTORY}/{job}", HISTORY)]
        texts.append(client.post(f"/v2/{MODEL}", json={"prompt": "a"}).text)
        for text in (*texts, asset):
            assert "evil" not in text
            addresses = re.findall(r"[a-z]+://[^\"]*", text)
            assert addresses
            assert all(address.startswith(public.rstrip("/") + "/") for address in addresses)


def test_forwarded_headers_say_nothing() -> None:
    """Without `--public-url` the addresses are those of the Host that was called; X-Forwarded-* change nothing."""
    forged = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "x-forwarded-for": "1.2.3.4"}
    with EmbeddedGateway(GatewaySettings()) as gateway:
        answer = httpx.post(f"{gateway.url}/v2/{MODEL}", json={"prompt": "a"}, headers=KEY | forged)
        assert answer.json()["status_url"].startswith(gateway.url + "/")
        assert answer.headers["cache-control"] == "no-store"


def test_a_public_url_is_a_base_url() -> None:
    """What is no http(s) base URL is refused before anything is served, without the secrets in it."""
    for url in (
        "ftp://a",
        "https://u:hunter2@a",
        "https://a?token=hunter2",
        "a.example",
        "https://",
        "https://a b",
        "https://a:x",
    ):
        with pytest.raises(RefusedError, match="--public-url") as refused:
            check_settings(GatewaySettings(public_url=url), "127.0.0.1")
        assert "hunter2" not in str(refused.value)


def test_web_pages_of_others_get_nothing() -> None:
    """No answer allows another origin to read it, and no preflight is granted."""
    origin = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    with EmbeddedGateway(GatewaySettings()) as gateway:
        for method, path in (("OPTIONS", f"/v1/{MODEL}"), ("GET", "/health"), ("OPTIONS", "/upload-asset")):
            answer = httpx.request(method, gateway.url + path, headers=KEY | origin)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
            assert answer.status_code == (405 if method == "OPTIONS" else 200)


FORGED = ("\r\nx-evil: 1", "\nERROR: forged", "\x1b[31mred", "\x00", "\u2028line", "\u0085next", "%0d%0ax-evil: 1")


def test_nothing_is_forged(tmp_path: Path) -> None:
    """Line ends and escapes in prompts, ids, models and names reach neither headers nor the log of the gateway."""
    with standing_gateway(tmp_path) as gateway, httpx.Client(base_url=gateway.url, headers=KEY, timeout=30) as client:
        for text in FORGED:
            path = "".join(f"%{byte:02x}" for byte in text.encode())
            answers = [
                client.post(f"/v1/{MODEL}", json={"prompt": text, "seed": 1, "negative_prompt": text}),
                client.post(f"/v2/{MODEL}", json={"prompt": text, text: text, "image_urls": [f"https://{text}/"]}),
                client.post(f"/v1/{path}", json={"prompt": "a"}),
                client.post(f"/v1/{MODEL}", json={"prompt": "a", "sampler": text}),
                *(client.get(f"{place}/{path}") for place in ("/v2/requests", "/generations", "/assets", HISTORY)),
                client.get(HISTORY, params={"model_name": text, "per_page": text}),
            ]
            for answer in answers:
                assert answer.status_code < 500
                assert "x-evil" not in answer.headers
                if answer.headers["content-type"] == "application/json":
                    json.loads(answer.content)
                    assert not set(answer.content) & set(b"\r\n\x1b\x00")
    log = gateway.log.read_text(encoding="utf-8")
    assert "startup complete" in log
    assert "\x1b" not in log
    assert not [line for line in log.splitlines() if not line.startswith("INFO:")]


@pytest.mark.parametrize("bound", [{"keep_records": 3}, {"keep_body_bytes": 2_000}])
def test_what_others_send_is_not_forgotten_for(bound: dict[str, int]) -> None:
    """However much one account sends, another one's requests stay known, and its history does not end at theirs."""
    accounts = {"alice": [SecretStr("a")], "bob": [SecretStr("b")]}
    with (
        EmbeddedGateway(GatewaySettings(accounts=accounts, **bound)) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):

        def draw(key: str) -> str:
            answer = client.post(f"/v1/{MODEL}", json={"prompt": "x" * 500}, headers={"x-api-key": key})
            return answer.headers["x-request-id"]

        first = draw("a")
        for _ in range(10):
            draw("b")
        today = {"from_date": "2020-01-01"}
        for key, status, count in (("a", 200, 1), ("b", 410, None)):
            answer = client.get(HISTORY, params=today, headers={"x-api-key": key})
            assert (answer.status_code, answer.json().get("total")) == (status, count)
        assert client.get(f"/v1/requests/{first}", headers={"x-api-key": "a"}).json()["status"] == "COMPLETED"
        assert (running.account_state.statistics()["requests"], running.account_state.statistics()["billed"]) == (
            11,
            11,
        )


def test_what_others_make_a_host_refuse() -> None:
    """A host that is busy for one account's references is asked for another one's."""
    accounts = {"alice": [SecretStr("a")], "bob": [SecretStr("b")]}
    picture = base64.b64decode(photo().partition(",")[2])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_picture = self.path == "/picture.png"
            self.send_response(200 if is_picture else 503)
            self.send_header("content-length", str(len(picture) if is_picture else 0))
            self.end_headers()
            self.wfile.write(picture if is_picture else b"")

        def log_message(self, *_: object) -> None:
            pass

    settings = GatewaySettings(accounts=accounts, allow_loopback=True)
    with EmbeddedGateway(settings) as running, ThreadingHTTPServer(("127.0.0.1", 0), Handler) as host:
        thread = Thread(target=host.serve_forever)
        thread.start()
        try:
            for key, name, status in (*[("a", "busy.png", 400)] * 3, ("b", "picture.png", 200)):
                body = {"prompt": "a", "image_urls": [f"http://127.0.0.1:{host.server_port}/{name}"]}
                answer = httpx.post(f"{running.url}/v1/{MODEL}", json=body, headers={"x-api-key": key}, timeout=60)
                assert answer.status_code == status, answer.text[:300]
        finally:
            host.shutdown()
            thread.join()
