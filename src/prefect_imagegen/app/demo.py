"""The demo's manifest, and a contact sheet of its images."""

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from prefect_imagegen.core.images.reference_pictures import plain_picture

_PROMPTS = (
    ("a corgi astronaut riding a paper boat through a neon canal", "16:9", "scene"),
    ("a glass teapot with a tiny thunderstorm inside, studio light", "1:1", "product"),
    ("isometric cutaway of a library inside a lighthouse", "3:4", "illustration"),
    ("a bowl of ramen as a mountain landscape, ink wash", "4:3", "illustration"),
    ("running shoes made of stained glass on white", "1:1", "product"),
    ("a market street on Mars at dusk, film photograph", "3:2", "scene"),
    ("portrait of an old clockmaker made of brass gears", "4:5", "portrait"),
    ("a wooden desk lamp, catalogue photograph, soft shadow", "1:1", "product"),
    ("an octopus conducting an orchestra, oil painting", "5:4", "illustration"),
    ("fog over terraced tea fields, aerial view", "16:9", "scene"),
    ("a ceramic mug with a fox, on a picnic blanket", "1:1", "product"),
    ("a red fox reading a newspaper in the snow", "2:3", "portrait"),
)
_TILE = 320
_COLUMNS = 4
_GAP = 8


def write_manifest(path: Path) -> None:
    """Write the sample manifest: prompts, aspect ratios, and a `subject` column that is carried to the metadata."""
    prompts, ratios, subjects = zip(*_PROMPTS, strict=True)
    table = pa.table({"prompt": prompts, "aspect_ratio": ratios, "subject": subjects})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def contact_sheet(images: Sequence[bytes]) -> bytes:
    """All images on one sheet, as JPEG: four in a row, each fitted into 320 x 320 pixels."""
    rows = -(-len(images) // _COLUMNS)
    size = (_COLUMNS * (_TILE + _GAP) + _GAP, rows * (_TILE + _GAP) + _GAP)
    sheet = Image.new("RGB", size, (24, 24, 27))
    for position, data in enumerate(images):
        tile = plain_picture(data)
        tile.thumbnail((_TILE, _TILE))
        left = _GAP + (position % _COLUMNS) * (_TILE + _GAP) + (_TILE - tile.width) // 2
        top = _GAP + (position // _COLUMNS) * (_TILE + _GAP) + (_TILE - tile.height) // 2
        sheet.paste(tile, (left, top))
    sink = io.BytesIO()
    sheet.save(sink, "JPEG", quality=88)
    return sink.getvalue()
