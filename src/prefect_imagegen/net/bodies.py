"""Bodies of HTTP requests and answers: sent in pieces, read whole, bounded and unpacked."""

import zlib
from collections.abc import AsyncIterator

import aiohttp
import httpx

from prefect_imagegen.core.redact import redact
from prefect_imagegen.net.client import TRANSPORT_ERRORS

MAX_BODY_BYTES = 256 * 1024 * 1024
_PIECE = 1 << 18
_GZIP = 16 + zlib.MAX_WBITS
UNREADABLE = (*TRANSPORT_ERRORS, ValueError)
"""What reading an answer may raise."""


async def body_pieces(data: bytes) -> AsyncIterator[bytes]:
    """The body of a request in pieces of 256 KiB: one of many megabytes would block the event loop."""
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


async def read_body(response: httpx.Response) -> bytes:
    """Read the whole body of an answer, unpacked, and close the answer.

    Raises ValueError for a body of more than MAX_BODY_BYTES, one that differs from its content-length, or one packed
    in a way that was not asked for; and the TRANSPORT_ERRORS of the client.
    """
    try:
        chunks, size = [], 0
        async for chunk in _unpacked(response):
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise ValueError(f"the answer is larger than {MAX_BODY_BYTES} bytes")
            chunks.append(chunk)
    finally:
        await response.aclose()
    length = response.headers.get("content-length")
    if length and "content-encoding" not in response.headers and length.isdigit() and int(length) != size:
        raise ValueError(f"the answer has {size} of {length} bytes")
    return b"".join(chunks)


async def _unpacked(response: httpx.Response) -> AsyncIterator[bytes]:
    """The unpacked body in pieces of at most 256 KiB; ValueError where it cannot be unpacked."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in response.aiter_raw():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip"):
        raise ValueError(f"the answer is packed as {encoding[:40]}, which was not asked for")
    unpacker = zlib.decompressobj(wbits=_GZIP)
    try:
        async for chunk in response.aiter_raw():
            rest = chunk
            while rest:
                yield unpacker.decompress(rest, _PIECE)
                rest = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error as error:
        raise ValueError(f"the answer cannot be unpacked: {error}") from error
    if not unpacker.eof:
        raise ValueError("the packed answer broke off")


def describe_error(error: Exception) -> str:
    """An exception in words, redacted.

    aiohttp's own exception is named where there is one, since the transport calls a lost connection a time-out.
    """
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    return redact(f"{type(cause).__name__} {cause}".strip())
