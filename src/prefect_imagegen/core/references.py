"""Reference images: where they lie, what their bytes say, and what makes them fit to send. Pure.

Sources of the limits: the model takes sides of at least 64 px and aspect ratios up to 8:1 (diffusers'
Flux2KleinPipeline refuses others); png, jpeg and webp are what the API itself deals in.
"""

import hashlib
import io
import posixpath
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urljoin, urlsplit

from PIL import Image, ImageCms, ImageOps

ReferenceTransport = Literal["auto", "presign", "upload", "data-url"]
CheckReferences = Literal["all", "sample", "none"]
OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_ONE_NAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
WEB_SCHEMES = frozenset({"http", "https"})
DEFAULT_MEGAPIXELS = 64.0
MIN_SIDE = 64
MAX_RATIO = 8
_PLAIN_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}
"""Formats that are sent as they are; MPO is the JPEG of some cameras, with a second picture behind it."""
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_PLAIN_MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", *_SIXTEEN_BITS)
_SIGNED = re.compile(r"(^|[?&])(x-amz-|x-goog-|sig=|signature=|awsaccesskeyid=|token=|se=.*&sp=)", re.IGNORECASE)
_ESCAPED = re.compile("&(?:(?:amp|#38|#x26);)+", re.IGNORECASE)
_NO_SCHEME = re.compile(r"//[^/\s]+\.[A-Za-z]{2,}(?::\d+)?/")
_LONGEST_LABEL, _LONGEST_HOST = 63, 253
_SAMPLED_OF = 10
_JPEG_QUALITY = 95
_ORIENTATION = 0x0112


class BadReferenceError(ValueError):
    """A reference cannot be used; the message says why, for people."""


class BusyReason(str):
    """Why a reference could not be looked at for now; nothing says that it is wrong."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """What is known of the bytes of a reference: SHA-256 (hex), and where they were looked at, their picture.

    `width` and `height` are in pixels, as seen upright. `changes` says what has to be done to the picture before it
    can be sent; `problem` why it cannot be used at all.
    """

    sha256: str
    size: int
    width: int | None = None
    height: int | None = None
    format: str | None = None
    changes: tuple[str, ...] = ()
    problem: str | None = None


def locate(value: str, base: str) -> str:
    """The URI of a reference as the manifest spells it; `base` is the folder of the manifest, as a URI.

    An address stays as it is, byte for byte, but for a scheme in capitals; one without its scheme (`//host/a.png`) is
    an https one. Raises BadReferenceError.
    """
    value = f"https:{value}" if _NO_SCHEME.match(value) else value
    try:
        parts = urlsplit(value)
    except ValueError:
        raise BadReferenceError("it is no valid URL") from None
    if "://" not in value:
        if parts.scheme == "data":
            raise BadReferenceError("image data does not belong into a manifest; give an address or a path")
        return _below(value, base)
    if parts.scheme not in WEB_SCHEMES | OBJECT_SCHEMES | {"file"}:
        raise BadReferenceError(
            f"{parts.scheme} is not supported; a reference is an http(s), s3, gs, az or file URL, or a path relative to"
            " the manifest"
        )
    if parts.scheme in WEB_SCHEMES:
        _check_host(parts)
    if parts.username is not None:
        raise BadReferenceError("a reference URL must not hold a user name or password")
    if parts.scheme in OBJECT_SCHEMES and is_signed(value):
        raise BadReferenceError("credentials do not belong into a reference; use --reference-storage-option")
    scheme, separator, rest = value.partition("://")
    if scheme.lower() != parts.scheme:
        raise BadReferenceError("it is no valid URL")
    return f"{parts.scheme}{separator}{rest}"


def unescaped(uri: str) -> str:
    """The web address that is meant by one that was copied out of HTML, with `&amp;` for each `&`.

    It is what is asked for; what a request is known by stays as it was written.
    """
    return _ESCAPED.sub("&", uri) if is_web(uri) else uri


def family(url: str) -> str:
    """The one name of a URL's file system: `s3`, `gs`, `az`, `file`, `http`, ..."""
    scheme = url.partition("://")[0] if "://" in url else "file"
    return _ONE_NAME.get(scheme, scheme)


def is_web(uri: str) -> bool:
    """Whether it is an http(s) URL, and not in a bucket or on a disk."""
    return uri.partition("://")[0] in WEB_SCHEMES


def is_signed(uri: str) -> bool:
    """Whether the URL holds a signature: it opens the door, and it differs each time."""
    return "?" in uri and bool(_SIGNED.search("?" + _ESCAPED.sub("&", uri.partition("?")[2])))


def shown(uri: str) -> str:
    """The URI as metadata may hold it: that of a web page without its query."""
    return uri.partition("?")[0].partition("#")[0] if is_web(uri) else uri


def is_looked_at(uri: str, check: CheckReferences) -> bool:
    """Whether a reference is looked at before it is sent (--check-references); a sample is the same one each time."""
    if check == "sample":
        return hashlib.sha256(uri.encode()).digest()[0] % _SAMPLED_OF == 0
    return check == "all"


def unfit(uri: str, facts: ReferenceFacts | None, transport: ReferenceTransport) -> str | None:
    """Why a reference cannot be sent in the way that the user asks for; None where it can, or nothing is known."""
    if transport == "presign" and uri.startswith("file://"):
        return "a file of this machine cannot be presigned; use --reference-transport auto, upload or data-url"
    if facts is None:
        return None
    if facts.changes and transport == "presign":
        what = " and ".join(facts.changes)
        return f"it has to be {what}, and --reference-transport presign sends it as it is; use auto"
    return facts.problem


