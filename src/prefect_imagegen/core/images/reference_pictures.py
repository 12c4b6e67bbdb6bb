"""Reference images: their facts, and how they are prepared for sending. Pure and CPU-bound.

Sources of the limits: the model takes sides of at least 64 px and aspect ratios up to 8:1 (diffusers'
Flux2KleinPipeline refuses others); png, jpeg and webp are what the API itself deals in.
"""

import hashlib
import io
from dataclasses import dataclass

from PIL import Image

from prefect_imagegen.core.choices import DEFAULT_MEGAPIXELS
from prefect_imagegen.core.images.image import BadImageError, TooManyPixelsError, opened, orientation_of, take_apart
from prefect_imagegen.core.images.picture_files import PictureFile
from prefect_imagegen.core.images.pixels import (
    DEEP_MODES,
    eight_bits,
    fitting_profile,
    from_cmyk,
    has_alpha,
    on_white,
    upright,
)

JUDGEMENT = 2
"""The version of the rules of `inspect`; raised when they change, so that remembered facts are not used any more."""
MIN_SIDE = 64
MAX_RATIO = 8
CLEARED = "cleared of metadata that others cannot read"
_PLAIN_FORMATS = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp"}
"""Formats that are sent as they are."""
_MODES = frozenset(
    {"1", "L", "P", "RGB", "RGBX", "LA", "La", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", *DEEP_MODES}
)
_JPEG_QUALITY = 95
_DARK = 32
"""Of 255: an image of more than 8 bits that stays below it at 8 bits has lost nearly all of its contents."""
_SIXTEEN_BITS = 16
_UNREAD = ("unknown pixel mode", "unknown data organization", "cannot handle 12-bit layers")
"""Pillow's errors for files that are whole."""


class UnusablePictureError(ValueError):
    """An image cannot be used as a reference; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """The facts of a reference: SHA-256 (hex) and size in bytes; of a decoded one also those of its image.

    `width` and `height` are in pixels, turned upright. `changes` lists what has to be done to the image before it is
    sent; `problem` says why it cannot be used at all.
    """

    sha256: str
    size: int
    width: int | None = None
    height: int | None = None
    format: str | None = None
    changes: tuple[str, ...] = ()
    problem: str | None = None


def inspect(data: bytes, *, max_megapixels: float = DEFAULT_MEGAPIXELS) -> ReferenceFacts:
    """Decode a reference fully and report its facts. CPU-bound, so call it in a thread."""
    sha256, size = hashlib.sha256(data).hexdigest(), len(data)
    try:
        width, height, kind, changes = _look(data, max_megapixels)
    except UnusablePictureError as error:
        return ReferenceFacts(sha256, size, problem=str(error))
    except TooManyPixelsError as error:
        remedy = "" if error.limit >= max_megapixels * 1e6 else "; convert it to JPEG or PNG"
        return ReferenceFacts(sha256, size, problem=f"{error}{remedy}")
    except Exception as error:  # noqa: BLE001 - Pillow raises many types on hostile bytes; all mean the same here
        return ReferenceFacts(sha256, size, problem=_no_image(data, error))
    return ReferenceFacts(sha256, size, width, height, kind, changes)


def media_type(data: bytes) -> str:
    """The media type of an image by its first bytes; `application/octet-stream` for an unknown one."""
    for start, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif")):
        if data.startswith(start):
            return f"image/{kind}"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "application/octet-stream"


def normalised(data: bytes) -> bytes:
    """The image with the `changes` of `inspect` made: upright, 8 bits a channel, RGB or grey, without alpha.

    A JPEG stays a JPEG (quality 95); everything else becomes a PNG. If only metadata has to be removed, the pixels are
    not encoded again.
    """
    file = take_apart(data)
    with opened(file, float("inf")) as image:
        image.load()
        is_plain = _changes(image, file) == (CLEARED,)
        if is_plain and fitting_profile(file.icc_profile, image.mode) is None:
            return file.data
        profile = file.icc_profile or image.info.get("icc_profile")
        plain = _plain(image, file)
    profile = None if image.mode in ("CMYK", "LAB") else fitting_profile(profile, plain.mode)
    sink = io.BytesIO()
    if file.kind == "JPEG":
        plain.save(sink, "JPEG", quality=_JPEG_QUALITY, subsampling=0, icc_profile=profile)
    else:
        plain.save(sink, "PNG", icc_profile=profile)
    return sink.getvalue()


def plain_picture(data: bytes) -> Image.Image:
    """An image as a model sees it: upright, RGB, transparency laid on white. Raises any error of Pillow."""
    file = take_apart(data)
    with opened(file, float("inf")) as image:
        image.load()
        return _plain(image, file).convert("RGB")


def _plain(image: Image.Image, file: PictureFile) -> Image.Image:
    orientation = orientation_of(file, image)
    if image.mode == "CMYK":
        return upright(from_cmyk(image, file.icc_profile), orientation)
    return upright(on_white(image), orientation)


def _look(data: bytes, max_megapixels: float) -> tuple[int, int, str, tuple[str, ...]]:
    file = take_apart(data)
    with opened(file, max_megapixels * 1e6) as image:
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise UnusablePictureError(f"it has {width}x{height} pixels; a side must have {MIN_SIDE} at least")
        if max(width, height) > MAX_RATIO * min(width, height):
            raise UnusablePictureError(f"it has {width}x{height} pixels; its sides may differ by {MAX_RATIO}:1 at most")
        image.load()
        changes = _changes(image, file)
        if orientation_of(file, image) >= 5:
            width, height = height, width
    return width, height, _PLAIN_FORMATS.get(file.kind, file.kind.lower()), changes


def _changes(image: Image.Image, file: PictureFile) -> tuple[str, ...]:
    if image.mode not in _MODES:
        raise UnusablePictureError(f"its colours are of the kind {image.mode}; convert it to RGB")
    if image.mode in DEEP_MODES:
        _check_depth(image)
    is_deep = image.mode in DEEP_MODES or (file.kind == "PNG" and file.data[24] == _SIXTEEN_BITS)
    has_more = getattr(image, "is_animated", False) if file.has_more is None else file.has_more
    reasons = (
        (file.kind not in _PLAIN_FORMATS, f"converted from {file.kind}"),
        (file.is_damaged, CLEARED),
        (orientation_of(file, image) > 1, "turned upright"),
        (image.mode == "CMYK", "converted from CMYK to RGB"),
        (is_deep, f"reduced from {32 if image.mode in ('I', 'F') else 16} to 8 bits"),
        (has_alpha(image), "transparency laid on white"),
        (has_more, f"reduced to its first {'page' if file.kind == 'TIFF' else 'frame'}"),
    )
    return tuple(change for applies, change in reasons if applies)


def _check_depth(image: Image.Image) -> None:
    """Refuse a picture of which next to nothing is seen at 8 bits, such as one of 8 bits stored in 16.

    Raises UnusablePictureError.
    """
    try:
        low, high = eight_bits(image).getextrema()
    except ValueError as error:
        raise UnusablePictureError(f"{error}; convert it to 8 bits a channel") from error
    values = image if image.mode in ("I", "F") else image.convert("I")
    least, greatest = values.getextrema()
    if image.mode == "I" and isinstance(least, int | float) and least < 0:
        raise UnusablePictureError(
            f"its values go from {least} to {greatest}, and what is white among them is not known; convert it to 8 bits"
            " a channel"
        )
    if isinstance(high, int | float) and high < _DARK and least != greatest:
        raise UnusablePictureError(
            f"its values go from {least} to {greatest}, which is all but black ({low} to {high} of 255); convert it to"
            " 8 bits a channel, so that it shows what it should"
        )


def _no_image(data: bytes, error: Exception) -> str:
    if isinstance(error, BadImageError) and not str(error).startswith("its "):
        return str(error)
    if str(error) in _UNREAD:
        return f"its pixels are of a kind that Pillow does not read ({error}); convert it to 8 bits a channel"
    text = str(error).replace(str(getattr(error, "filename", None)), "").split("<_io")[0].strip()
    return f"it is no whole image ({len(data)} bytes): {text}"
