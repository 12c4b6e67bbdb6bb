"""Image to image from private photographs: in a bucket, on a disk and on the web, in every transport."""

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
from prefect_imagegen.app.planning.prepare import RowsRefusedError, RunSpec, plan_only
from prefect_imagegen.app.planning.stored_plan import StoredPlan
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


SECRET_SIGNS = (KEY.encode(), b"X-Amz-Signature", b"X-Amz-Credential", b"/assets/", b"base64")


@pytest.mark.s3
@pytest.mark.timeout(400)
@pytest.mark.parametrize("transport", ["auto", "upload", "data-url", "presign"])
def test_photographs_from_everywhere(transport: str, world: World, s3: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Three hundred rows over forty photographs arrive in every transport, and nothing secret goes where it should not.

    The relays in front of gateway and bucket keep what was said: the key goes to the gateway alone, a signature into
    the body of a call and from the gateway to the bucket alone, and nothing of either is left in the store.
    """
    rows = world.rows
    if transport == "presign":  # a file of this machine cannot be
        rows = [[place for place in row if "://" in place and not place.startswith("file")] for row in rows]
        write(world, rows)
    engine = "sandbox" if transport == "auto" else "static"
    with sandbox(engine=engine) as gateway, Wire(gateway.url) as api, Wire(s3.endpoint) as bucket:
        options = s3.options | {"endpoint_url": bucket.url}
        result = generate(world, api.url, options, reference_transport=transport, keep_references=True)
        assert result.failures == {}
        assert (result.generated, result.held) == (ROWS, 0)
        bodies = [record.body for record in gateway.account_state.billed]
        assert gateway.account_state.statistics()["billed_twice"] == 0
        uploads = gateway.account_state.calls["upload"]
    urls = {url for body in bodies for url in body["image_urls"]}
    at = {name: place for name, place in world.places.items() if any(place in row for row in rows)}
    in_bucket = [name for name, place in at.items() if place.startswith("s3")]
    on_web = [name for name, place in at.items() if place.startswith("http")]
    assert {url for url in urls if url.startswith(world.server.url)} == {at[name] for name in on_web}
    assert (
        uploads
        == len([url for url in urls if "/assets/" in url])
        == {
            "auto": len(at) - len(on_web) - len(in_bucket),
            "upload": len(at) - len(on_web),
            "data-url": 0,
            "presign": 0,
        }[transport]
    )
    assert any("X-Amz-Signature" in url for url in urls) == (transport in ("auto", "presign"))
    # The gateway keeps a hash of what came inside a call.
    assert any(url.startswith("sha256:") for url in urls) == (transport == "data-url")
    # The metadata knows what was used, and the store has it.
    by_place = {place: world.photos[name] for name, place in world.places.items()}
    for row, places in zip(metadata(world, result), rows, strict=True):
        assert [reference["sha256"] for reference in row["references"]] == [
            hashlib.sha256(by_place[p]).hexdigest() for p in places
        ]
        assert [reference["uri"] for reference in row["references"]] == [
            place if "://" in place else f"file://{world.folder}/m/{place}" for place in places
        ]
        assert all(reference["width"] >= 64 and reference["height"] >= 64 for reference in row["references"])
    stored = {path.stem: path.read_bytes() for path in (world.folder / "store" / "references").iterdir()}
    assert stored == {hashlib.sha256(by_place[place]).hexdigest(): by_place[place] for place in at.values()}
    # The wire, the store and what was printed.
    assert KEY.encode() in api.log
    assert KEY.encode() not in bucket.log
    assert b"x-api-key" not in bucket.log.lower()
    for path, headers in world.server.asked:
        assert KEY not in str(headers)
        assert "X-Amz" not in path
    for call in api.sent:  # a signature is in the body of a call, never in an address or a header
        assert b"X-Amz-" not in call.partition(b"\r\n\r\n")[0] or not call.startswith((b"GET", b"POST", b"HEAD"))
    said = everything(world.folder / "store") + "".join(capfd.readouterr()).encode()
    assert [sign for sign in SECRET_SIGNS if sign in said] == []


@pytest.mark.s3
@pytest.mark.timeout(400)
def test_a_changed_photograph(world: World, s3: Any) -> None:
    """Other bytes behind a name make exactly their rows anew where content is the identity, and none under a URL."""
    names = list(world.photos)
    in_bucket, on_disk, on_web = names[0], names[1], names[2]
    other = world.photos[names[5]]
    with sandbox(engine="static") as gateway:
        first = generate(world, gateway.url, s3.options)
        assert first.generated == ROWS
        calls = sum(gateway.account_state.calls[name] for name in ("submit", "upload"))
        same = generate(world, gateway.url, s3.options)
        assert (same.generated, same.reused) == (0, ROWS)
        assert sum(gateway.account_state.calls[name] for name in ("submit", "upload")) == calls
        for name in (in_bucket, on_disk, on_web):
            world.rewrite(name, other)
        changed = generate(world, gateway.url, s3.options)
        assert changed.generated == world.rows_with(in_bucket, on_disk)
        assert changed.reused == ROWS - changed.generated
        by_content = generate(world, gateway.url, s3.options, reference_identity="content")
        assert by_content.generated == world.rows_with(*(n for n in names if world.places[n].startswith("http")))
        world.rewrite(on_web, world.photos[names[8]])
        again = generate(world, gateway.url, s3.options, reference_identity="content")
        assert again.generated == world.rows_with(on_web)
        assert gateway.account_state.statistics()["billed_twice"] == 0


def plan(world: World, s3_options: dict[str, Any], **options: Any) -> PlanSummary:
    spec = RunSpec(
        world.manifest,
        StoreSettings(str(world.folder / "store")),
        ProviderSettings(base_url="http://127.0.0.1:1", api_key=SecretStr(KEY)),
        RunOptions(reference_storage_options=s3_options, **options),
    )
    return asyncio.run(plan_only(spec))


@pytest.mark.s3
def test_bad_references_are_named_before_any_call(world: World, s3: Any) -> None:
    """What is missing, broken, huge, forbidden or hostile is named with its row and its reason; nothing is called."""
    good, sink = world.places[next(iter(world.photos))], io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(sink, "PNG")
    photos = world.folder / "m" / "photos"
    (photos / "huge.png").write_bytes(sink.getvalue())
    (photos / "broken.jpg").write_bytes(next(iter(world.photos.values()))[:9_000])
    (photos / "fat.png").write_bytes(next(iter(world.photos.values())) + bytes(40_000_000))
    (photos / "words.png").write_text("not a picture")
    bad = {
        "photos/missing.png": "does not exist",
        f"s3://{world.bucket}/missing.png": "does not exist",
        "photos/huge.png": "9000x9000 pixels, more than 64 megapixels",
        "photos/broken.jpg": "no whole image",
        "photos/fat.png": "bytes, more than 33554432",
        "photos/words.png": "no whole image",
        "photos": "no file",
        "/dev/zero": "no file",
        f"{world.server.url}/forbidden": "status 403",
        f"{world.server.url}/missing.png": "status 404",
        "http://169.254.169.254/latest/meta-data/": "not a public address",
        "http://192.168.0.1/a.png": "not a public address",
        "http://[::ffff:10.0.0.1]/a.png": "not a public address",
        "s3://no-such-bucket-anywhere/a.png": "does not exist",
    }
    write(world, [[good], *([good, place] for place in bad)])
    summary = plan(world, s3.options)
    assert (summary.rows, summary.counts["new"], summary.counts["invalid"]) == (len(bad) + 1, 1, len(bad))
    for number, (error, reason) in enumerate(zip(summary.errors, bad.values(), strict=True), 1):
        assert (error.row, error.column) == (number, "image_urls")
        assert reason in error.reason
        assert list(bad)[number - 1].rpartition("/")[2] in str(error)
    with sandbox() as gateway, pytest.raises(RowsRefusedError, match="14 of 15 rows are invalid"):
        generate(world, gateway.url, s3.options)
    assert not gateway.account_state.records
    # Wrong keys of the bucket are told as such.
    write(world, [[good]])
    (error,) = plan(world, s3.options | {"secret": "wrong"}).errors
    assert "--reference-storage-option" in error.reason
    # Without a look, only what content identity needs is read.
    write(world, [[f"{world.server.url}/missing.png"], ["photos/huge.png"], ["photos/missing.png"]])
    unseen = plan(world, s3.options, check_references="none")
    assert (unseen.counts["new"], [error.row for error in unseen.errors]) == (2, [2])
    assert plan(world, s3.options, max_reference_megapixels=100.0).counts["new"] == 1


def test_a_sample_is_looked_at(world: World) -> None:
    """With `sample` about a tenth of the web references is asked for, the same ones each time."""
    write(world, [[f"{world.server.url}/missing-{n}.png"] for n in range(200)])
    summaries = [plan(world, {}, check_references="sample") for _ in range(2)]
    assert 5 <= summaries[0].counts["invalid"] == len(world.server.asked) // 2 <= 40
    assert [str(error) for error in summaries[0].errors] == [str(error) for error in summaries[1].errors]


def test_each_reference_is_read_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of many windows asks for each reference once, also where the server names no version of it."""
    monkeypatch.setattr("prefect_imagegen.inputs.manifests.manifest.WINDOW_ROWS", 10)
    world.server.marks = False
    places = [place for place in world.places.values() if place.startswith("http")]
    write(world, [[places[n % len(places)]] for n in range(100)])
    assert plan(world, {}).counts["new"] == 100
    assert sorted(path for path, _ in world.server.asked) == sorted(place[len(world.server.url) :] for place in places)


@pytest.mark.s3
def test_pictures_of_other_kinds_are_made_plain(world: World, s3: Any) -> None:
    """A photograph on its side is sent upright, and `applied` says so; `presign`, which could not, refuses its row."""
    image, sink = Image.new("RGB", (300, 200), "navy"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(sink, "JPEG", exif=exif)
    places = [f"s3://{world.bucket}/turned.jpg", f"{world.server.url}/turned.jpg"]
    world.s3.pipe_file(places[0].removeprefix("s3://"), sink.getvalue())
    world.server.files["turned.jpg"] = sink.getvalue()
    write(world, [[place] for place in places], aspect_ratio=["match_input_image", "match_input_image"])
    with sandbox() as gateway:
        result = generate(world, gateway.url, s3.options)
        assert all("/assets/" in record.body["image_urls"][0] for record in gateway.account_state.billed)
    for row in metadata(world, result):
        assert row["status"] == "generated"
        assert json.loads(row["applied"])["references"] == [{"position": 1, "changes": ["turned upright"]}]
        assert (row["references"][0]["width"], row["references"][0]["height"]) == (200, 300)
        assert (row["width"], row["height"]) == (192, 288)
    summary = plan(world, s3.options, reference_transport="presign")
    assert all("turned upright" in error.reason for error in summary.errors)
    assert summary.counts["invalid"] == 2


@pytest.mark.s3
@pytest.mark.parametrize("api_version", ["v1", "v2"])
def test_a_presigned_url_that_is_turned_away(api_version: str, world: World, s3: Any) -> None:
    """A presigned URL that the API cannot open is replaced by an upload, once, and nothing is paid twice."""
    places = [place for place in world.places.values() if place.startswith("s3")]
    write(world, [[place] for place in places])

    def is_presigned(data: bytes) -> bool:
        return b"X-Amz-Signature" in data.partition(b"\r\n")[0]

    with sandbox(engine="static") as gateway, Wire(s3.endpoint, is_presigned) as bucket:
        options = s3.options | {"endpoint_url": bucket.url}
        result = generate(world, gateway.url, options, api_version=api_version)
        assert (result.generated, result.calls, result.maybe_paid) == (len(places), 2 * len(places), 0)
        assert gateway.account_state.calls["upload"] == len(places)
        assert gateway.account_state.statistics()["billed"] == len(places)


@pytest.mark.s3
def test_uploads_are_kept_in_mind_and_made_again(world: World, s3: Any) -> None:
    """An upload serves later runs, of other stores too; one that is gone is made again."""
    places = [place for place in world.places.values() if place.startswith("photos/")]
    write(world, [[place] for place in places])
    with sandbox(engine="static") as gateway:

        def run(store: str) -> int:
            before = gateway.account_state.calls["upload"]
            assert generate(world, gateway.url, s3.options, store=store).generated == len(places)
            return gateway.account_state.calls["upload"] - before

        assert [run("a"), run("b")] == [len(places), 0]
        first, *_ = (gateway.account_state.folder / "assets").iterdir()
        first.unlink()
        assert run("c") == 1
        # Another account has uploads of its own.
        before = gateway.account_state.calls["upload"]
        prefect_imagegen.generate(
            world.manifest,
            str(world.folder / "d"),
            backend=ProviderSettings(base_url=gateway.url, api_key=SecretStr("SG_ffffffffffffffff")),
        )
        assert gateway.account_state.calls["upload"] - before == len(places)
    cache = world.folder / "cache" / "references.sqlite"
    assert cache.stat().st_mode & 0o077 == 0


def test_signed_references_by_content(world: World) -> None:
    """A signed URL of the user's own is read by it, uploaded, and its signature is kept from the store."""
    for name in list(world.photos)[:3]:
        world.server.files[name] = world.photos[name]
    signed = [
        f"{world.server.url}/{name}?X-Amz-Signature=SECRETPART{n}" for n, name in enumerate(list(world.photos)[:3])
    ]
    write(world, [[url] for url in signed])
    with sandbox(engine="static") as gateway:
        result = generate(world, gateway.url, {}, reference_identity="content")
        assert result.generated == 3
        assert gateway.account_state.calls["upload"] == 3
        write(world, [[f"{url}again"] for url in signed])  # signed anew: the same pictures
        assert generate(world, gateway.url, {}, reference_identity="content").reused == 3
    assert b"SECRETPART" not in everything(world.folder / "store")
    assert [reference["uri"] for row in metadata(world, result) for reference in row["references"]] == [
        url.partition("?")[0] for url in signed
    ]


def test_a_reference_that_changes_after_the_plan(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes than were planned are never sent under the planned key: the row fails, and the next run makes it."""
    write(world, [["photos/" + name] for name, place in world.places.items() if place.startswith("photos/")])
    name = next(name for name, place in world.places.items() if place.startswith("photos/"))
    before = StoredPlan.load

    async def load(*args: Any) -> Any:
        world.rewrite(name, world.photos[list(world.photos)[5]])
        return await before(*args)

    with sandbox(engine="static") as gateway:
        with monkeypatch.context() as patch:
            patch.setattr(StoredPlan, "load", load)
            result = generate(world, gateway.url, {})
        assert result.failures == {"reference_unreadable": 1}
        again = generate(world, gateway.url, {})
        assert (again.generated, again.failed) == (1, 0)
        assert gateway.account_state.statistics()["billed_twice"] == 0


def test_what_is_done_needs_its_references_no_more(world: World) -> None:
    """Web references of rows that are done are not asked for again."""
    places = [place for place in world.places.values() if place.startswith("http")]
    write(world, [[place] for place in places])
    with sandbox(engine="static") as gateway:
        assert generate(world, gateway.url, {}).generated == len(places)
        world.server.files.clear()
        asked = len(world.server.asked)
        assert generate(world, gateway.url, {}).reused == len(places)
        assert len(world.server.asked) == asked
