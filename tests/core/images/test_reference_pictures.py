"""Reference pictures of every kind: what `inspect` accepts `normalised` can convert, and the content stays the same."""

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from prefect_imagegen.core.images.image import decode, upright_size
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts, inspect, media_type, normalised


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (120, 80), colour: Any = None) -> Image.Image:
    image = Image.new(mode, size) if colour is None else Image.new(mode, size, colour)
    image.paste(image.getpixel((0, 0)), (0, 0, 10, 10))
    return image


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


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
    return saved(image, "JPEG", exif=exif, quality=95)


def animated() -> bytes:
    frames = [picture(colour=name) for name in ("red", "green", "blue")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def test_a_plain_picture() -> None:
    """A plain picture is described by its bytes and needs nothing."""
    data = saved(picture(), "PNG")
    facts = inspect(data)
    assert facts == ReferenceFacts(hashlib.sha256(data).hexdigest(), len(data), 120, 80, "png")
    assert [media_type(saved(picture(), kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF")] == [
        *("image/png", "image/jpeg", "image/webp", "image/gif")
    ]
    assert media_type(b"?") == "application/octet-stream"


def pages() -> bytes:
    frames = [picture(colour=name) for name in ("red", "green")]
    return saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])


def dim(most: int) -> Image.Image:
    """A 16-bit grey gradient whose values go from 0 to `most` only."""
    return Image.linear_gradient("L").convert("I").point(lambda value: value * (most / 255)).convert("I;16")


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
        (lambda: saved(picture("F", colour=float("nan")), "TIFF"), "some of its values are no numbers"),
        (lambda: saved(picture("F", colour=float("inf")), "TIFF"), "some of its values are no numbers"),
        (lambda: saved(dim(200), "PNG"), "its values go from 0 to 200, which is all but black (0 to 0 of 255)"),
        (lambda: saved(dim(4095), "TIFF"), "all but black (0 to 15 of 255); convert it to 8 bits a channel"),
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


SEEN = (96, 72)
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", *DEEP)
WRITERS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 100, "subsampling": 0},
    "MPO": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "TIFF": {},
    "BMP": {},
    "GIF": {},
    "PPM": {},
}
CLIPPED = frozenset(product(DEEP, ("WEBP", "AVIF", "GIF")))
"""Modes and formats that Pillow clips: it writes most values as white, or as black."""


def grey() -> Image.Image:
    return Image.linear_gradient("L").resize(SEEN)


def in_mode(mode: str, colours: Image.Image | None = None) -> Image.Image:
    """A grey gradient in one of Pillow's modes; white is the greatest value of the mode."""
    image = grey() if colours is None else colours
    if mode == "F":
        return image.convert("F").point(lambda value: value / 255)
    if mode in DEEP:
        return image.convert("I").point(lambda value: value * 257).convert(mode)
    if mode == "RGBa":
        return image.convert("RGBA").convert("RGBa")
    if mode == "PA":
        return image.convert("P").convert("PA")
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image.convert("RGB"), *profiles, outputMode="LAB") or image
    return image.convert(mode)


def written(image: Image.Image, kind: str, **options: Any) -> bytes | None:
    """A picture as a file of this format; None where Pillow cannot write its mode in that format."""
    try:
        return saved(image, kind, **WRITERS[kind], **options)
    except (OSError, ValueError, SystemError):
        return None


def sent(data: bytes) -> Image.Image:
    """The picture that is sent for a reference, as Pillow decodes it."""
    facts = inspect(data)
    assert facts.problem is None
    out = normalised(data) if facts.changes else data
    again = inspect(out)
    assert (again.changes, again.problem) == ((), None)
    assert (again.width, again.height) == (facts.width, facts.height)
    with Image.open(io.BytesIO(out)) as image:
        return image.convert("RGB")


