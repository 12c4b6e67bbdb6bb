"""Pictures written by other tools: damaged metadata is no reason to refuse an image whose pixels decode."""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from prefect_imagegen.core.images.image import decode, upright_size
from prefect_imagegen.core.images.reference_pictures import CLEARED, inspect, normalised, plain_picture
from tests.core.images.picture_metadata.conftest import GARBAGE, SIDEWAYS, SIZE, WORKFLOW, chunk, photo, png, saved

CASES = Path(__file__).parents[3] / "data" / "cases"
BEYOND = b"MM\0\x2a\0\0\0\x08\x7f\xff" + bytes(12)
"""EXIF that announces more entries than it has."""
RAW_EXIF = b"Raw profile type exif\0\0"
MILLIONS = 3 << 20


def split_png() -> bytes:
    """A PNG whose pixels are in two chunks, with a text between them."""
    data = saved("PNG")
    position = data.index(b"IDAT")
    length = int.from_bytes(data[position - 4 : position])
    pixels, end = data[position + 4 : position + 4 + length], data[position + 8 + length :]
    halves = chunk(b"IDAT", pixels[:300]) + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", pixels[300:])
    return data[: position - 4] + halves + end


def animated_png() -> bytes:
    sink = io.BytesIO()
    photo().save(sink, "PNG", save_all=True, append_images=[photo().rotate(180)], default_image=False)
    return sink.getvalue()


def jpeg(*segments: tuple[int, bytes], junk: bytes = b"") -> bytes:
    """A JPEG with these segments at its beginning."""
    data = saved("JPEG", quality=95)
    added = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return data[:2] + added + junk + data[2:]


def without_jfif(*segments: tuple[int, bytes]) -> bytes:
    data = jpeg(*segments)
    position = data.index(b"\xff\xe0\x00\x10JFIF")
    return data[:position] + data[position + 18 :]


def mpo(cut: int) -> bytes:
    sink = io.BytesIO()
    photo().save(sink, "MPO", save_all=True, append_images=[photo()], quality=95)
    data = sink.getvalue()
    return data[: len(data) - cut]


def riff(*chunks: tuple[bytes, bytes], cut: int = 0, behind: bytes = b"") -> bytes:
    """A WebP with metadata chunks at its end."""
    data = saved("WEBP", lossless=True, exif=SIDEWAYS.replace(b"\0\6", b"\0\1"))
    position = data.index(b"EXIF")
    tail = b"".join(name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for name, body in chunks)
    whole = data[:position] + tail
    whole = whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]
    return whole[: len(whole) - cut] + behind


def animated(kind: str) -> bytes:
    sink = io.BytesIO()
    frames = [photo().rotate(180), photo().rotate(90)]
    photo().save(sink, kind, save_all=True, append_images=frames, lossless=True)
    return sink.getvalue()


def tiff(*entries: tuple[int, int, int, int], next_page: int = 0, order: str = "<", kind: str = "raw") -> bytes:
    """A TIFF with these further entries (tag, type, count, value) in its directory."""
    data = saved("TIFF", compression=kind)
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    known = [struct.unpack_from("<HHII", data, start + 2 + 12 * number) for number in range(count)]
    rows = sorted([*known, *entries])
    directory = struct.pack("<H", len(rows)) + b"".join(struct.pack("<HHII", *row) for row in rows)
    data += b"\0" * (len(data) % 2)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory + struct.pack("<I", next_page)


def avif_with_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0131] = "a camera"
    data = saved("AVIF", quality=100, subsampling="4:4:4", exif=exif)
    assert b"MM\0\x2a" in data or b"II\x2a\0" in data
    return data.replace(b"MM\0\x2a", b"XX\0\x2a").replace(b"II\x2a\0", b"XX\x2a\0")