def inspect(data: bytes, *, max_megapixels: float = DEFAULT_MEGAPIXELS) -> ReferenceFacts:
    """Decode a reference fully and say what it is; CPU-bound, so call it in a thread."""
    sha256, size = hashlib.sha256(data).hexdigest(), len(data)
    try:
        width, height, kind, changes = _look(data, max_megapixels)
    except BadReferenceError as error:
        return ReferenceFacts(sha256, size, problem=str(error))
    except Image.DecompressionBombError:
        return ReferenceFacts(sha256, size, problem=f"it has more than {max_megapixels:g} megapixels")
    except Exception as error:  # noqa: BLE001 - Pillow raises many types on hostile bytes; all mean the same here
        return ReferenceFacts(sha256, size, problem=_no_image(data, error))
    return ReferenceFacts(sha256, size, width, height, kind, changes)


def media_type(data: bytes) -> str:
    """The media type of a picture, by its first bytes; without a known one, just bytes."""
    for start, kind in ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif")):
        if data.startswith(start):
            return f"image/{kind}"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "application/octet-stream"


def normalised(data: bytes) -> bytes:
    """The picture as `inspect` says that it has to be changed: upright, 8 bits a channel, RGB or grey, no alpha.

    A JPEG stays one (quality 95); everything else becomes a PNG.
    """
    with Image.open(io.BytesIO(data)) as opened:
        kind = _PLAIN_FORMATS.get(opened.format or "", "png")
        profile = opened.info.get("icc_profile")
        image = ImageOps.exif_transpose(opened)
        if image.mode in _SIXTEEN_BITS:
            image, profile = image.point(lambda value: value * (1 / 256)).convert("L"), None
        elif image.mode == "CMYK":
            image, profile = _from_cmyk(image, profile), None
        elif _has_alpha(image):
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        elif image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        sink = io.BytesIO()
        if kind == "jpeg":
            image.save(sink, "JPEG", quality=_JPEG_QUALITY, subsampling=0, icc_profile=profile)
        else:
            image.save(sink, "PNG", icc_profile=profile)
    return sink.getvalue()


def _check_host(parts: SplitResult) -> None:
    """Refuse a host that no name service can be asked for, and a port that no machine has."""
    host = parts.hostname
    if not host:
        raise BadReferenceError("the URL names no host")
    labels = host.removesuffix(".").split(".")
    if len(host) > _LONGEST_HOST or any(not 0 < len(label) <= _LONGEST_LABEL for label in labels):
        raise BadReferenceError("its host has a part that is empty or too long (63 characters are the most)")
    try:
        parts.port  # noqa: B018 - reading it is the check
    except ValueError:
        raise BadReferenceError("its port is no number from 0 to 65535") from None


def _below(path: str, base: str) -> str:
    if path.startswith("/"):
        return f"file://{path}"
    if is_web(base):
        return urljoin(f"{base}/", path)
    scheme, _, folder = base.partition("://")
    whole = posixpath.normpath(f"{folder}/{path}")
    if whole.startswith("..") or (scheme != "file" and "/" not in whole):
        raise BadReferenceError(f"the path leads out of {base}")
    return f"{scheme}://{whole}"


def _look(data: bytes, max_megapixels: float) -> tuple[int, int, str, tuple[str, ...]]:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > max_megapixels * 1e6:
            raise BadReferenceError(f"it has {width}x{height} pixels, more than {max_megapixels:g} megapixels")
        if min(width, height) < MIN_SIDE:
            raise BadReferenceError(f"it has {width}x{height} pixels; a side must have {MIN_SIDE} at least")
        if max(width, height) > MAX_RATIO * min(width, height):
            raise BadReferenceError(f"it has {width}x{height} pixels; its sides may differ by {MAX_RATIO}:1 at most")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise BadReferenceError(f"it is animated ({frames} frames); give one still picture")
        image.load()
        kind = image.format or ""
        turned = image.getexif().get(_ORIENTATION, 1)
        changes = _changes(image, data, kind, turned)
    if 5 <= turned <= 8:
        width, height = height, width
    return width, height, _PLAIN_FORMATS.get(kind, kind.lower()), changes


def _changes(image: Image.Image, data: bytes, kind: str, turned: int) -> tuple[str, ...]:
    if image.mode not in _PLAIN_MODES:
        raise BadReferenceError(f"its colours are of the kind {image.mode}; convert it to RGB")
    found = []
    if kind not in _PLAIN_FORMATS:
        found.append(f"converted from {kind}")
    if 2 <= turned <= 8:
        found.append("turned upright")
    if image.mode == "CMYK":
        found.append("converted from CMYK to RGB")
    if image.mode in _SIXTEEN_BITS or (kind == "PNG" and data[24:25] == b"\x10"):
        found.append("reduced from 16 to 8 bits")
    if _has_alpha(image):
        found.append("transparency laid on white")
    return tuple(found)


def _has_alpha(image: Image.Image) -> bool:
    """Whether any pixel lets something shine through."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return False
    low, _ = image.convert("RGBA").getchannel("A").getextrema()
    return isinstance(low, int | float) and low < 255


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def _no_image(data: bytes, error: Exception) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"):
        return "it is a HEIC picture, which the API is not known to take; convert it to JPEG or PNG"
    if not data:
        return "it is empty"
    text = str(error).replace(str(getattr(error, "filename", None)), "").split("<_io")[0].strip()
    return f"it is no whole image ({len(data)} bytes): {text}"
