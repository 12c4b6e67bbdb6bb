"""Pictures of strangers: decoded beside the event loop, and refused by name before they fill the memory."""

import asyncio
import re
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin

from prefect_imagegen.core import base64_text
from prefect_imagegen.core.images import image
from prefect_imagegen.gateway.http import answers, intake
from prefect_imagegen.gateway.jobs import references, runner
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.gateway.state import account as records
from prefect_imagegen.gateway.state import uploads
from tests.support.builders.images import data_url, encoded
from tests.support.gateway_process import standing_gateway

MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}
MIB = 1 << 20


def noise(side: int) -> bytes:
    return encoded(Image.effect_noise((side, side), 90).convert("RGB"), "PNG")


def test_health_is_answered_while_pictures_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pictures are being decoded, the process answers `/health`: decoding waits for that answer here."""
    answered, decoding = threading.Event(), threading.Event()
    decode = references.decode

    def decode_after_health(data: bytes) -> image.Decoded:
        decoding.set()
        assert answered.wait(60)
        return decode(data)

    monkeypatch.setattr(references, "decode", decode_after_health)
    body = {"prompt": "a", "image_urls": [data_url(noise(256))]}

    async def calls(url: str) -> tuple[int, list[int]]:
        async with httpx.AsyncClient(base_url=url, headers=KEY, timeout=60) as client:
            posts = [asyncio.create_task(client.post(f"/v1/{MODEL}", json=body)) for _ in range(40)]
            assert await asyncio.to_thread(decoding.wait, 60)
            health = await client.get("/health")
            drawn = await client.post(f"/v1/{MODEL}", json={"prompt": "without pictures"})
            answered.set()
            return health.status_code + drawn.status_code, [post.status_code for post in await asyncio.gather(*posts)]

    with EmbeddedGateway(GatewaySettings()) as gateway:
        assert asyncio.run(calls(gateway.url)) == (400, [200] * 40)


def test_nothing_heavy_runs_in_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing, base64, hashing, decoding and encoding of large bodies all happen in other threads than the loop's."""
    thread_names: dict[str, set[str]] = {}

    def noted(module: Any, name: str) -> None:
        work: Callable[..., Any] = getattr(module, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            thread_names.setdefault(name, set()).add(threading.current_thread().name)
            return work(*args, **kwargs)

        monkeypatch.setattr(module, name, noting)

    for module, name in (
        (intake, "parse"),
        (uploads, "decode_base64"),
        (references, "decode"),
        (references, "upright_size"),
        (runner, "kept_body"),
        (runner, "canonical_json"),
        (records, "_without_data"),
        (answers, "plain_picture"),
        (answers, "encode"),
    ):
        noted(module, name)
    assert base64_text.decode_base64 is not uploads.decode_base64
    from prefect_imagegen.gateway.faults import Fault, FaultScript  # noqa: PLC0415

    script = FaultScript(faults=[Fault(fault="other_format", on=["run"])])
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        url = data_url(noise(300))
        answer = httpx.post(f"{gateway.url}/upload-asset", json={"data_urls": [url]}, headers=KEY)
        urls = [url, *answer.json()["file_urls"]]
        for version in ("v1", "v2"):
            body = {"prompt": "a", "image_urls": urls}
            assert httpx.post(f"{gateway.url}/{version}/{MODEL}", json=body, headers=KEY, timeout=60).status_code == 200
    assert len(thread_names) == 9
    assert "gateway" not in set().union(*thread_names.values())


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def png(width: int, height: int, *more: bytes, rows: int = 64) -> bytes:
    """A grey PNG with a size in its header, and pixel data of at most `rows` rows."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    packed = zlib.compress(bytes((width + 1) * min(height, rows)), 9)
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def packed_texts(name: bytes, count: int) -> list[bytes]:
    """Chunks of a few KB that unpack to 100 MiB each."""
    text = zlib.compress(bytes(100 * MIB), 9)
    body = b"a\0\0" + text if name == b"zTXt" else b"a\0\1\0\0\0" + text
    return [chunk(name, body)] * count


def tiff(width: int, height: int, **tags: int) -> bytes:
    """A TIFF of 64 by 64 pixels in one deflated strip or tile, whose tags announce the sizes given here."""
    numbers = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    data = zlib.compress(bytes(64 * 64), 9)
    numbers |= {322: tags["tile"], 323: tags["tile"], 324: 8, 325: len(data)} if "tile" in tags else {}
    numbers |= {} if "tile" in tags else {273: 8, 278: tags.get("rows", height), 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(numbers.items()))
    return b"II\x2a\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(numbers)) + entries + bytes(4)


def animation(image_format: str, frames: int) -> bytes:
    pictures = [Image.new("L", (64, 64), number % 250) for number in range(frames)]
    return encoded(pictures[0], image_format, save_all=True, append_images=pictures[1:], duration=10)


def resized(data: bytes, at: int, form: str, *size: int) -> bytes:
    """The file with another size written into its header, at byte `at`."""
    return data[:at] + struct.pack(form, *size) + data[at + struct.calcsize(form) :]


def jpeg(width: int, height: int) -> bytes:
    data = encoded(Image.new("L", (64, 64)), "JPEG")
    return resized(data, data.index(b"\xff\xc0") + 5, ">HH", height, width)


def avif(width: int, height: int) -> bytes:
    data = encoded(Image.new("RGB", (64, 64)), "AVIF")
    return resized(data, data.index(b"ispe") + 8, ">II", width, height)


def many_scans(count: int) -> bytes:
    """A progressive JPEG of 4 megapixels that repeats its last scan `count` times."""
    data = encoded(Image.new("L", (2048, 2048)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + data[-2:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: png(60_000, 60_000),
    "png of the largest size": lambda: png(0x7FFFFFFF, 0x7FFFFFFF, rows=0),
    "gif": lambda: resized(animation("GIF", 2), 6, "<HH", 65_535, 65_535),
    "webp": lambda: resized(animation("WEBP", 3), 24, "<HBHB", 0xFFFF, 0x3F, 0xFFFF, 0x3F),
    "jpeg": lambda: jpeg(65_500, 65_500),
    "tiff": lambda: tiff(100_000, 100_000),
    "tile": lambda: tiff(64, 64, tile=60_000),
    "strip": lambda: tiff(64, 64, rows=1 << 31),
    "bmp": lambda: resized(encoded(Image.new("L", (64, 64)), "BMP"), 18, "<ii", 1 << 30, 1 << 30),
    "avif": lambda: avif(60_000, 60_000),
    "scans": lambda: many_scans(3000),
}
HARMLESS: dict[str, Callable[[], bytes]] = {
    "zTXt": lambda: png(64, 64, *packed_texts(b"zTXt", 150)),
    "iTXt": lambda: png(64, 64, *packed_texts(b"iTXt", 150)),
    "frames of a GIF": lambda: animation("GIF", 3000),
    "frames of an APNG": lambda: animation("PNG", 1000),
    "frames of a WebP": lambda: animation("WEBP", 1000),
    "pages of a TIFF": lambda: animation("TIFF", 500),
    "a second picture of an MPO": lambda: encoded(Image.new("L", (64, 64)), "JPEG") + jpeg(65_500, 65_500),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_bombs_are_refused_before_they_go_off(tmp_path: Path) -> None:
    """Small files that announce huge pictures are 4xx by name, and no file costs more memory than a picture may."""
    with standing_gateway(tmp_path) as gateway, httpx.Client(base_url=gateway.url, headers=KEY, timeout=120) as client:

        def status(data: bytes, kind: str) -> tuple[int, str]:
            body = {"prompt": "a", "image_urls": [data_url(data, kind)]}
            answer = client.post(f"/v1/{MODEL}", json=body)
            return answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]

        assert status(noise(512), "png") == (200, "")
        before = gateway.peak
        refusals = {name: status(make(), "jpeg") for name, make in BOMBS.items()}  # sent as JPEG, whatever they are
        for name, (code, error) in refusals.items():
            assert code == 400, name
            assert error.startswith("image 1 of image_urls cannot be decoded"), name
            if name not in ("tile", "strip", "avif"):  # their messages are those of the libraries that read them
                assert re.search(r"it has \d+x\d+ pixels, more than 6|more than 100 scans", error), error
        assert gateway.peak - before < 64 * MIB, refusals
        assert {name: status(make(), "png") for name, make in HARMLESS.items()} == dict.fromkeys(HARMLESS, (200, ""))
        assert gateway.peak - before < 512 * MIB
        assert "Traceback" not in gateway.log.read_text()
        assert "Warning" not in gateway.log.read_text()
    assert PngImagePlugin.MAX_TEXT_CHUNK == MIB


def test_scans_of_real_jpegs_are_taken() -> None:
    """A JPEG with the scans that encoders write is whole, a second picture behind it included."""
    for options in ({}, {"progressive": True}, {"progressive": True, "restart_marker_blocks": 1}):
        data = encoded(Image.effect_noise((512, 512), 90).convert("RGB"), "JPEG", **options)
        assert image.decode(data + many_scans(3000)).width == 512
    assert image.decode(many_scans(50)).width == 2048
    with pytest.raises(image.BadImageError, match="more than 100 scans"):
        image.decode(many_scans(200))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_large_pictures_come_one_after_the_other(tmp_path: Path) -> None:
    """Many callers with the largest pictures that are allowed cost the memory of a few."""
    data = data_url(encoded(Image.new("L", (8000, 8000)), "PNG"))
    with standing_gateway(tmp_path, "engine='static'") as gateway:

        async def all_at_once() -> set[int]:
            async with httpx.AsyncClient(base_url=gateway.url, headers=KEY, timeout=120) as client:
                body = {"prompt": "a", "image_urls": [data]}
                answers = await asyncio.gather(*(client.post(f"/v1/{MODEL}", json=body) for _ in range(8)))
                return {answer.status_code for answer in answers}

        assert asyncio.run(all_at_once()) == {200}
        assert gateway.peak < 1500 * MIB