PACKED = zlib.compress(bytes(MILLIONS))
WHOLE: dict[str, Callable[[], bytes]] = {
    "case 15": (CASES / "c15_exif_bad.png").read_bytes,
    "case 16, profile": (CASES / "c16_iccp_big.png").read_bytes,
    "case 16, text": (CASES / "c16_ztxt_big.png").read_bytes,
    "png, plain text of a workflow": lambda: png(chunk(b"tEXt", WORKFLOW)),
    "png, iTXt bomb": lambda: png(chunk(b"iTXt", b"a\0\1\0\0\0" + PACKED)),
    "png, zTXt bomb behind the pixels": lambda: png(chunk(b"zTXt", b"a\0\0" + PACKED), before=b"IEND"),
    "png, many texts": lambda: png(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))] * 65),
    "png, zTXt that is not packed": lambda: png(chunk(b"zTXt", b"a\0\0not packed")),
    "png, iTXt cut off": lambda: png(chunk(b"iTXt", b"a\0\1\0")),
    "png, profile that is not packed": lambda: png(chunk(b"iCCP", b"icc\0\0not packed")),
    "png, profile cut off": lambda: png(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(3000))[:-8])),
    "png, wrong checksum of a text": lambda: png(chunk(b"tEXt", b"a\0b", crc=1)),
    "png, wrong checksum of gAMA": lambda: png(chunk(b"gAMA", bytes(4), crc=1)),
    "png, short pHYs": lambda: png(chunk(b"pHYs", b"\0")),
    "png, short cHRM and sRGB": lambda: png(chunk(b"cHRM", b"\0"), chunk(b"sRGB", b"")),
    "png, short tRNS": lambda: png(chunk(b"tRNS", b"\0")),
    "png, garbage for EXIF": lambda: png(chunk(b"eXIf", GARBAGE)),
    "png, EXIF with entries that are missing": lambda: png(chunk(b"eXIf", BEYOND)),
    "png, garbage for raw EXIF": lambda: png(chunk(b"zTXt", RAW_EXIF + zlib.compress(b"a\n\n\nzz"))),
    "png, animation of no frames": lambda: png(chunk(b"acTL", bytes(8))),
    "png, broken animation": lambda: png(chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", b"\0\0\0\5")),
    "png, text between the pixels": split_png,
    "png, 10 kB behind the end": lambda: saved("PNG") + bytes(10_000),
    "png, another picture behind the end": lambda: saved("PNG") + saved("JPEG"),
    "jpeg, short JFIF": lambda: without_jfif((0xE0, b"JFIF\0\1")),
    "jpeg, short Adobe": lambda: jpeg((0xEE, b"Adobe\0")),
    "jpeg, short ICC part": lambda: jpeg((0xE2, b"ICC_PROFILE\0")),
    "jpeg, ICC part missing": lambda: jpeg((0xE2, b"ICC_PROFILE\0\1\3abc"), (0xE2, b"ICC_PROFILE\0\3\3abc")),
    "jpeg, garbage for Photoshop": lambda: jpeg((0xED, b"Photoshop 3.0\x008BIM\4")),
    "jpeg, garbage for a second picture": lambda: jpeg((0xE2, b"MPF\0" + GARBAGE)),
    "jpeg, garbage for EXIF": lambda: jpeg((0xE1, b"Exif\0\0" + GARBAGE)),
    "jpeg, EXIF with entries that are missing": lambda: jpeg((0xE1, b"Exif\0\0" + BEYOND)),
    "jpeg, EXIF of nothing": lambda: jpeg((0xE1, b"Exif\0\0")),
    "jpeg, comment": lambda: jpeg((0xFE, b"\xff\xd8\xff\xd9")),
    "jpeg, junk between segments": lambda: jpeg((0xEB, b"a"), junk=b"\1\2\3"),
    "jpeg, fill bytes": lambda: jpeg((0xEB, b"a"), junk=b"\xff\xff\xff"),
    "jpeg, 10 kB behind the end": lambda: saved("JPEG", quality=95) + bytes(10_000),
    "jpeg, progressive": lambda: saved("JPEG", quality=95, progressive=True),
    "jpeg of a camera, second picture": lambda: mpo(0),
    "jpeg of a camera, second picture cut off": lambda: mpo(400),
    "webp, garbage for EXIF": lambda: riff((b"EXIF", GARBAGE)),
    "webp, garbage for a profile": lambda: riff((b"ICCP", GARBAGE)),
    "webp, XMP cut off": lambda: riff((b"XMP ", bytes(500)), cut=90),
    "webp, unknown chunk": lambda: riff((b"abcd", b"xyz")),
    "webp, 10 kB behind the end": lambda: riff(behind=bytes(10_000)),
    "tiff, profile outside the file": lambda: tiff((34675, 7, 5000, 10_000_000)),
    "tiff, unknown type": lambda: tiff((40_000, 99, 1, 0)),
    "tiff, EXIF outside the file": lambda: tiff((34665, 4, 1, 10_000_000)),
    "tiff, two resolutions": lambda: tiff((296, 3, 2, 0)),
    "tiff, next page outside the file": lambda: tiff(next_page=10_000_000),
    "tiff, compressed, damaged date": lambda: tiff((306, 2, 20, 10_000_000), kind="tiff_adobe_deflate"),
    "avif, garbage for EXIF": avif_with_exif,
    "gif, junk behind the end": lambda: saved("GIF") + bytes(5_000),
    "animated png": animated_png,
    "animated gif": lambda: animated("GIF"),
    "animated webp": lambda: animated("WEBP"),
    "animated gif, cut off behind its first frame": lambda: animated("GIF")[:-1000],
}


def distance(first: Image.Image, second: Image.Image) -> float:
    """The mean difference of two pictures, 0 to 255."""
    pairs = zip(first.convert("RGB").tobytes(), second.convert("RGB").tobytes(), strict=True)
    return sum(abs(a - b) for a, b in pairs) / (3 * first.width * first.height)


