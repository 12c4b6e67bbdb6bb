"""Decodes images in full, since anything less would accept truncated files, and reports their facts."""

import hashlib
import io
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from PIL import Image, ImageFile, ImageStat
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from prefect_imagegen.core.images import picture_files, tiff_files
from prefect_imagegen.core.images.picture_files import PictureFile
from prefect_imagegen.core.images.pixels import eight_bits
from prefect_imagegen.core.ledger.events import ImageFacts

MAX_PIXELS = 64 * 1024 * 1024
"""Larger images are refused: no model delivers them, but a decompression bomb might. Below Pillow's own limit."""
CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
PICTURE_FORMATS: Mapping[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = MappingProxyType(
    {
        "PNG": PngImageFile,
        "JPEG": JpegImageFile,
        "WEBP": WebPImageFile,
        "AVIF": AvifImageFile,
        "TIFF": TiffImageFile,
        "BMP": BmpImageFile,
        "GIF": GifImageFile,
        "PPM": PpmImageFile,
    }
)
"""The accepted formats, by Pillow's names. Its other readers are never used: that of EPS would start Ghostscript."""
_GUARDED = dict.fromkeys(("TIFF", "GIF", "WEBP"), 89_000_000)
"""The number of pixels from which on Pillow's readers of these formats warn on the terminal, or fail."""
OTHER_FORMAT = "other_format"
"""The flag of an image that came in another format than requested; its bytes are stored as they came."""
_EXTENSIONS = {"jpg": "jpeg"}
_PARTS: Mapping[str, Callable[[bytes], PictureFile]] = MappingProxyType(
    {
        "PNG": picture_files.png,
        "JPEG": picture_files.jpeg,
        "WEBP": picture_files.webp,
        "AVIF": picture_files.avif,
        "TIFF": tiff_files.tiff,
        "PPM": picture_files.ppm,
    }
)
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II\x2a\0", "TIFF"),
    (b"MM\0\x2a", "TIFF"),
    (b"II\x2b\0", "TIFF"),
    (b"MM\0\x2b", "TIFF"),
)
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_OTHERS = (
    (b"%!PS", "an EPS or PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"%PDF", "a PDF file"),
    (b"8BPS", "a Photoshop file"),
    (b"\xd7\xcd\xc6\x9a", "a WMF file"),
    (b"\x01\0\0\0", "an EMF file"),
    (b"\0\0\x01\0", "an icon file"),
    (b"icns", "an icon file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML file, perhaps an SVG drawing"),
)
_PAGES = (b"<!doctype html", b"<html")
_TAKEN = "PNG, JPEG, WebP, AVIF, TIFF, BMP, GIF and PPM are taken"
_BLANK_STDDEV = 2.0
_TURNED = 5
"""From this EXIF orientation on, width and height are swapped."""
_PNG_LEVEL = 1
"""Higher levels take many times the CPU time for hardly smaller files."""


class BadImageError(ValueError):
    """The bytes are empty, truncated or no image; the message says which."""


class TooManyPixelsError(ValueError):
    """The image has more pixels than the caller allows; `size` is (width, height), `limit` a number of pixels."""

    def __init__(self, size: tuple[int, int], limit: float) -> None:
        super().__init__(f"it has {size[0]}x{size[1]} pixels, more than {limit / 1e6:.4g} megapixels")
        self.size, self.limit = size, limit


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image: width and height in pixels, format by content (`png`, `jpeg`, ...), SHA-256 (hex) and flags."""

    width: int
    height: int
    format: str
    sha256: str
    flags: tuple[str, ...]

    @property
    def content_type(self) -> str:
        """The media type, by content."""
        return CONTENT_TYPES.get(self.format, f"image/{self.format}")


def format_of(data: bytes) -> str | None:
    """Pillow's name of the format, by the first bytes; None if it is not one of `PICTURE_FORMATS`."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and (data[8:12] in _AVIF_BRANDS or (data[8:12] == b"mif1" and b"avif" in data[16:64])):
        return "AVIF"
    if data[:1] == b"P" and data[1:2] in b"123456f" and data[2:3].isspace():
        return "PPM"
    return next((kind for start, kind in _STARTS if data.startswith(start)), None)


def take_apart(data: bytes) -> PictureFile:
    """The file without its metadata. Raises BadImageError if it ends early or is not one of `PICTURE_FORMATS`."""
    kind = format_of(data)
    if kind is None:
        raise BadImageError(_no_picture(data))
    try:
        return _PARTS[kind](data) if kind in _PARTS else PictureFile(kind, data)
    except (picture_files.PictureFileError, struct.error, IndexError) as error:
        raise BadImageError(str(error)) from error


@contextmanager
def opened(file: PictureFile, max_pixels: float) -> Iterator[ImageFile.ImageFile]:
    """The image in a file, with its pixels not read yet. Raises TooManyPixelsError, or any error of Pillow.

    `Image.open` would try all formats, and warn about large images.
    """
    limit = min(max_pixels, _GUARDED.get(file.kind, max_pixels))
    _check_size(file.size, limit)
    with PICTURE_FORMATS[file.kind](io.BytesIO(file.data)) as image:
        _check_size(image.size, limit)
        yield image


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of an image, turned upright, from its head alone. Raises BadImageError."""
    try:
        file = take_apart(data)
        with opened(file, float("inf")) as image:
            width, height = image.size
            turned = orientation_of(file, image) >= _TURNED
    except Exception as error:  # Pillow raises many types on hostile bytes; all mean the same here
        raise BadImageError(f"not an image ({len(data)} bytes): {error}") from error
    return (height, width) if turned else (width, height)


def orientation_of(file: PictureFile, image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8."""
    exif = image.info.get("exif")
    if file.kind != "AVIF" or not exif:
        return file.orientation
    return picture_files.exif_orientation(exif) or 1  # Pillow made it from the file's own properties


def encode(image: Image.Image, image_format: str, quality: int, **options: Any) -> bytes:
    """Encode an image: PNG without loss, JPEG and WebP at this quality. CPU-bound, so call it in a thread."""
    sink = io.BytesIO()
    options |= {"compress_level": _PNG_LEVEL} if image_format == "png" else {"quality": quality}
    image.save(sink, image_format.upper(), **options)
    return sink.getvalue()


def decode(data: bytes) -> Decoded:
    """Decode an image fully and report its facts. CPU-bound, so call it in a thread. Raises BadImageError.

    Unreadable metadata and bytes after the end are accepted, since the image was paid. An image of (nearly) one colour
    is flagged `blank`: safety filters that answer with HTTP 200 send such images.
    """
    if not data:
        raise BadImageError("the answer is empty")
    try:
        with opened(take_apart(data), MAX_PIXELS) as image:
            image.load()
            plain = eight_bits(image)
            small = plain.convert("RGB").reduce(8) if min(image.size) >= 16 else plain.convert("RGB")
            blank = max(ImageStat.Stat(small).stddev) < _BLANK_STDDEV
            width, height, kind = image.width, image.height, (image.format or "").lower()
    except TooManyPixelsError as error:
        raise BadImageError(f"{error.size[0]}x{error.size[1]} pixels are more than any model draws") from error
    except Exception as error:  # Pillow raises many types on hostile bytes; all mean the same here
        start = data[:24].decode("latin-1")
        raise BadImageError(f"not a whole image ({len(data)} bytes beginning {start!r}): {error}") from error
    return Decoded(width, height, kind, hashlib.sha256(data).hexdigest(), ("blank",) if blank else ())


def facts_of(path: str, decoded: Decoded, size: int) -> ImageFacts:
    """The facts of an image of `size` bytes at a path; flagged `other_format` if the path names another format."""
    asked = path.rpartition(".")[2]
    is_other = asked != "bin" and decoded.format != _EXTENSIONS.get(asked, asked)
    flags = (*decoded.flags, *((OTHER_FORMAT,) if is_other else ()))
    return ImageFacts(path, decoded.width, decoded.height, decoded.format, size, decoded.sha256, flags)


def _check_size(size: tuple[int, int] | None, max_pixels: float) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise TooManyPixelsError(size, max_pixels)


def _no_picture(data: bytes) -> str:
    """What some bytes are instead of a picture that is taken, and what is."""
    if not data:
        return "it is empty"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return f"it is a HEIC picture, which the API is not known to take; convert it to JPEG or PNG ({_TAKEN})"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_PAGES):
        return "it is a web page; give the address of the picture itself"
    name = next((name for mark, name in _OTHERS if data.startswith(mark) or start.startswith(mark.lower())), None)
    return f"it is {name}; convert it to JPEG or PNG ({_TAKEN})" if name else f"its format is unknown ({_TAKEN})"
