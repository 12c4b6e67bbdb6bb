"""Photographs in a bucket, on a disk and on the web, and runs that refer to them."""

import asyncio
import contextlib
import hashlib
import importlib.util
import io
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from PIL import Image
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.prepare import RunSpec, plan_only
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.object_store import close_connections

KEY = "SG_0123456789abcdef"
PHOTOS, ROWS = 40, 300
_NAMES = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
"""What scikit-image ships of real photographs and scans."""


class Wire:
    """A relay in front of a server that keeps every byte that clients send, and may turn calls away with 403."""

    def __init__(self, target: str, refuses: Callable[[bytes], bool] = lambda _: False) -> None:
        host, _, port = target.removeprefix("http://").rstrip("/").partition(":")
        self._target = (host, int(port))
        self._refuses = refuses
        self.sent: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()

    @property
    def log(self) -> bytes:
        return b"\n".join(self.sent)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            back = threading.Thread(target=_pump, args=(server, client, None), daemon=True)
            back.start()
            _pump(client, server, self._note)
            back.join(30)

    def _note(self, data: bytes) -> bytes | None:
        self.sent.append(data)
        if self._refuses(data):
            return b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        return None


def _pump(source: socket.socket, sink: socket.socket, note: Callable[[bytes], bytes | None] | None) -> None:
    try:
        while data := source.recv(1 << 16):
            answer = note(data) if note else None
            if answer is not None:
                source.sendall(answer)
                break
            sink.sendall(data)
    except OSError:
        pass
    for connection in (source, sink):
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR if note else socket.SHUT_WR)


class PhotoServer:
    """A web server on this machine: what is in `files` is there, `forbidden` answers 403."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.marks = True
        self.asked: list[tuple[str, dict[str, str]]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> str:
        self._runner = web.ServerRunner(web.Server(self._serve))  # type: ignore[arg-type]
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _serve(self, request: web.BaseRequest) -> web.Response:
        self.asked.append((str(request.rel_url), dict(request.headers)))
        if request.path == "/forbidden":
            return web.Response(status=403)
        data = self.files.get(request.path.removeprefix("/"))
        if data is None:
            return web.Response(status=404)
        mark = f'"{hashlib.sha256(data).hexdigest()[:8]}"'
        if request.headers.get("if-none-match") == mark:
            return web.Response(status=304)
        return web.Response(body=data, headers={"etag": mark} if self.marks else {})


@cache
def photographs() -> Mapping[str, bytes]:
    """Forty photographs: twenty as scikit-image ships them, and a half of each."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0], "data")
    pictures = {name: (folder / name).read_bytes() for name in _NAMES}
    for name in _NAMES:
        with Image.open(io.BytesIO(pictures[name])) as image:
            half, sink = image.convert("RGB").crop((0, 0, image.width // 2, image.height)), io.BytesIO()
            half.save(sink, "JPEG", quality=90)
        pictures[f"half_{Path(name).stem}.jpg"] = sink.getvalue()
    assert len({hashlib.sha256(data).digest() for data in pictures.values()}) == PHOTOS
    return pictures


@dataclass
class World:
    """Forty photographs in three places, and a manifest of 300 rows beside those on the disk."""

    folder: Path
    photos: Mapping[str, bytes]
    places: dict[str, str]
    server: PhotoServer
    s3: Any
    bucket: str
    stores: int = 0
    rows: list[list[str]] = field(default_factory=list)

    @property
    def manifest(self) -> str:
        return str(self.folder / "m" / "prompts.parquet")

    def rewrite(self, name: str, data: bytes) -> None:
        """Put other bytes behind a name."""
        place = self.places[name]
        if place.startswith("s3://"):
            self.s3.pipe_file(place.removeprefix("s3://"), data)
        elif place.startswith("http"):
            self.server.files[name] = data
        else:
            (self.folder / "m" / "photos" / name).write_bytes(data)

    def rows_with(self, *names: str) -> int:
        return sum(any(self.places[name] in row for name in names) for row in self.rows)


@pytest.fixture
def world(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("PREFECT_IMAGEGEN_CACHE", str(tmp_path / "cache"))
    server, photos = PhotoServer(), photographs()
    fs = fsspec.filesystem("s3", **s3.options, skip_instance_cache=True, use_listings_cache=False)
    bucket = f"images/{secrets.token_hex(6)}"
    (tmp_path / "m" / "photos").mkdir(parents=True)
    places = {}
    for number, name in enumerate(photos):
        places[name] = (
            f"s3://{bucket}/{name}",
            f"photos/{name}" if number % 2 else f"file://{tmp_path}/m/photos/{name}",
            f"{server.url}/{name}",
        )[number % 3]
    made_world = World(tmp_path, photos, places, server, fs, bucket)
    for name, data in photos.items():
        made_world.rewrite(name, data)
    names = list(photos)
    made_world.rows = [[places[names[(7 * row + 11 * n) % PHOTOS]] for n in range(row % 5)] for row in range(ROWS)]
    write(made_world, made_world.rows)
    yield made_world
    close_connections(fs)
    server.close()


def write(world: World, rows: list[list[str]], **more: list[Any]) -> None:
    prompts = [f"number {n}, as in the pictures" for n in range(len(rows))]
    pq.write_table(
        pa.table({"prompt": prompts, "image_urls": pa.array(rows, pa.list_(pa.string())), **more}), world.manifest
    )


def generate(
    world: World, gateway_url: str, s3_options: dict[str, Any], store: str = "store", **options: Any
) -> RunResult:
    return prefect_imagegen.generate(
        world.manifest,
        str(world.folder / store),
        backend=ProviderSettings(base_url=gateway_url, api_key=SecretStr(KEY), max_in_flight=16),
        reference_storage_options=s3_options,
        **({"values": {"image_format": "jpeg"}} | options),
    )


def metadata(world: World, result: RunResult, store: str = "store") -> list[dict[str, Any]]:
    rows = pq.read_table(world.folder / store / "runs" / str(result.run_id) / "metadata").to_pylist()
    return sorted(rows, key=lambda row: row["row_index"])


def everything(folder: Path) -> bytes:
    """All that a store holds, Parquet files as text."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            texts.append(json.dumps(pq.read_table(path).to_pylist(), default=str).encode())
        elif path.is_file() and "images" not in path.relative_to(folder).parts[0]:
            texts.append(path.read_bytes())
    return b"\n".join(texts)


def sandbox(**settings: Any) -> EmbeddedGateway:
    return EmbeddedGateway(GatewaySettings(allow_loopback=True, **settings))


def plan(world: World, s3_options: dict[str, Any], **options: Any) -> PlanSummary:
    spec = RunSpec(
        world.manifest,
        StoreSettings(str(world.folder / "store")),
        ProviderSettings(base_url="http://127.0.0.1:1", api_key=SecretStr(KEY)),
        RunOptions(reference_storage_options=s3_options, **options),
    )
    return asyncio.run(plan_only(spec))
