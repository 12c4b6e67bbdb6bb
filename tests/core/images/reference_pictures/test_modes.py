"""Reference pictures of every mode: what `inspect` accepts `normalised` can convert, and the content stays the same."""

import io
import struct
import zlib
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from prefect_imagegen.core.images.image import decode, upright_size
from prefect_imagegen.core.images.reference_pictures import inspect, normalised
from tests.core.images.reference_pictures.conftest import chunk
from tests.support.builders.images import encoded

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
        return encoded(image, kind, **WRITERS[kind], **options)
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
    extrema = sent(encoded(image, "TIFF")).convert("L").getextrema()
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
    data = encoded(in_mode(mode), "TIFF", icc_profile=content)
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
