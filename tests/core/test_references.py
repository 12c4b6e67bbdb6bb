"""What references are made of: where they lie, what their bytes say, and how they are made fit."""

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

from prefect_imagegen.core.references import (
    BadReferenceError,
    ReferenceFacts,
    family,
    inspect,
    is_signed,
    locate,
    media_type,
    normalised,
    shown,
    unfit,
)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (120, 80), colour: Any = None) -> Image.Image:
    image = Image.new(mode, size) if colour is None else Image.new(mode, size, colour)
    image.paste(image.getpixel((0, 0)), (0, 0, 10, 10))
    return image


def sixteen_bit_rgb() -> bytes:
    """A PNG with 16 bits a channel, which Pillow itself cannot write."""
    width = height = 64
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 0) * width for _ in range(height))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rotated() -> bytes:
    image = Image.new("RGB", (120, 80), "navy")
    image.paste("red", (0, 0, 60, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image, "JPEG", exif=exif, quality=95)


def animated() -> bytes:
    frames = [picture(colour=name) for name in ("red", "green", "blue")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("value", "base", "uri"),
    [
        ("photos/a.png", "s3://bucket/m", "s3://bucket/m/photos/a.png"),
        ("../a b#1.png", "s3://bucket/m", "s3://bucket/a b#1.png"),
        ("./a.png", "file:///data/m", "file:///data/m/a.png"),
        ("../../a.png", "file:///data/m", "file:///a.png"),
        ("/data/a.png", "s3://bucket/m", "file:///data/a.png"),
        ("a.png", "https://example.com/m", "https://example.com/m/a.png"),
        ("https://example.com/a.png?x=1", "s3://bucket/m", "https://example.com/a.png?x=1"),
        ("gs://bucket/a.png", "", "gs://bucket/a.png"),
        ("abfs://c/a.png", "", "abfs://c/a.png"),
    ],
)
def test_where_references_lie(value: str, base: str, uri: str) -> None:
    """A URL stays as it is; a path starts from the manifest's folder."""
    assert locate(value, base) == uri


@given(st.text(max_size=40), st.sampled_from(["s3://bucket/m", "file:///data", "https://host/m"]))
def test_no_text_is_too_odd_to_be_placed(value: str, base: str) -> None:
    """Any text is a place or a reason."""
    try:
        found = locate(value, base)
    except BadReferenceError as error:
        found = f"://{error}"
    assert "://" in found


def test_families_signatures_and_what_is_shown() -> None:
    """Spellings of one file system are one; a query is shown of no web URL, and kept in a key of a bucket."""
    assert [family(url) for url in ("s3a://b/x", "gcs://b/x", "abfss://c/x", "/tmp/x", "https://h/x")] == [
        *("s3", "gs", "az", "file", "https")
    ]
    assert is_signed("https://h/x?X-Amz-Signature=1")
    assert not is_signed("https://h/x?size=1")
    assert shown("https://h/x?X-Amz-Signature=1#f") == "https://h/x"
    assert shown("s3://b/what?.png") == "s3://b/what?.png"


def test_a_plain_picture() -> None:
    """A plain picture is described by its bytes and needs nothing."""
    data = saved(picture(), "PNG")
    found = inspect(data)
    assert found == ReferenceFacts(hashlib.sha256(data).hexdigest(), len(data), 120, 80, "png")
    assert [media_type(saved(picture(), kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF")] == [
        *("image/png", "image/jpeg", "image/webp", "image/gif")
    ]
    assert media_type(b"?") == "application/octet-stream"


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (rotated, ("turned upright",)),
        (lambda: saved(picture("CMYK", colour=(0, 255, 0, 0)), "JPEG"), ("converted from CMYK to RGB",)),
        (lambda: saved(picture("I;16", colour=40_000), "PNG"), ("reduced from 16 to 8 bits",)),
        (sixteen_bit_rgb, ("reduced from 16 to 8 bits",)),
        (lambda: saved(picture("RGBA", colour=(255, 0, 0, 90)), "PNG"), ("transparency laid on white",)),
        (lambda: saved(picture("LA", colour=(9, 90)), "PNG"), ("transparency laid on white",)),
        (lambda: saved(picture(), "TIFF"), ("converted from TIFF",)),
        (lambda: saved(picture(), "BMP"), ("converted from BMP",)),
    ],
)
def test_what_has_to_be_changed(make: Callable[[], bytes], changes: tuple[str, ...]) -> None:
    """Pictures of other kinds are made plain: what `inspect` asks for, `normalised` does, and nothing is left to do."""
    data = make()
    found = inspect(data)
    assert found.problem is None
    assert found.changes == changes
    after = inspect(normalised(data))
    assert (after.changes, after.problem) == ((), None)
    assert (after.width, after.height) == (found.width, found.height)


def test_changes_keep_what_is_seen() -> None:
    """Upright, in the same colours, on white; a JPEG stays one."""
    with Image.open(io.BytesIO(normalised(rotated()))) as image:
        assert (image.format, image.size) == ("JPEG", (80, 120))
        top, bottom = image.getpixel((40, 10)), image.getpixel((40, 110))
        assert isinstance(top, tuple)
        assert isinstance(bottom, tuple)
        assert (top[0] > 200, bottom[0] < 60) == (True, True)  # the red half, left in the file, is above once upright
    with Image.open(io.BytesIO(normalised(saved(picture("RGBA", colour=(255, 0, 0, 0)), "PNG")))) as image:
        assert (image.mode, image.getpixel((50, 50))) == ("RGB", (255, 255, 255))
    with Image.open(io.BytesIO(normalised(saved(picture("I;16", colour=40_000), "PNG")))) as image:
        assert (image.mode, image.getpixel((50, 50))) == ("L", 156)
    opaque = saved(picture("RGBA", colour=(255, 0, 0, 255)), "PNG")
    assert inspect(opaque).changes == ()


def test_a_profile_of_other_colours_is_no_hindrance() -> None:
    """A CMYK picture whose colour profile does not fit is converted without it."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(picture("CMYK", colour=(0, 255, 0, 0)), "JPEG", icc_profile=profile)
    assert inspect(normalised(data)).changes == ()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: b"", "it is empty"),
        (lambda: b"hello", "it is no whole image (5 bytes)"),
        (lambda: saved(picture(), "JPEG")[:-200], "it is no whole image"),
        (lambda: saved(picture(size=(63, 500)), "PNG"), "63x500 pixels; a side must have 64 at least"),
        (lambda: saved(picture(size=(1000, 100)), "PNG"), "its sides may differ by 8:1 at most"),
        (lambda: saved(Image.new("1", (10_000, 10_000)), "PNG"), "more than 64 megapixels"),
        (lambda: saved(Image.new("1", (20_000, 20_000)), "PNG"), "more than 64 megapixels"),
        (animated, "it is animated (3 frames)"),
        (lambda: saved(picture("F", colour=1.5), "TIFF"), "its colours are of the kind F"),
        (lambda: b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_used(make: Callable[[], bytes], problem: str) -> None:
    """What is no picture, too small, too long, too large or moving is refused, with a clear word."""
    found = inspect(make())
    assert problem in (found.problem or "")
    assert found.width is None


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0"]))
def test_no_bytes_are_too_odd(data: bytes, start: bytes) -> None:
    """Any bytes are a picture or a reason."""
    found = inspect(start + data)
    assert (found.width is None) == (found.problem is not None)


def test_what_a_transport_cannot_carry() -> None:
    """A presigned picture goes as it is: a file, or one that has to be changed, is told before anything is called."""
    plain = ReferenceFacts("00", 1, 100, 100, "png")
    turned = ReferenceFacts("00", 1, 100, 100, "jpeg", ("turned upright",))
    assert unfit("s3://b/x", plain, "presign") is None
    assert "cannot be presigned" in (unfit("file:///x", None, "presign") or "")
    assert "turned upright" in (unfit("s3://b/x", turned, "presign") or "")
    assert unfit("s3://b/x", turned, "auto") is None
    assert unfit("file:///x", ReferenceFacts("00", 1, problem="no"), "auto") == "no"
