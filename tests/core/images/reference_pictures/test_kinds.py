"""Reference pictures: which are taken as they are, which are changed, and which are refused."""

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from prefect_imagegen.core.images.reference_pictures import ReferenceFacts, inspect, media_type, normalised
from tests.core.images.reference_pictures.conftest import chunk
from tests.support.builders.images import encoded


def picture(mode: str = "RGB", size: tuple[int, int] = (120, 80), colour: Any = None) -> Image.Image:
    image = Image.new(mode, size) if colour is None else Image.new(mode, size, colour)
    image.paste(image.getpixel((0, 0)), (0, 0, 10, 10))
    return image


def sixteen_bit_rgb() -> bytes:
    """A PNG with 16 bits a channel, which Pillow itself cannot write."""
    width = height = 64
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 0) * width for _ in range(height))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rotated() -> bytes:
    image = Image.new("RGB", (120, 80), "navy")
    image.paste("red", (0, 0, 60, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif, quality=95)


def animated() -> bytes:
    frames = [picture(colour=name) for name in ("red", "green", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def test_a_plain_picture() -> None:
    """A plain picture is described by its bytes and needs nothing."""
    data = encoded(picture(), "PNG")
    facts = inspect(data)
    assert facts == ReferenceFacts(hashlib.sha256(data).hexdigest(), len(data), 120, 80, "png")
    assert [media_type(encoded(picture(), kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF")] == [
        *("image/png", "image/jpeg", "image/webp", "image/gif")
    ]
    assert media_type(b"?") == "application/octet-stream"


def pages() -> bytes:
    frames = [picture(colour=name) for name in ("red", "green")]
    return encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])


def dim(most: int) -> Image.Image:
    """A 16-bit grey gradient whose values go from 0 to `most` only."""
    return Image.linear_gradient("L").convert("I").point(lambda value: value * (most / 255)).convert("I;16")


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (rotated, ("turned upright",)),
        (lambda: encoded(picture("CMYK", colour=(0, 255, 0, 0)), "JPEG"), ("converted from CMYK to RGB",)),
        (lambda: encoded(picture("I;16", colour=40_000), "PNG"), ("reduced from 16 to 8 bits",)),
        (sixteen_bit_rgb, ("reduced from 16 to 8 bits",)),
        (lambda: encoded(picture("RGBA", colour=(255, 0, 0, 90)), "PNG"), ("transparency laid on white",)),
        (lambda: encoded(picture("LA", colour=(9, 90)), "PNG"), ("transparency laid on white",)),
        (lambda: encoded(picture(), "TIFF"), ("converted from TIFF",)),
        (lambda: encoded(picture(), "BMP"), ("converted from BMP",)),
        (animated, ("converted from GIF", "reduced to its first frame")),
        (pages, ("converted from TIFF", "reduced to its first page")),
    ],
)
def test_what_has_to_be_changed(make: Callable[[], bytes], changes: tuple[str, ...]) -> None:
    """Pictures of other kinds are made plain: what `inspect` asks for, `normalised` does, and nothing is left to do."""
    data = make()
    facts = inspect(data)
    assert facts.problem is None
    assert facts.changes == changes
    after = inspect(normalised(data))
    assert (after.changes, after.problem) == ((), None)
    assert (after.width, after.height) == (facts.width, facts.height)


def test_changes_keep_what_is_seen() -> None:
    """Upright, in the same colours, on white; a JPEG stays one."""
    with Image.open(io.BytesIO(normalised(rotated()))) as image:
        assert (image.format, image.size) == ("JPEG", (80, 120))
        top, bottom = image.getpixel((40, 10)), image.getpixel((40, 110))
        assert isinstance(top, tuple)
        assert isinstance(bottom, tuple)
        assert (top[0] > 200, bottom[0] < 60) == (True, True)  # the red half, left in the file, is above once upright
    with Image.open(io.BytesIO(normalised(encoded(picture("RGBA", colour=(255, 0, 0, 0)), "PNG")))) as image:
        assert (image.mode, image.getpixel((50, 50))) == ("RGB", (255, 255, 255))
    with Image.open(io.BytesIO(normalised(encoded(picture("I;16", colour=40_000), "PNG")))) as image:
        assert (image.mode, image.getpixel((50, 50))) == ("L", 156)
    opaque = encoded(picture("RGBA", colour=(255, 0, 0, 255)), "PNG")
    assert inspect(opaque).changes == ()


def test_a_profile_of_other_colours_is_no_hindrance() -> None:
    """A CMYK picture whose colour profile does not fit is converted without it."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(picture("CMYK", colour=(0, 255, 0, 0)), "JPEG", icc_profile=profile)
    assert inspect(normalised(data)).changes == ()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: b"", "it is empty"),
        (lambda: b"hello", "it is no whole image (5 bytes)"),
        (lambda: encoded(picture(), "JPEG")[:-200], "it is no whole image"),
        (lambda: encoded(picture(size=(63, 500)), "PNG"), "63x500 pixels; a side must have 64 at least"),
        (lambda: encoded(picture(size=(1000, 100)), "PNG"), "its sides may differ by 8:1 at most"),
        (lambda: encoded(Image.new("1", (10_000, 10_000)), "PNG"), "more than 64 megapixels"),
        (lambda: encoded(Image.new("1", (20_000, 20_000)), "PNG"), "more than 64 megapixels"),
        (lambda: encoded(picture("F", colour=float("nan")), "TIFF"), "some of its values are no numbers"),
        (lambda: encoded(picture("F", colour=float("inf")), "TIFF"), "some of its values are no numbers"),
        (lambda: encoded(dim(200), "PNG"), "its values go from 0 to 200, which is all but black (0 to 0 of 255)"),
        (lambda: encoded(dim(4095), "TIFF"), "all but black (0 to 15 of 255); convert it to 8 bits a channel"),
        (lambda: b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    ],
)
def test_what_cannot_be_used(make: Callable[[], bytes], problem: str) -> None:
    """What is no picture, too small, too long, too large or without anything to see is refused, with a clear word."""
    facts = inspect(make())
    assert problem in (facts.problem or "")
    assert facts.width is None


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0"]))
def test_no_bytes_are_too_odd(data: bytes, start: bytes) -> None:
    """Any bytes are a picture or a reason."""
    facts = inspect(start + data)
    assert (facts.width is None) == (facts.problem is not None)


def tiled_tiff(side: int, tile: tuple[int, int]) -> bytes:
    """A grey TIFF in tiles of some size, of which the first is there as a deflated stream of zeros."""
    tile_data = zlib.compress(bytes(min(1 << 24, tile[0] * tile[1])), 9)
    tags = ((256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile[0]), (323, tile[1]), (324, 8))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (325, len(tile_data))))
    start = 8 + len(tile_data) + len(tile_data) % 2
    body = tile_data.ljust(start - 8, b"\0")
    return b"II*\0" + struct.pack("<I", start) + body + struct.pack("<H", 10) + entries + bytes(4)


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    data = encoded(Image.effect_noise((64, 64), 60), "JPEG", progressive=True, quality=50)
    last = data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda"))
    return data[:-2] + data[last:-2] * count + data[-2:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (many_scans(200), "more than 100 scans"),
        (many_scans(200).replace(b"\xff\xda", b"\xff\xfe\0\4\xff\xd9\xff\xda", 1), "more than 100 scans"),
        (tiled_tiff(100, (32768, 32768)), "tiles of 32768x32768"),
        (tiled_tiff(5000, (8192, 8192)), "tiles of 8192x8192"),
        (b"P3\n64 64\n255\n" + b"#\n" * 15_000_000, "more than 1000 comments"),
        (b"P1\n64 64\n" + b"# a\n1" * 4096, "more than 1000 comments"),
    ],
)
def test_small_files_that_cost_much_are_refused(data: bytes, words: str) -> None:
    """A file whose pixels would take hours or gigabytes, though they are few, is refused before they are read."""
    assert words in (inspect(data).problem or "")


@pytest.mark.parametrize(
    "data",
    [
        many_scans(20),
        many_scans(1) + b"\xff\xda" * 200,
        tiled_tiff(100, (4096, 4096)),
        tiled_tiff(100, (112, 112)),
        b"P1\n64 64\n" + b"# a\n1" * 64 + b"0" * 4032,
        b"P5\n64 64\n255\n" + b"#" * 4096,
    ],
)
def test_what_only_looks_costly_is_taken(data: bytes) -> None:
    """Pictures with some scans, comments or large tiles, and with anything behind their end, are taken."""
    assert inspect(data).problem is None
