"""Splits image files into the data that Pillow needs for the pixels, and the metadata, which is read here.

Pillow reads metadata before pixels: an unreadable text chunk or colour profile makes it refuse the whole image, and its
warnings reach the terminal, since they cannot be silenced for one thread. So it gets files without metadata.
Sources: PNG (W3C, third edition), JPEG (ITU T.81, annex B), WebP container (RFC 9649), EXIF 2.32, 4.6.2.
"""

import re
import struct
import zlib
from dataclasses import dataclass, replace

PNG_START = b"\x89PNG\r\n\x1a\n"
_MOST_INFLATED = 1 << 20
"""The most bytes of a decompressed chunk: Pillow, and all who use it, refuse more."""
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_EXIF_START = b"Exif\0\0"
_JPEG_XMP_START = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_ICC_START = b"ICC_PROFILE\0"
_MOST_TEXT = 64 * _MOST_INFLATED
"""The most bytes of all texts of a PNG together: Pillow refuses more."""
_PNG_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"acTL": 8, b"fcTL": 26, b"fdAT": 4}
"""The least length of chunks in bytes: other programs fail at shorter ones."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
"""A JPEG marker among coded pixels, in which other bytes 0xFF are followed by zeros."""
_MOST_SCANS = 100
"""Encoders make a dozen; mozjpeg tries 64."""
_MOST_COMMENTS = 1000
_APPLICATIONS = frozenset({*range(0xE0, 0xF0), 0xFE})
"""JPEG segments APP0 to APP15, and comments."""
_WITHOUT_LENGTH = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDA)})
_COLOURS_LENGTH = 12
_WEBP_METADATA = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
_WEBP_ANIMATION = 0x02
_AVIF_EXIF = re.compile(rb"(infe.{8})Exif", re.DOTALL)
_AVIF_HEAD = 1 << 16


class PictureFileError(ValueError):
    """The file ends too early, or its structure is damaged; the message says which."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """An image file reduced to what its pixels need, and facts from its metadata.

    `kind` is Pillow's name of the format. `orientation` is that of EXIF (1 to 8), else of XMP. `is_damaged`: it had
    metadata at which other programs may fail. `size` (pixels, as stored) and `has_more` (further frames or pages) are
    None where only Pillow knows.
    """

    kind: str
    data: bytes
    orientation: int = 1
    icc_profile: bytes | None = None
    is_damaged: bool = False
    size: tuple[int, int] | None = None
    has_more: bool | None = None


@dataclass(slots=True)
class Metadata:
    """The metadata collected while a file is read."""

    exif: bytes = b""
    xmp: bytes = b""
    icc_profile: bytes | None = None
    is_damaged: bool = False
    orientation: int | None = None
    texts: int = 0
    """Bytes of the texts of a PNG."""
    unpacked: int = 0
    """Bytes that were decompressed to read a PNG."""

    def applied(self, file: PictureFile) -> PictureFile:
        """The file with the facts from this metadata."""
        orientation = self.orientation
        if self.exif:
            try:
                orientation = exif_orientation(self.exif)
            except (struct.error, KeyError):
                self.is_damaged = True
        if orientation is None and (match := _XMP_ORIENTATION.search(self.xmp)):
            orientation = int(match[1])
        return replace(
            file, orientation=orientation or 1, icc_profile=self.icc_profile or None, is_damaged=self.is_damaged
        )


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in EXIF data (1 to 8), or None. Raises struct.error or KeyError for data that is not EXIF."""
    body = exif.removeprefix(_EXIF_START)
    order = {b"II": "<", b"MM": ">"}[body[:2]]
    if 42 not in struct.unpack_from("<H", body, 2) + struct.unpack_from(">H", body, 2):
        raise KeyError(body[2:4])
    (start,) = struct.unpack_from(f"{order}I", body, 4)
    (entries,) = struct.unpack_from(f"{order}H", body, start)
    orientation = None
    for position in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHI4s", body, position)
        if tag == _ORIENTATION and kind in (3, 4):
            (orientation,) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", value)
    return orientation if orientation in range(1, 9) else None


