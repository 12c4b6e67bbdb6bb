"""Pictures with metadata as other tools write it, damaged or not."""

import logging
import struct
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.support.builders.images import encoded

SIZE = (96, 72)
GARBAGE = b"\x00\x08\x00\x02\x01\x12\x00\x03" + bytes(range(64))
SIDEWAYS = b"MM\0\x2a\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"


def photo() -> Image.Image:
    grey = Image.linear_gradient("L").resize(SIZE)
    return Image.merge("RGB", [grey, grey.rotate(180), Image.new("L", SIZE, 90)])


def saved(kind: str, **options) -> bytes:
    return encoded(photo(), kind, **options)


def chunk(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def png(*chunks: bytes, before: bytes = b"IDAT") -> bytes:
    """A PNG with these chunks before its pixels, or before its end."""
    data = saved("PNG")
    position = data.index(before) - 4
    return data[:position] + b"".join(chunks) + data[position:]


WORKFLOW = b"workflow\0" + b'{"nodes": []}' * 200_000


@pytest.fixture(autouse=True)
def _nothing_is_said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail a test in which Pillow logs, or prints to stderr; its warnings are errors in every test."""
    caplog.set_level(logging.INFO)
    yield
    assert [record for record in caplog.records if record.name.startswith("PIL")] == []
    assert capfd.readouterr().err == ""