def values(image: Image.Image) -> list[int]:
    """Grey values down the middle, one for each tenth of the height."""
    column = image.convert("L")
    return [int(column.getpixel((image.width // 2, y))) for y in range(0, image.height, image.height // 10)]  # type: ignore[arg-type]


PAIRS = [pair for pair in product(MODES, WRITERS) if pair not in CLIPPED and written(in_mode(pair[0]), pair[1])]


@pytest.mark.parametrize(("mode", "kind"), PAIRS)
def test_every_mode_and_format_is_made_fit(mode: str, kind: str) -> None:
    """What `inspect` takes, `normalised` can do, and pixels keep their values, whatever mode and format hold them."""
    data = written(in_mode(mode), kind) or b""
    pixels = values(sent(data))
    assert len(set(pixels)) > 1
    assert mode == "1" or pixels == pytest.approx(values(grey()), abs=26 if mode in ("P", "PA") or kind == "GIF" else 7)
    assert decode(data).flags == ()


@pytest.mark.parametrize(("mode", "kind"), [pair for pair in PAIRS if pair[1] not in ("BMP", "GIF", "PPM")])
def test_every_mode_and_format_lies_or_stands(mode: str, kind: str) -> None:
    """EXIF orientation is obeyed once in every mode and format that can hold it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = written(in_mode(mode), kind, exif=exif) or b""
    facts = inspect(data)
    assert (facts.width, facts.height) == sent(data).size == upright_size(data) == SEEN[::-1]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("bits", "form", "most", "sign"),
    [(16, "H", 65535, 1), (32, "i", 2**31 - 1, 2), (32, "i", 65535, 2), (32, "f", 1.0, 3), (32, "f", 255.0, 3)],
)
def test_deep_grey_of_either_byte_order(order: str, bits: int, form: str, most: float, sign: int) -> None:
    """Grey of 16 and 32 bits, whole or floating point, keeps its shades in both byte orders of TIFF."""
    data = tiff([value / 255 * most for value in grey().tobytes()], order, bits, form, sign)
    assert values(sent(data)) == pytest.approx(values(grey()), abs=2)
    assert decode(data).flags == ()


@pytest.mark.parametrize(
    ("order", "form", "sign", "words"),
    [
        ("<", "i", 2, "its values go from -49 to 204"),
        ("<", "I", 1, "its values go from -2130706432 to 2113929216"),
        (">", "I", 1, "unknown pixel mode"),
    ],
)
def test_deep_grey_that_cannot_be_told(order: str, form: str, sign: int, words: str) -> None:
    """Whole numbers of 32 bits below zero, or so large that Pillow takes them for such, are refused with a remedy."""
    shades = [value - 50.0 if sign == 2 else value * 2.0**24 for value in grey().tobytes()]
    problem = inspect(tiff(shades, order, 32, form, sign)).problem or ""
    assert words in problem
    assert "convert it to 8 bits a channel" in problem


def tiff(shades: list[float], order: str, bits: int, form: str, sign: int) -> bytes:
    """A grey TIFF of these values, in this byte order, depth and form."""
    pixels = struct.pack(f"{order}{len(shades)}{form}", *(shades if form == "f" else map(int, shades)))
    width, height = SEEN
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(pixels)), (339, sign)]
    rows = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    return head + pixels + struct.pack(f"{order}H", len(tags)) + rows + bytes(4)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, (0, 255)),
        (0.2, 0.6, (51, 153)),
        (0.0, 255.0, (0, 255)),
        (0.0, 65280.0, (0, 255)),
        (-1.0, 1.0, (0, 255)),
        (5.0, 1e9, (0, 255)),
    ],
)
def test_the_scale_of_floating_point(low: float, high: float, expected: tuple[int, int]) -> None:
    """Floating point is read on the narrowest usual scale that holds all values, else from least to greatest."""
    image = grey().convert("F").point(lambda value: low + value * ((high - low) / 255))
    extrema = sent(saved(image, "TIFF")).convert("L").getextrema()
    assert extrema == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(("depth", "colours"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 3)])
def test_a_transparent_colour(depth: int, colours: int) -> None:
    """The one colour of a PNG that stands for transparency is laid on white, whatever the depth; others stay."""
    side, most = 64, 2**depth - 1
    channels = 3 if colours == 2 else 1
    key, other = (0, 1) if colours == 3 else (most // 2, 0)
    form = "H" if depth == 16 else "B"

    def row(value: int) -> bytes:
        if depth < 8:
            return b"\0" + bytes([sum(value << shift for shift in range(0, 8, depth))]) * (side * depth // 8)
        return b"\0" + struct.pack(f">{side * channels}{form}", *[value] * side * channels)

    rows = row(key) * (side // 2) + row(other) * (side // 2)
    transparency = b"\0" if colours == 3 else struct.pack(f">{channels}H", *[key] * channels)
    palette = chunk(b"PLTE", bytes([200, 0, 0, 0, 0, 0])) if colours == 3 else b""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colours, 0, 0, 0))
    data += palette + chunk(b"tRNS", transparency) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    if depth == 1:
        data = data.replace(chunk(b"tRNS", transparency), chunk(b"tRNS", b"\0\0"))  # black, the upper half
    assert "transparency laid on white" in inspect(data).changes
    image = sent(data)
    assert (image.getpixel((9, 9)), image.getpixel((9, 60))) == ((255, 255, 255), (0, 0, 0)) or depth == 1
    assert depth > 1 or image.getpixel((9, 9)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
@pytest.mark.parametrize("profile", [b"", b"x", bytes(200), b"\0\0\0\xc8" + bytes(196), "sRGB"])
def test_colour_profiles(mode: str, profile: bytes | str) -> None:
    """A colour profile that cannot be read, or is one of other colours, is dropped; the picture is sent."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = srgb if isinstance(profile, str) else profile
    data = saved(in_mode(mode), "TIFF", icc_profile=content)
    assert values(sent(data)) == pytest.approx(values(grey()), abs=7)
    with Image.open(io.BytesIO(normalised(data))) as image:
        assert image.info.get("icc_profile") == (srgb if isinstance(profile, str) and mode in ("RGB", "RGBA") else None)


@given(
    st.sampled_from(MODES),
    st.sampled_from(sorted(WRITERS)),
    st.tuples(st.integers(64, 90), st.integers(64, 90)),
    st.integers(0, 9),
)
def test_whatever_is_taken_can_be_made_fit(mode: str, kind: str, size: tuple[int, int], orientation: int) -> None:
    """Any mode, format, size and orientation: what is taken is made fit, and is as large as was said."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = written(in_mode(mode, grey().resize(size)), kind, exif=exif)
    if data is not None:
        sent(data)


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
    data = saved(Image.effect_noise((64, 64), 60), "JPEG", progressive=True, quality=50)
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