def png(data: bytes) -> PictureFile:
    """A PNG without ancillary chunks (except the transparency key) and without bytes after its end.

    Of an animated PNG the still image is left. Raises PictureFileError.
    """
    metadata, pieces, position, has_more, name = Metadata(), [PNG_START], len(PNG_START), False, b""
    header = data[16:29]
    if data[12:16] != b"IHDR" or len(header) < 13:
        raise PictureFileError("its head is damaged")
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, position) if position + 12 <= len(data) else (len(data), b"")
        end = position + 12 + length
        if end > len(data):
            raise PictureFileError("its end is missing")
        if not name[0] & 0x20:
            pieces.append(data[position:end])
        else:
            body = data[position + 8 : end - 4]
            if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(data[end - 4 : end]) or len(
                body
            ) < _PNG_LENGTHS.get(name, 0):
                metadata.is_damaged = True
            elif name == b"tRNS":
                key = _transparency(header, body)
                metadata.is_damaged |= key is None
                pieces.extend([_chunk(name, key)] if key else ())
            else:
                has_more |= name == b"acTL" and int.from_bytes(body[:4]) > 1
                _note_png_chunk(metadata, name, body)
        position = end
    metadata.is_damaged |= metadata.texts > _MOST_TEXT
    width, height = struct.unpack_from(">II", header)
    return metadata.applied(PictureFile("PNG", b"".join(pieces), size=(width, height), has_more=has_more))


def jpeg(data: bytes) -> PictureFile:
    """A JPEG without comments and without application segments, except those about its colours.

    Raises PictureFileError.
    """
    metadata, pieces, position = Metadata(), [data[:2]], 2
    exif, profiles = list[bytes](), list[bytes]()
    marker = 0
    while marker != _START_OF_SCAN:
        position = data.find(b"\xff", position)  # what stands between segments is skipped, as libjpeg does
        if position < 0 or position + 4 > len(data):
            raise PictureFileError("its head is damaged, or cut off")
        marker = data[position + 1]
        if marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if end < position + 4 or end > len(data):
            raise PictureFileError("its head is damaged, or cut off")
        if marker not in _APPLICATIONS or _is_about_colours(metadata, marker, data[position + 4 : end]):
            pieces.append(data[position:end])
        elif marker == 0xE1 and data.startswith(_EXIF_START, position + 4, end):
            exif.append(data[position + 4 + len(_EXIF_START) : end])
        else:
            _note_jpeg_segment(metadata, profiles, marker, data[position + 4 : end])
        position = end
    _check_scans(data, position)
    pieces.append(data[position:])
    if exif:
        metadata.exif = _EXIF_START + b"".join(exif)
    if profiles:
        _join_jpeg_profile(metadata, profiles)
    return metadata.applied(PictureFile("JPEG", b"".join(pieces), has_more=False))


def _check_scans(data: bytes, position: int) -> None:
    """Refuse a JPEG of very many scans: each goes over all pixels, however few bytes it has."""
    scans = 0
    while (match := _MARKER.search(data, position)) is not None and match[1][0] != _END_OF_IMAGE:
        scans += match[1][0] == _START_OF_SCAN
        if scans > _MOST_SCANS:
            raise PictureFileError(f"its pixels are spread over more than {_MOST_SCANS} scans; save it again")
        position = match.end() + int.from_bytes(data[match.end() : match.end() + 2])


def ppm(data: bytes) -> PictureFile:
    """A PPM as it is. Raises PictureFileError for very many comments, which would take Pillow hours."""
    if data[1:2] in b"123" and data.count(b"#") > _MOST_COMMENTS:
        raise PictureFileError(f"its pixels are spread among more than {_MOST_COMMENTS} comments; save it again")
    return PictureFile("PPM", data)


def webp(data: bytes) -> PictureFile:
    """A WebP without metadata and without bytes after its end. Raises PictureFileError."""
    metadata, pieces, position, head = Metadata(), list[bytes](), 12, data[12:42]
    total = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while position + 8 <= total:
        name, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length
        body = data[position + 8 : end]
        if name in _WEBP_METADATA:
            if name == b"ICCP":
                metadata.icc_profile = body
            elif name == b"EXIF":
                metadata.exif = body
            else:
                metadata.xmp = body
            metadata.is_damaged |= end > len(data)
        else:
            if name == b"VP8X" and body:
                body = bytes([body[0] & ~sum(_WEBP_METADATA.values())]) + body[1:]
            # A chunk that is cut off keeps its length, so that the decoder sees it.
            pieces.append(struct.pack("<4sI", name, length) + body + b"\0" * (length % 2 and end <= len(data)))
        position = end + length % 2
    chunks = b"".join(pieces)
    whole = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
    is_extended = head[:4] == b"VP8X"
    has_more = bool(is_extended and len(head) > 8 and head[8] & _WEBP_ANIMATION)
    return metadata.applied(PictureFile("WEBP", whole, size=_webp_size(head), has_more=has_more))


