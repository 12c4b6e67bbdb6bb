"""Runs whose pictures lie on hosts that are busy, odd or gone: rows wait or end, and nothing is sent unprepared."""

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.prepare import RowsRefusedError, RunSpec, plan_only
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings


def turned(size: tuple[int, int] = (300, 200)) -> bytes:
    """A photograph that lies on its side."""
    sink, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", size, "navy").save(sink, "JPEG", exif=exif)
    return sink.getvalue()


def plain(size: tuple[int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, "teal").save(sink, "PNG")
    return sink.getvalue()


class PictureHost:
    """A web server: what `files` has of a path with its query is there; while `is_busy` it takes no requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.is_busy = False
        self.refusals = 0
        """So many requests are turned away with 503 before the others are answered."""
        self.asked: list[str] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        data = self.files.get(request.path)
        mark = f'"{hash(data)}"'
        status, after = (404, "") if data is None else (200, "")
        if self.is_busy or self.refusals:
            status, after = 503, "3600" if self.is_busy else "0"
            self.refusals = max(0, self.refusals - 1)
        elif data is not None and request.headers.get("if-none-match") == mark:
            status = 304
        body = data if status == 200 and data else b""
        request.send_response(status)
        for name, value in (("etag", mark), ("content-length", str(len(body))), ("retry-after", after)):
            if value:
                request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PictureHost]:
    monkeypatch.setenv("PREFECT_IMAGEGEN_CACHE", str(tmp_path / "cache"))
    started = PictureHost()
    yield started
    started.close()


def write(folder: Path, cells: list[Any]) -> str:
    path = folder / "prompts.jsonl"
    rows = [{"prompt": f"number {n}", "image_urls": cell} for n, cell in enumerate(cells)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def gateway(*faults: dict[str, Any], **settings: Any) -> EmbeddedGateway:
    script = FaultScript(faults=[Fault(**fault) for fault in faults])
    return EmbeddedGateway(GatewaySettings(allow_loopback=True, engine="static", faults=script, **settings))


def generate(running: EmbeddedGateway, folder: Path, **options: Any) -> RunResult:
    return prefect_imagegen.generate(
        str(folder / "prompts.jsonl"),
        str(folder / "store"),
        backend=ProviderSettings(base_url=running.url, api_key=SecretStr("k")),
        **options,
    )


def plan(folder: Path, **options: Any) -> PlanSummary:
    spec = RunSpec(
        str(folder / "prompts.jsonl"),
        StoreSettings(str(folder / "store")),
        ProviderSettings(base_url="http://127.0.0.1:1", api_key=SecretStr("k")),
        RunOptions(**options),
    )
    return asyncio.run(plan_only(spec))


def metadata(folder: Path, result: RunResult) -> list[dict[str, Any]]:
    rows = pq.read_table(folder / "store" / "runs" / str(result.run_id) / "metadata").to_pylist()
    return sorted(rows, key=lambda row: row["row_index"])


@pytest.mark.parametrize("identity", ["url", "content"])
def test_a_busy_host_is_not_a_wrong_row(identity: str, host: PictureHost, tmp_path: Path) -> None:
    """Rows of a busy host are refused with 'later', or left for the next run: never invalid, and never called."""
    host.files["/a.png"] = plain((128, 96))
    host.is_busy = True
    write(tmp_path, [f"{host.url}/a.png", None])
    summary = plan(tmp_path, reference_identity=identity)
    assert (summary.counts["busy"], summary.counts["invalid"], summary.counts["new"]) == (1, 0, 1)
    (error,) = summary.errors
    assert error.is_busy
    assert "again later" in error.reason
    with gateway() as running:
        with pytest.raises(RowsRefusedError, match="busy or out of reach for now") as caught:
            generate(running, tmp_path, reference_identity=identity)
        assert caught.value.kind == "references_busy"
        assert "Correct the rows" not in caught.value.remedy
        assert not running.account_state.records
        skipping = generate(running, tmp_path, reference_identity=identity, on_invalid="skip")
        assert (skipping.generated, skipping.failed, skipping.invalid) == (1, 1, 0)
        assert skipping.failures == {"reference_busy": 1}
        host.is_busy = False
        later = generate(running, tmp_path, reference_identity=identity)
        assert (later.generated, later.reused, later.failed) == (1, 1, 0)
        assert running.account_state.statistics()["billed_twice"] == 0


def test_a_host_that_is_busy_for_a_moment(host: PictureHost, tmp_path: Path) -> None:
    """A host that turns the first requests away holds nothing up: its pictures are asked for again."""
    host.files["/a.png"] = plain((128, 96))
    host.refusals = 2
    write(tmp_path, [f"{host.url}/a.png"])
    assert plan(tmp_path).counts["new"] == 1
    assert host.asked == ["/a.png"] * 3


def test_what_was_looked_at_before_serves_while_a_host_is_busy(host: PictureHost, tmp_path: Path) -> None:
    """A warm cache answers for a busy host, with a warning."""
    host.files["/a.png"] = plain((128, 96))
    write(tmp_path, [f"{host.url}/a.png"])
    assert plan(tmp_path).counts["new"] == 1
    host.is_busy = True
    summary = plan(tmp_path)
    assert (summary.counts["new"], summary.counts["busy"]) == (1, 0)
    assert [count for text, count in summary.warnings.items() if "busy" in text] == [1]


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_row_left_open_is_not_sent_unprepared(comes_back: bool, host: PictureHost, tmp_path: Path) -> None:
    """A photograph that has to be turned is turned for every run of its request, also where an earlier one left it.

    Where its host is busy while that is planned, the picture is looked at before it is sent.
    """
    host.files["/a.jpg"] = turned()
    write(tmp_path, [f"{host.url}/a.jpg"])
    lost = {"fault": "disconnect", "when": "before", "on": ["submit"], "times": 1}
    with gateway(lost) as running:
        first = generate(running, tmp_path, on_unknown="hold")
        assert (first.held, len(running.account_state.billed)) == (1, 0)
        if not comes_back:
            (tmp_path / "cache" / "references.sqlite").unlink()
            host.is_busy = True
            held = generate(running, tmp_path, history_lag=0.0)
            assert held.failures == {"reference_busy": 1}
            assert not running.account_state.billed
            host.is_busy = False
        second = generate(running, tmp_path, history_lag=0.0)
        assert second.generated == 1
        (record,) = running.account_state.billed
        assert "/assets/" in record.body["image_urls"][0]
    (row,) = metadata(tmp_path, second)
    assert json.loads(row["applied"])["references"] == [{"position": 1, "changes": ["turned upright"]}]
    assert (row["references"][0]["width"], row["references"][0]["height"]) == (200, 300)


def test_a_row_left_open_whose_picture_is_gone(host: PictureHost, tmp_path: Path) -> None:
    """A row that was paid is fetched though its reference no longer exists: it stays to be settled, not invalid."""
    host.files["/a.jpg"] = turned()
    write(tmp_path, [f"{host.url}/a.jpg"])
    with gateway({"fault": "disconnect", "when": "after", "on": ["submit"], "times": 1}) as running:
        assert generate(running, tmp_path, on_unknown="hold").held == 1
        host.files.clear()
        second = generate(running, tmp_path, history_lag=0.0)
        assert (second.generated, second.calls, len(running.account_state.billed)) == (1, 0, 1)


def test_signed_references_that_differ_in_their_query_only(host: PictureHost, tmp_path: Path) -> None:
    """Two signed addresses of one path are two pictures: each row gets the facts, and the changes, of its own."""
    paths = ["/get?id=1&X-Amz-Signature=s", "/get?id=2&X-Amz-Signature=s", "/get?id=3&X-Amz-Signature=s"]
    pictures = [turned(), plain((128, 96)), plain((160, 100))]
    host.files |= dict(zip(paths, pictures, strict=True))
    write(tmp_path, [[f"{host.url}{path}" for path in reversed(paths)], *([f"{host.url}{path}"] for path in paths)])
    with gateway() as running:
        result = generate(running, tmp_path, reference_identity="content")
        assert result.generated == 4
    sizes = [
        [(reference["width"], reference["height"]) for reference in row["references"]]
        for row in metadata(tmp_path, result)
    ]
    assert sizes == [[(160, 100), (128, 96), (200, 300)], [(200, 300)], [(128, 96)], [(160, 100)]]
    changed = [json.loads(row["applied"]).get("references") for row in metadata(tmp_path, result)]
    upright = ["turned upright"]
    assert changed == [[{"position": 3, "changes": upright}], [{"position": 1, "changes": upright}], None, None]


NASTY = [
    "http://a..b/x.png",
    f"http://{'a' * 64}.example/x.png",
    "http://[::1",
    "http://shop.example:99999/x.png",
    "http://xn--/x.png",
    "http://xn--" + "a" * 60 + "/x.png",
    "http://\u00ad/x.png",
    "http://%00/x.png",
    "http://\udcff.example/x.png".encode("ascii", "backslashreplace").decode(),
    "https://256.256.256.256/x.png",
    "http://[v1.a]/x.png",
    "http:///x.png",
    "HTTP://0/x.png",
]


@pytest.mark.parametrize("check", ["all", "none"])
def test_one_odd_reference_ends_one_row(check: str, host: PictureHost, tmp_path: Path) -> None:
    """Whatever a reference is, it ends its own row, in the plan or when it is sent; the run goes on."""
    host.files["/a.png"] = plain((128, 96))
    write(tmp_path, [f"{host.url}/a.png", *NASTY])
    with gateway() as running:
        result = generate(running, tmp_path, check_references=check, on_invalid="skip", reference_transport="upload")
        assert result.generated == 1
        assert result.stop_reason is None
        assert result.generated + result.failed + result.invalid == 1 + len(NASTY)
        assert len(running.account_state.billed) == 1
    assert all(row["error_message"] for row in metadata(tmp_path, result)[1:])


def test_an_address_out_of_html_is_asked_for_as_it_is_meant(host: PictureHost, tmp_path: Path) -> None:
    """`&amp;` in an address stays in the key of its request, and goes to nobody."""
    host.files["/a.png?w=1&h=2"] = plain((128, 96))
    write(tmp_path, [f"{host.url}/a.png?w=1&amp;h=2"])
    with gateway() as running:
        assert generate(running, tmp_path).generated == 1
        assert running.account_state.billed[0].body["image_urls"] == [f"{host.url}/a.png?w=1&h=2"]


def test_the_gateway_is_as_patient(host: PictureHost) -> None:
    """The gateway asks a busy host again too, says 'fetched' of what it cannot have, and breaks at no address."""
    host.files["/a.png"] = plain((128, 96))
    host.refusals = 1
    with gateway() as running, httpx.Client(base_url=running.url, headers={"x-api-key": "k"}) as client:

        def ask(url: str) -> httpx.Response:
            body = {"prompt": "a", "image_urls": [url]}
            return client.post("/v1/flux-2-klein-9b", json=body, timeout=60)

        assert ask(f"{host.url}/a.png").status_code == 200
        host.is_busy = True
        answer = ask(f"{host.url}/a.png")
        assert (answer.status_code, "could not be fetched" in answer.text) == (400, True)
        for url in NASTY:
            assert ask(url).status_code == 400, url
    assert len(running.account_state.billed) == 1
