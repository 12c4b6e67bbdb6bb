"""Read text files: decompress, decode, and read line by line with the number of each line."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

MAX_RECORD = 32 * 2**20
"""The most characters of one row; it also limits how far an unclosed quote is read."""
_BUFFER = 2**20
_XZ_MEMORY = 256 * 2**20
"""The limit of memory for xz; files of `xz -9` need 65 MiB."""


class _Xz:
    """An xz file, read in pieces, with a limit of memory (a file may ask for gigabytes)."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)

    def read(self, size: int) -> bytes:
        data = b""
        while not data:
            packed = b""
            if self._unpacker.eof:
                # A file may have several streams, with padding of zeros between them.
                packed = self._unpacker.unused_data.lstrip(b"\0")
                while not packed and (more := self._source.read(_BUFFER)):
                    packed = more.lstrip(b"\0")
                if not packed:
                    break
                self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
            elif self._unpacker.needs_input and not (packed := self._source.read(_BUFFER)):
                raise EOFError("it ends too early")
            data = self._unpacker.decompress(packed, size)
        return data


_UNPACKERS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda source: gzip.GzipFile(fileobj=source)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", _Xz),
    (b"\x28\xb5\x2f\xfd", lambda source: pa.CompressedInputStream(source, "zstd")),
)
_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_FIRST_LINE = re.compile(rb"""(?:[^"\r\n]|"[^"]*+")*+(\r*\n|\r)""")
_DAMAGES = (EOFError, OSError, lzma.LZMAError, zlib.error)
_AS_UTF8 = "Save it as UTF-8 (in Excel: 'CSV UTF-8')."


class BadTextError(ValueError):
    """A file is damaged, or not of its format: the line (from 1), what is wrong there, and the remedy."""

    def __init__(self, line: int, message: str, remedy: str = "") -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.remedy = remedy


class TextLines:
    """Iterates over the lines of a text, unchanged; `record` has the lines since the last `begin`."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.number = 0
        self.record: list[str] = []
        self._text = text
        self._size = 0

    @property
    def first(self) -> int:
        """The number of the record's first line."""
        return self.number - len(self.record) + 1

    def begin(self) -> None:
        """Start a new record."""
        self.record.clear()
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self._text.readline(MAX_RECORD + 1)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(error.encoding, "replace")
            number = self.number + 1 + before.count("\n")
            problem = f"it is no {error.encoding.upper()} text (byte 0x{error.object[error.start]:02x})"
            raise BadTextError(number, problem, _AS_UTF8) from None
        except _DAMAGES as error:
            raise BadTextError(
                self.number + 1, f"the compressed file is damaged ({error})", "Write it again."
            ) from error
        if not line:
            raise StopIteration
        self.number += 1
        self.record.append(line)
        self._size += len(line)
        if "\0" in line:
            raise BadTextError(self.number, "it holds a NUL byte, as UTF-16 without its mark does", _AS_UTF8)
        if self._size > MAX_RECORD:
            raise BadTextError(
                self.first,
                f"a row begins here that is longer than {MAX_RECORD:,} characters",
                "Close the quote that opens there, or leave the large cell out.",
            )
        return line


@contextmanager
def text_of(source: Any) -> Iterator[io.TextIOWrapper]:
    """A binary file as text: decompressed, and decoded by its byte order mark, else as UTF-8.

    Line ends stay as they are. Raises BadTextError.
    """
    head = source.read(8)
    source.seek(0)
    unpack = next((unpack for mark, unpack in _UNPACKERS if head.startswith(mark)), None)
    stream = io.BufferedReader(_Raw(unpack(source) if unpack else source), _BUFFER)
    try:
        head = stream.peek(_BUFFER)
    except _DAMAGES as error:
        raise _damaged(1, error) from error
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8-sig")
    text = io.TextIOWrapper(stream, encoding, newline=_line_end(head))
    try:
        yield text
    finally:
        text.detach()
        stream.detach()


class _Raw(io.RawIOBase):
    """Wraps any binary stream as a raw one, for Python's buffers; closing it closes nothing."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _line_end(head: bytes) -> str:
    """The line end of a text: that of its first line outside of quotes, a line feed or a lone carriage return.

    In a text with line feeds, a lone carriage return is part of a cell.
    """
    match = _FIRST_LINE.match(head.replace(b"\0", b""))
    return "\r" if match is not None and match[1] == b"\r" else "\n"


def _damaged(line: int, error: Exception) -> BadTextError:
    return BadTextError(line, f"the compressed file is damaged ({error})", "Write it again.")


def shown(record: Sequence[str]) -> str:
    """The first 60 characters of a record, for messages."""
    text = "".join(record).strip("\r\n")
    return repr(text if len(text) <= 60 else text[:60] + "…")