def avif(data: bytes) -> PictureFile:
    """An AVIF whose EXIF is hidden: only the orientation in the file's own properties counts."""
    return PictureFile("AVIF", _AVIF_EXIF.sub(rb"\1free", data[:_AVIF_HEAD]) + data[_AVIF_HEAD:])


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _transparency(header: bytes, body: bytes) -> bytes | None:
    """The key of a tRNS chunk in the numbers that Pillow compares it with: those of pixels of 8 bits, mostly.

    None where it does not fit the picture.
    """
    depth, colours = header[8], header[9]
    if len(body) < {0: 2, 2: 6, 3: 1}.get(colours, len(body) + 1):
        return None
    if colours == 0 and depth < 8:
        most = 2**depth - 1
        return struct.pack(">H", (int.from_bytes(body[:2]) & most) * (255 // most))
    if colours == 2 and depth == 16:
        return struct.pack(">3H", *(value >> 8 for value in struct.unpack(">3H", body[:6])))
    return body


def _note_png_chunk(metadata: Metadata, name: bytes, body: bytes) -> None:
    """Read what an ancillary chunk tells about the picture; most of them tell nothing of use here."""
    if name == b"eXIf":
        metadata.exif = body
        return
    if name == b"tEXt":
        metadata.texts += len(body)
    if name not in (b"iCCP", b"zTXt", b"iTXt"):
        return
    keyword, _, rest = body.partition(b"\0")
    text: bytes | None = rest
    if name == b"iTXt":
        is_packed, parts = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
        text = parts[2] if len(parts) == 3 else None
        text = _inflated(metadata, text) if is_packed and text is not None else text
    else:
        text = _inflated(metadata, rest[1:])
    metadata.texts += len(text or b"") * (name != b"iCCP")
    if text is None:
        metadata.is_damaged = True
    elif name == b"iCCP":
        metadata.icc_profile = text
    elif keyword == b"XML:com.adobe.xmp":
        metadata.xmp = text
    elif keyword == b"Raw profile type exif" and not metadata.exif:  # as ImageMagick wrote it before there was eXIf
        try:
            metadata.exif = bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
        except ValueError:
            metadata.is_damaged = True


def _inflated(metadata: Metadata, data: bytes) -> bytes | None:
    """The text of a compressed chunk; None where it cannot be had, or is more than others take."""
    if metadata.unpacked > _MOST_TEXT:
        return None
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, _MOST_INFLATED)
    except zlib.error:
        return None
    metadata.unpacked += len(text)
    return None if inflater.unconsumed_tail else text


def _is_about_colours(metadata: Metadata, marker: int, body: bytes) -> bool:
    """Whether an application segment tells how the colours were coded, which the decoder has to know."""
    if not (marker == 0xE0 and body.startswith(b"JFIF\0")) and not (marker == 0xEE and body.startswith(b"Adobe")):
        return False
    is_whole = len(body) >= _COLOURS_LENGTH
    metadata.is_damaged |= not is_whole
    return is_whole


def _note_jpeg_segment(metadata: Metadata, profiles: list[bytes], marker: int, body: bytes) -> None:
    """Read what an application segment other than EXIF tells about the picture."""
    if marker == 0xE1 and body.startswith(_JPEG_XMP_START):
        metadata.xmp = metadata.xmp or body
    elif marker == 0xE2 and body.startswith(_JPEG_ICC_START):
        profiles.append(body[len(_JPEG_ICC_START) :])


def _join_jpeg_profile(metadata: Metadata, parts: list[bytes]) -> None:
    """The colour profile from its numbered parts, where all of them are there."""
    is_whole = all(len(part) > 2 for part in parts)
    parts.sort(key=lambda part: part[:1])
    if is_whole and [part[0] for part in parts] == list(range(1, len(parts) + 1)) and parts[0][1] == len(parts):
        metadata.icc_profile = b"".join(part[2:] for part in parts)
    else:
        metadata.is_damaged = True


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height in pixels from the first chunk; Pillow makes room for all of them before it tells."""
    if len(head) < 30:
        head = head.ljust(30, b"\0")
    if head[:4] == b"VP8X":
        return 1 + int.from_bytes(head[12:15], "little"), 1 + int.from_bytes(head[15:18], "little")
    if head[:4] == b"VP8L":
        bits = int.from_bytes(head[9:13], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head[:4] == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 14)
        return width & 0x3FFF, height & 0x3FFF
    return None
