"""Reading requests: bodies bounded in bytes, time, depth and text, and the checks before any route."""

import asyncio
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NoReturn
from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import Receive, Scope, Send

from prefect_imagegen.core.request.models import ReferenceSpec
from prefect_imagegen.gateway.http.answers import AnswerError, LastAnswer, error_answer
from prefect_imagegen.gateway.http.fault_middleware import DroppedConnection
from prefect_imagegen.gateway.limits import Gate, Limits, Seat, TooBusyError

_PLAIN = frozenset({"", "identity"})
_SMALL = 1 << 16
"""Smaller JSON is parsed in the event loop: that is quicker than a thread."""
_MAX_DATA_HEAD = 256
_PICTURE_TEXT = re.compile(rb'"data:[^"\\]{1024,}')
"""An image inside a JSON body: one long string, which takes no more memory than its text."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{,\]}]', re.DOTALL)
_MIN_BYTES_PER_S = 1 << 17
"""A caller who sends at least so many bytes a second is never too slow, however large the body."""
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_LOOPBACK = re.compile(r"127(\.[0-9]{1,3}){3}|\[::1\]|localhost|.+\.localhost")


class BadBodyError(ValueError):
    """A body that cannot be accepted; the message is the API's error text."""


async def json_body(request: Request, limits: Limits, gate: Gate, seat: Seat) -> dict[str, Any]:
    """Read the JSON object of a body. Raises AnswerError with 400, 406, 408, 413, 415 or 429."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        refuse(406, "Invalid content type")
    data = await _read(request, limits, gate, seat)
    try:
        return await asyncio.to_thread(parse, data, limits) if len(data) > _SMALL else parse(data, limits)
    except BadBodyError as error:
        raise error_answer(400, str(error)) from None


async def _read(request: Request, limits: Limits, gate: Gate, seat: Seat) -> bytes:
    """Read the bytes of a body."""
    if request.headers.get("content-encoding", "").strip().lower() not in _PLAIN:
        refuse(415, "Content-Encoding is not taken: send the body as it is", {"accept-encoding": "identity"})
    pieces: list[bytes] = []
    try:
        gate.check_room(announced_bytes(request.headers) or 0)
        async with asyncio.timeout(limits.receive_s) as deadline:
            begun = asyncio.get_running_loop().time()
            async for piece in _pieces(request.receive):
                if seat.size + len(piece) > limits.body_bytes:
                    refuse(413, f"the body is too large ({limits.describe('body_bytes')})")
                gate.grow(seat, len(piece))
                pieces.append(piece)
                deadline.reschedule(begun + patience(seat.size, limits))
    except TooBusyError as error:
        raise too_busy(error, 1.0) from None
    except TimeoutError:
        refuse(408, f"the body did not come in time ({limits.describe('receive_s')})")
    return b"".join(pieces)


def patience(size: int, limits: Limits) -> float:
    """Seconds from the start of a body until more than its first `size` bytes must have come."""
    return limits.receive_s + size / _MIN_BYTES_PER_S


async def _pieces(receive: Receive) -> Any:
    is_more = True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise AnswerError(DroppedConnection())
        yield message.get("body", b"")
        is_more = message.get("more_body", False)


def announced_bytes(headers: Mapping[str, str]) -> int | None:
    """The `content-length`; None without one."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def refuse(status: int, text: str, headers: dict[str, str] | None = None) -> NoReturn:
    """End a request without reading its body to the end. Raises AnswerError."""
    raise AnswerError(LastAnswer({"error": text}, status, headers))


def too_busy(error: TooBusyError, seconds: float, headers: dict[str, str] | None = None) -> AnswerError:
    """The exception for a 429: nothing was accepted; `seconds` becomes `retry-after`."""
    named = {"retry-after": str(max(1, math.ceil(seconds)))}
    return AnswerError(LastAnswer({"error": f"rate_limit_exceeded: {error}"}, 429, named | (headers or {})))


def parse(data: bytes, limits: Limits) -> dict[str, Any]:
    """Parse a JSON object; CPU-bound. Raises BadBodyError before any value larger than the text is built."""
    # Small values take many times the memory of their text, an image's text does not: only images may be long.
    if len(data) > limits.text_bytes:
        image_bytes = sum(len(match[0]) for match in _PICTURE_TEXT.finditer(data))
        if len(data) - image_bytes > limits.text_bytes:
            raise BadBodyError(f"the body has too much text besides its pictures ({limits.describe('text_bytes')})")
    most = min(limits.json_depth, limits.json_values)
    if data.count(b"[") + data.count(b"{") + data.count(b",") > most:
        depth, values = _depth_and_values(data)
        if depth > limits.json_depth:
            raise BadBodyError(f"the body is nested too deeply ({limits.describe('json_depth')})")
        if values > limits.json_values:
            raise BadBodyError(f"the body has too many values ({limits.describe('json_values')})")
    try:
        body = json.loads(data, parse_constant=_no_number)
        if _SURROGATE.search(data):
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadBodyError("the body has half a character (a lone surrogate)") from None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise BadBodyError("The body must be a JSON object")
    return body


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _depth_and_values(data: bytes) -> tuple[int, int]:
    """The nesting depth of JSON and its number of values, without parsing it.

    A value is counted by the comma before it, or by the bracket before it; an empty list or object counts as one.
    """
    depth = deepest = values = 0
    for match in _MARKS.finditer(data):
        first = match[0][:1]
        if first in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif first in (b"]", b"}"):
            depth -= 1
        values += first in (b"[", b"{", b",")
    return deepest, values