@pytest.mark.parametrize("name", WHOLE)
def test_pixels_that_decode_are_whole(name: str) -> None:
    """Unreadable metadata, and whatever follows the end, count as none: for a paid output and for a reference."""
    data = WHOLE[name]()
    decoded = decode(data)
    kind = re.search("png|jpeg|webp|tiff|avif|gif", name)
    assert (decoded.flags, decoded.format) == ((), kind[0] if kind else "png")
    facts = inspect(data)
    assert facts.problem is None
    assert (facts.width, facts.height) == (decoded.width, decoded.height) == upright_size(data)
    if not name.startswith("case"):
        assert distance(plain_picture(data), photo()) < 4


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_sent_is_readable_to_others(name: str) -> None:
    """What whoever draws would fail at is taken out of a reference before it is sent."""
    data = WHOLE[name]()
    sent = normalised(data) if inspect(data).changes else data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow warns of a damaged MPO, and reads it
        with Image.open(io.BytesIO(sent)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    assert distance(upright, plain_picture(data)) < 4
    assert inspect(sent).changes == ()


def test_clearing_a_jpeg_does_not_code_it_again() -> None:
    """Where only metadata have to go, the pixels stay as they are, bit by bit."""
    data = jpeg((0xE1, b"Exif\0\0" + GARBAGE))
    assert inspect(data).changes == (CLEARED,)
    assert normalised(data) == saved("JPEG", quality=95)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(10))
def test_upright(kind: str, orientation: int) -> None:
    """Each of the eight EXIF orientations is turned upright once, in every format; other numbers mean nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind in ("JPEG", "AVIF") else {"lossless": True} if kind == "WEBP" else {}
    data = saved(kind, exif=exif, **options)
    expected = photo()
    expected.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(expected)
    facts = inspect(data)
    assert (facts.width, facts.height) == expected.size == upright_size(data)
    assert ("turned upright" in facts.changes) == (2 <= orientation <= 8)
    with Image.open(io.BytesIO(normalised(data) if facts.changes else data)) as sent:
        assert distance(sent, expected) < 5


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')),
        png(chunk(b"zTXt", RAW_EXIF + zlib.compress(b"\nexif\n36\n" + SIDEWAYS.hex().encode()))),
        jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>6</tiff:Orientation>")),
        jpeg((0xE1, b"Exif\0\0" + SIDEWAYS[:20]), (0xE1, b"Exif\0\0" + SIDEWAYS[20:])),
        riff((b"XMP ", b'<x tiff:Orientation="6"/>')),
    ],
    ids=["png, XMP", "png, raw EXIF", "jpeg, XMP", "jpeg, EXIF in two parts", "webp, XMP"],
)
def test_orientation_from_elsewhere(data: bytes) -> None:
    """An orientation counts wherever those who read the picture with Pillow would find it."""
    assert upright_size(data) == SIZE[::-1]
    assert inspect(data).changes == ("turned upright",)


def test_threads_hear_no_warning() -> None:
    """Many decoders at once hear no warning of Pillow, and change no filter of the process."""
    filters = list(warnings.filters)
    names = list(WHOLE) * 3
    with warnings.catch_warnings(record=True) as heard, ThreadPoolExecutor(4) as threads:
        warnings.simplefilter("always")
        list(threads.map(lambda name: inspect(WHOLE[name]()), names))
    assert heard == []
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("alpha", [b"\xff", b"\x80"])
def test_a_palette_with_degrees_of_transparency(alpha: bytes) -> None:
    """It is decoded like any other, without a warning."""
    sink = io.BytesIO()
    photo().quantize(32).save(sink, "PNG", transparency=alpha * 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(sink.getvalue()).flags == ()
        assert inspect(sink.getvalue()).problem is None
        assert plain_picture(sink.getvalue()).mode == "RGB"
        with Image.open(io.BytesIO(normalised(sink.getvalue()))) as image:
            assert image.size == SIZE


# libtiff itself, below Python, prints a line when what it unpacks is damaged.
@given(
    st.sampled_from(sorted(WHOLE.keys() - {"tiff, compressed, damaged date"})),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4),
)
def test_damage_anywhere_is_a_picture_or_a_reason(name: str, changes: list[tuple[int, int]]) -> None:
    """Whatever bytes are damaged, there is a picture that can be sent, or a reason; never a warning or an error."""
    data = bytearray(WHOLE[name]())
    for position, value in changes:
        data[position % min(len(data), 4096)] = value
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        facts = inspect(bytes(data))
        if facts.problem is None and facts.changes:
            assert inspect(normalised(bytes(data))).changes == ()
    assert heard == []
    assert (facts.width is None) == (facts.problem is not None)
