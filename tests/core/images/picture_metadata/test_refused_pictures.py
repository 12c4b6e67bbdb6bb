"""Pictures that are refused: cut off, too large, or of another kind."""

import ast
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import prefect_imagegen
from prefect_imagegen.core.images.image import BadImageError, decode, upright_size
from prefect_imagegen.core.images.reference_pictures import inspect
from tests.core.images.picture_metadata.conftest import GARBAGE, SIDEWAYS, SIZE, WORKFLOW, chunk, png, saved
from tests.support.builders.images import encoded


def grain(kind: str, **options) -> bytes:
    """A picture of noise, which no format compresses much: wherever the file is cut off, pixels are missing."""
    return encoded(Image.effect_noise((160, 120), 80).convert("RGB"), kind, **options)


END = b"\0\0\0\0IEND\xaeB`\x82"


@pytest.mark.parametrize(
    "data",
    [
        grain("PNG")[:-12] + chunk(b"tEXt", b"a\0" + END),
        grain("PNG")[:-12] + END[:-1],
        grain("PNG")[:400] + END,
        grain("PNG")[:-300] + chunk(b"tEXt", WORKFLOW) + END,
        grain("JPEG", exif=b"Exif\0\0" + GARBAGE)[:-400],
        grain("JPEG", exif=b"Exif\0\0" + GARBAGE)[:100],
        grain("WEBP", lossless=True)[:-400],
        grain("WEBP", lossless=True, exif=GARBAGE)[:-400],
        grain("TIFF")[:2000],
        grain("TIFF", compression="tiff_lzw")[:-300],
        grain("AVIF", exif=SIDEWAYS)[:-200],
        grain("GIF")[:-400],
        grain("PPM")[:-1],
        grain("BMP")[:-100],
    ],
    ids=range(14),
)
def test_pixels_that_are_cut_off_are_refused(data: bytes) -> None:
    """No metadata, and no look-alike of an end, hide that pixels are missing."""
    with pytest.raises(BadImageError):
        decode(data)
    assert "no whole image" in (inspect(data).problem or "")


def test_a_bomb_is_refused_by_its_head() -> None:
    """A picture of too many pixels is refused before room is made for them, in every format and without a warning."""
    wide = 16_000
    head = struct.pack("<4sI4s4sI", b"RIFF", 40, b"WEBP", b"VP8X", 10) + bytes(4)
    webp = head + (wide - 1).to_bytes(3, "little") * 2 + b"VP8L\0\0\0\0"
    huge = struct.pack(">IIBBBBB", wide, wide, 8, 2, 0, 0, 0)
    bombs = [
        webp,
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        saved("JPEG").replace(struct.pack(">HH", SIZE[1], SIZE[0]), struct.pack(">HH", wide, wide), 1),
        b"GIF89a" + struct.pack("<HH", wide, wide) + saved("GIF")[10:],
        b"P6 %d %d 255\n" % (wide, wide),
        saved("BMP")[:18] + struct.pack("<ii", wide, wide) + saved("BMP")[26:],
    ]
    for data in bombs:
        with pytest.raises(BadImageError, match="more than any model draws"):
            decode(data)
        assert "more than 64 megapixels" in (inspect(data).problem or "")
    assert upright_size(bombs[1]) == (wide, wide)
    large = struct.pack("<4sI4s4sI", b"RIFF", 40, b"WEBP", b"VP8X", 10) + bytes(4)
    large += (9_999).to_bytes(3, "little") * 2 + b"VP8L\0\0\0\0"
    problem = inspect(large, max_megapixels=1000).problem or ""
    assert problem == "it has 10000x10000 pixels, more than 89 megapixels; convert it to JPEG or PNG"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS or PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "EPS"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "WMF"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"MM\0\x2b\0\x08\0\0" + bytes(40), "BigTIFF in big-endian order"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\xef\xbb\xbf<svg xmlns=''>", "SVG"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
    ],
)
def test_other_files_are_refused_by_name(data: bytes, words: str) -> None:
    """What is no picture of the formats that are taken is named, with what to do, and opened by nobody."""
    with pytest.raises(BadImageError) as refused:
        decode(data)
    for text in (inspect(data).problem or "", str(refused.value)):
        assert words in text
        assert "convert it to " in text
    assert "it is a web page; give the address" in (inspect(b"\n<!DOCTYPE html><html>").problem or "")


def test_every_opening_names_its_formats() -> None:
    """Nothing in the package lets Pillow try all its readers on bytes from elsewhere."""
    folder = Path(prefect_imagegen.__file__).parent
    trees = {path: ast.parse(path.read_text()) for path in folder.rglob("*.py")}
    openings = [
        (path.name, node.lineno)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("Image.open", "PIL.open"))
        and "formats" not in {keyword.arg for keyword in node.keywords}
    ]
    assert len(trees) > 100
    assert openings == []


def crowded_jpeg() -> bytes:
    """A JPEG with hundreds of thousands of EXIF segments."""
    data = saved("JPEG")
    return data[:2] + (b"\xff\xe1\0\x0e" + b"Exif\0\0" + b"x" * 6) * 400_000 + data[2:]


def crowded_png() -> bytes:
    """A PNG with thousands of texts, each of which is a megabyte and more when it is unpacked."""
    return png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2_000_000))) * 3000)


def crowded_tiff() -> bytes:
    """A TIFF whose directory names the same large values again and again."""
    data = saved("TIFF")
    start, large = int.from_bytes(data[4:8], "little"), bytes(16 << 20)
    count = int.from_bytes(data[start : start + 2], "little")
    entries = data[start + 2 : start + 2 + 12 * count]
    entries += struct.pack("<HHII", 700, 1, len(large), len(data)) * 30_000
    entries += struct.pack("<HHII", 33432, 2, len(large), len(data)) * 30_000
    directory = struct.pack("<H", len(entries) // 12) + entries + bytes(4)
    return data[:4] + struct.pack("<I", len(data) + len(large)) + data[8:] + large + directory


@pytest.mark.parametrize("make", [crowded_jpeg, crowded_png, crowded_tiff])
def test_crowds_of_metadata_cost_little(make: Callable[[], bytes]) -> None:
    """A file of some megabytes does not keep a processor busy for minutes, whatever it tells of its pixels."""
    data = make()
    started = time.process_time()
    facts = inspect(data)
    assert (facts.problem, facts.width) == (None, SIZE[0])
    assert time.process_time() - started < 6