def check_fields(body: Mapping[str, Any], references: ReferenceSpec, limits: Limits) -> None:
    """Refuse texts that are too long, and images that are too many or too large. Raises AnswerError (400, 413)."""
    for name, value in body.items():
        others = [name, _without_images(value, references.is_list) if name in references.fields else value]
        if any(len(text) > limits.field_chars for text in _texts(others)):
            raise error_answer(400, f"{name[:40]} is too long ({limits.describe('field_chars')})")
    _check_images(references.values_in(body), ", ".join(references.fields), limits)


def _without_images(value: Any, is_list: bool) -> Any:
    """The value of a field of references without the texts that may be images: direct items of a list, or itself."""
    if is_list and isinstance(value, list):
        return [item for item in value if not isinstance(item, str)]
    return None if not is_list and isinstance(value, str) else value


def _texts(value: Any) -> Iterator[str]:
    """All texts of a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in chain(value, value.values()) if isinstance(value, dict) else value:
            yield from _texts(inner)


def check_pictures(urls: Any, name: str, limits: Limits) -> None:
    """Refuse a list of images that are too many or too large. Raises AnswerError (400, 413)."""
    if isinstance(urls, list):
        _check_images([(f"image {number} of {name}", url) for number, url in enumerate(urls, 1)], name, limits)


def _check_images(images: Sequence[tuple[str, Any]], name: str, limits: Limits) -> None:
    if len(images) > limits.references:
        raise error_answer(400, f"{name} has {len(images)} images, too many ({limits.describe('references')})")
    total = 0
    for place, url in images:
        is_data = isinstance(url, str) and url[:5].lower() == "data:"
        if not is_data and isinstance(url, str) and len(url) > limits.field_chars:
            raise error_answer(400, f"{place} is too long ({limits.describe('field_chars')})")
        size = (len(url) - url.find(",", 0, _MAX_DATA_HEAD) - 1) * 3 // 4 if is_data else 0
        total += size
        if size > limits.reference_bytes:
            raise error_answer(413, f"{place} is too large ({limits.describe('reference_bytes')})")
    if total > limits.references_bytes:
        raise error_answer(413, f"the images of {name} are too large ({limits.describe('references_bytes')})")


def is_base_url(url: str) -> bool:
    """Whether a text is an http(s) URL that paths can be appended to (no user, query or fragment)."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    is_plain = _HOST.fullmatch(parts.netloc) is not None and not parts.query and not parts.fragment
    return parts.scheme in ("http", "https") and bool(host) and is_plain and url.isascii() and url.isprintable()


class RequestFilter:
    """ASGI middleware that refuses, before routing, wrong hosts, bodies too large, and ambiguous body lengths.

    A gateway without a key answers only to the names of its own machine and to `public_host`: otherwise any web page
    could reach it through a host name of its own that resolves here (DNS rebinding).
    """

    def __init__(self, app: Any, limits: Limits, *, has_key: bool, public_host: str | None) -> None:
        self._app = app
        self._limits = limits
        self._has_key = has_key
        self._public_host = public_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> LastAnswer | None:
        request = Request(scope)
        match = _HOST.fullmatch(request.headers.get("host", "localhost"))
        if match is None:
            return LastAnswer({"error": "the Host header names no host"}, 400)
        host = match[1].lower()
        if not self._has_key and host != self._public_host and not _LOOPBACK.fullmatch(host):
            text = f"without a key this gateway answers to localhost only, not to {host[:100]} (--public-url)"
            return LastAnswer({"error": text}, 421)
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            # A proxy may have used the other length, and taken the rest for another request (request smuggling).
            return LastAnswer({"error": "the length of the body is told twice"}, 400)
        if (announced_bytes(request.headers) or 0) > self._limits.body_bytes:
            return LastAnswer({"error": f"the body is too large ({self._limits.describe('body_bytes')})"}, 413)
        return None


SEEDS = range(-1, 1 << 63)
"""The valid seeds: -1 for a random one, up to the largest that generators take."""
