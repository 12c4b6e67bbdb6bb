"""The dialect of docs/extend/dialect.md, "One of them": one file, one entry, and its workers make a manifest."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import prefect_imagegen
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.ports import Delivery
from prefect_imagegen.providers.pool import dialects
from tests.contracts.test_dialects import REQUEST
from tests.support.gateway_runs import metadata
from tests.support.manifests import manifest_of

PAGE = Path(__file__).parents[2] / "docs" / "extend" / "dialect.md"


class WebUiServer(ThreadingHTTPServer):
    """A server of the web UI's API, which misbehaves on demand."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: list[str] = []
        self.bodies: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    server: WebUiServer

    def do_GET(self) -> None:
        self._send(200 if self.path == "/sdapi/v1/options" else 404, {})

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(fields)
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "drop":
            return
        if fault.isdigit():
            self._send(int(fault), {"error": "OutOfMemoryError", "detail": "", "errors": "CUDA out of memory"})
            return
        sink = BytesIO()
        Image.effect_noise((fields["width"], fields["height"]), 50).save(sink, "PNG")
        data = sink.getvalue()[: 200 if fault == "truncated" else None]
        images = [] if fault == "empty" else [base64.b64encode(data).decode()]
        self._send(200, {"images": images, "parameters": fields, "info": json.dumps({"seed": fields["seed"]})})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def webui(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebUiServer]:
    """A server, and the page's dialect as one more entry."""
    source = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), names)
    monkeypatch.setattr(dialects, "DIALECTS", {**dialects.DIALECTS, "webui": names["WebUi"]})
    monkeypatch.setattr("prefect_imagegen.providers.pool.entry.DIALECTS", dialects.DIALECTS)
    with WebUiServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def test_workers_of_another_protocol_make_a_manifest(webui: WebUiServer, tmp_path: Path) -> None:
    """With the one entry, `--endpoint webui+URL` draws a manifest; a row that fails is drawn again, unpaid."""
    webui.faults = ["500", "", "drop", "truncated"]
    path = manifest_of(tmp_path, prompt=["a cup", "a pan", "a jug"], aspect_ratio=["1:1", "16:9", "1:1"])
    result = prefect_imagegen.generate(
        path, tmp_path / "store", backend="pool", endpoints=[f"webui+{webui.url}"], deadline=60.0
    )
    assert (result.generated, result.cost_usd, result.paid) == (3, 0.0, 0)
    assert {row["endpoint"] for row in metadata(tmp_path, result)} == {webui.url}
    assert {body["prompt"] for body in webui.bodies} == {"a cup", "a pan", "a jug"}
    assert {(body["width"], body["height"]) for body in webui.bodies} == {(1024, 1024), (1360, 768)}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        *(("401", "auth"), ("404", "protocol"), ("422", "invalid_request"), ("429", "rate_limited")),
        *(("500", "server_error"), ("503", "unavailable"), ("drop", "unknown")),
        *(("truncated", "bad_output"), ("empty", "bad_output")),
    ],
)
def test_its_failures_have_the_names_that_the_pool_knows(fault: str, kind: str, webui: WebUiServer) -> None:
    """The same trouble is the same kind of error as with any other dialect."""
    webui.faults = [fault]

    async def make(*references: str) -> Delivery:
        dialect = dialects.DIALECTS["webui"](webui.url, None, 10.0)
        try:
            return await dialect.collect(await dialect.submit(REQUEST, references))
        finally:
            await dialect.aclose()

    with pytest.raises(ProviderError) as failure:
        asyncio.run(make())
    assert failure.value.kind == kind
    with pytest.raises(ProviderError) as refusal:
        asyncio.run(make("data:image/png;base64,"))
    assert refusal.value.kind == "invalid_request"
