"""Reduces TIFF files to their first page, with only the tags that the pixels need.

Pillow reads all tags before the pixels, and warns on the terminal about damaged ones.
Sources: TIFF 6.0; its supplements (JPEG, floating-point predictor); BigTIFF as libtiff has it.
"""

import struct
from collections.abc import Collection, Mapping
from typing import NamedTuple

from prefect_imagegen.core.images.picture_files import Metadata, PictureFile, PictureFileError

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value, by the number of its type."""
_SINGLE = frozenset({256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323, 332, 512, 513, 514, 531})
_SEVERAL = frozenset({258, 273, 279, 320, 324, 325, 338, 339, 347, 519, 520, 521, 529, 530, 532})
_WIDTH, _HEIGHT, _CHANNELS = 256, 257, 277
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_LARGEST_TILE = 4096 * 4096
"""Pixels of a tile that are always allowed: memory is taken for whole tiles, even beyond the image's edge."""
_ORIENTATION, _XMP, _ICC_PROFILE = 274, 700, 34675
_MOST_CHANNELS = 6
_READ = frozenset({_WIDTH, _HEIGHT, _CHANNELS, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT})
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


class _Layout(NamedTuple):
    """How a file writes numbers: byte order, and the forms of a count of entries, an entry and an offset."""

    order: str
    entries: str
    entry: str
    offset: str


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    value: bytes
    """As it stands in the entry: the values themselves where there is room, else where they are."""


def tiff(data: bytes) -> PictureFile:
    """A TIFF reduced to one page without metadata. Raises PictureFileError."""
    try:
        return _first_page(data)
    except (struct.error, OverflowError) as error:
        raise PictureFileError("its head is damaged, or cut off") from error


def _first_page(data: bytes) -> PictureFile:
    order = "<" if data[:2] == b"II" else ">"
    is_big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    if is_big and order == ">":
        raise PictureFileError("it is a BigTIFF in big-endian order, which Pillow does not read; convert it to PNG")
    layout = _Layout(order, "Q", "HHQ8s", "Q") if is_big else _Layout(order, "H", "HHI4s", "I")
    head = 8 if is_big else 4
    (start,) = struct.unpack_from(order + layout.offset, data, head)
    entries, following = _entries(data, layout, start)
    metadata, needed, size = Metadata(), dict[int, _Entry](), dict[int, int]()
    texts = dict[int, memoryview]()
    view = memoryview(data)  # many entries may point to the same large values
    for entry in entries:
        values = _values(view, layout, entry)
        if entry.tag in _SINGLE | _SEVERAL:
            if values is None or (entry.tag in _SINGLE and entry.values != 1):
                raise PictureFileError(f"its tag {entry.tag} is damaged")
            needed[entry.tag] = entry
        if values is None:
            metadata.is_damaged = True
        elif entry.tag in _READ and entry.values == 1 and entry.kind in _NUMBERS:
            (size[entry.tag],) = struct.unpack_from(order + _NUMBERS[entry.kind], values)
        elif entry.tag in (_XMP, _ICC_PROFILE):
            texts[entry.tag] = values
    metadata.xmp, metadata.icc_profile = bytes(texts.get(_XMP, b"")), bytes(texts.get(_ICC_PROFILE, b""))
    if size.get(_CHANNELS, 1) > _MOST_CHANNELS:
        raise PictureFileError(f"it has {size[_CHANNELS]} channels")
    _check_tiles(size)
    orientation = size.get(_ORIENTATION)
    metadata.orientation = orientation if orientation in range(1, 9) else None
    stored = (size[_WIDTH], size[_HEIGHT]) if size.keys() >= {_WIDTH, _HEIGHT} else None
    return metadata.applied(
        PictureFile("TIFF", _rewritten(data, layout, head, needed.values()), size=stored, has_more=following != 0)
    )


def _check_tiles(size: Mapping[int, int]) -> None:
    tile = size.get(_TILE_WIDTH, 0) * size.get(_TILE_HEIGHT, 0)
    if tile > max(_LARGEST_TILE, (size.get(_WIDTH, 0) + 15) * (size.get(_HEIGHT, 0) + 15)):
        raise PictureFileError(f"its tiles of {size[_TILE_WIDTH]}x{size[_TILE_HEIGHT]} pixels are larger than itself")


def _entries(data: bytes, layout: _Layout, start: int) -> tuple[list[_Entry], int]:
    """The entries of a directory, and where the next one is (0 where there is none)."""
    if start < 8:
        raise PictureFileError("its head is damaged, or cut off")
    (count,) = struct.unpack_from(layout.order + layout.entries, data, start)
    form = layout.order + layout.entry
    first, step = start + struct.calcsize(f"={layout.entries}"), struct.calcsize(form)
    entries = [_Entry(*struct.unpack_from(form, data, first + number * step)) for number in range(count)]
    after = data[first + count * step :][: struct.calcsize(f"={layout.offset}")]
    return entries, int.from_bytes(after, "little" if layout.order == "<" else "big")


def _values(data: memoryview, layout: _Layout, entry: _Entry) -> memoryview | None:
    """The bytes of an entry's values; None where its type is unknown, or the file does not hold them."""
    length = _SIZES.get(entry.kind, 0) * entry.values
    if not length:
        return None
    if length <= len(entry.value):
        return memoryview(entry.value)[:length]
    (start,) = struct.unpack(layout.order + layout.offset, entry.value)
    return data[start : start + length] if start + length <= len(data) else None


def _rewritten(data: bytes, layout: _Layout, head: int, entries: Collection[_Entry]) -> bytes:
    """The file with one directory of these entries at its end; all that they point to stays where it is."""
    even = data + b"\0" * (len(data) % 2)
    where = struct.pack(layout.order + layout.offset, len(even))
    directory = struct.pack(layout.order + layout.entries, len(entries))
    directory += b"".join(struct.pack(layout.order + layout.entry, *entry) for entry in entries)
    return even[:head] + where + even[head + len(where) :] + directory + bytes(len(where))
