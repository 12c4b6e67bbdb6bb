"""A reverse proxy on a real socket in front of a real S3 server, in which faults change requests and answers.

The proxy signs what it passes on anew, in the name of the same user, so a fault may change anything.
"""

import asyncio
import io
import ipaddress
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

import aiohttp
from aiohttp import web
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from yarl import URL

_PASSED_ON = ("content-type", "if-none-match", "x-amz-checksum-mode", "x-amz-copy-source")


@dataclass(slots=True)
class Call:
    """One request of a client: `headers` have lower-case names; `body` is without the framing of aws-chunked."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    raw_body: bytes

    @property
    def is_put(self) -> bool:
        """Whether it writes an object."""
        return self.method == "PUT" and bool(self.key)

    @property
    def is_list(self) -> bool:
        """Whether it lists a bucket."""
        return self.method == "GET" and not self.key and "list-type" in self.query

    @property
    def is_conditional(self) -> bool:
        """Whether it is a put that must not overwrite."""
        return self.is_put and "if-none-match" in self.headers


@dataclass(slots=True)
class Answer:
    """What goes back to the client."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def refusal(status: int, code: str, message: str = "", **headers: str) -> Answer:
    """An S3 error with its XML body."""
    text = f"<Error><Code>{code}</Code><Message>{message or code}</Message></Error>"
    return Answer(status, {"content-type": "application/xml"} | headers, f'<?xml version="1.0"?>{text}'.encode())


class Fault:
    """A fault that changes nothing; subclasses override what they change."""

    async def before(self, call: Call) -> Answer | None:
        """Change a request, or answer it instead of the server."""

    async def after(self, call: Call, answer: Answer) -> Answer:
        """Change an answer."""
        return answer


class S3Proxy:
    """The proxy. Each of `faults` handles every request in turn; `calls` holds the requests so far."""

    def __init__(self, upstream: str, secrets: dict[str, str], faults: Sequence[Fault], tls: Path | None) -> None:
        self.faults = list(faults)
        self.calls: list[Call] = []
        self.url = ""
        self.certificate = tls / "certificate.pem" if tls else None
        self._tls = tls
        self._upstream = upstream
        self._secrets = secrets
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> "S3Proxy":
        """Serve on a free port of loopback."""
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def stop(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=1)
        self._loop.run_until_complete(self._begin(runner))
        self._loop.run_forever()
        self._loop.run_until_complete(self._session.close())
        self._loop.run_until_complete(runner.cleanup())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _begin(self, runner: web.AppRunner) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        await runner.setup()
        context = _tls_context(self._tls) if self._tls else None
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"http{'s' if context else ''}://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()

    async def _handle(self, request: web.Request) -> web.Response:
        call = await _call_of(request)
        self.calls.append(call)
        answer = None
        for fault in self.faults:
            answer = answer or await fault.before(call)
        if answer is None:
            answer = await self._pass_on(call)
        for fault in self.faults:
            answer = await fault.after(call, answer)
        headers = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
        if call.method == "HEAD":
            headers["content-length"] = answer.headers.get("content-length", "0")
        return web.Response(status=answer.status, headers=headers, body=answer.body)

    async def _pass_on(self, call: Call) -> Answer:
        path = quote(f"{call.bucket}/{call.key}" if call.key else call.bucket, safe="/~-_.")
        query = urlencode(sorted(call.query.items()), quote_via=quote)
        url = f"{self._upstream}/{path}" + (f"?{query}" if query else "")
        headers = {name: value for name, value in call.headers.items() if name in _PASSED_ON}
        signed = AWSRequest(method=call.method, url=url, data=call.body or None, headers=headers)
        user = call.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]
        S3SigV4Auth(Credentials(user, self._secrets.get(user, "unknown")), "s3", "us-east-1").add_auth(signed)
        target = URL(url, encoded=True)
        async with self._session.request(
            call.method, target, data=io.BytesIO(call.body), headers=dict(signed.headers.items()), allow_redirects=False
        ) as response:
            answer_headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, answer_headers, await response.read())


_HOP_BY_HOP = {"transfer-encoding", "content-length", "connection", "content-encoding", "date", "server"}


async def _call_of(request: web.Request) -> Call:
    path, _, query = request.raw_path.partition("?")
    bucket, _, key = unquote(path.removeprefix("/")).partition("/")
    headers = {name.lower(): value for name, value in request.headers.items()}
    raw = await request.read()
    chunked = "aws-chunked" in headers.get("content-encoding", "")
    body = unframed(raw) if chunked else raw
    return Call(request.method, bucket, key, dict(parse_qsl(query, keep_blank_values=True)), headers, body, raw)


def unframed(data: bytes) -> bytes:
    """The content of a body in aws-chunked framing."""
    content = b""
    while data:
        line, _, data = data.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            break
        content, data = content + data[:size], data[size + 2 :]
    return content


def _tls_context(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context
