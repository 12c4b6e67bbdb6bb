"""Answers: JSON, images and files, with the fault of the call applied, and answers that end a request early."""

import asyncio
import json
import os
import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from prefect_imagegen.core.images.image import CONTENT_TYPES, encode
from prefect_imagegen.core.images.reference_pictures import plain_picture
from prefect_imagegen.gateway.faults import Fault
from prefect_imagegen.gateway.http.fault_middleware import SlowResponse, TruncatedResponse

HTML = "<html><body><h1>Bad Gateway</h1></body></html>"
"""The answer of a proxy in front of the API."""
_JUNK_BYTES = 2048
_PIECE = 1 << 17
_OTHER_FORMAT = {"image/png": "jpeg", "image/jpeg": "png"}
_LINGER_S = 30.0
_LINGER_IDLE_S = 2.0
_PRIVATE = {"cache-control": "no-store"}
"""Answers contain URLs of one caller: no cache on the way may keep them for another."""


class AnswerError(Exception):
    """Raised to end a request with this answer."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


class JsonAnswer(Response):
    """A JSON answer in ASCII, so that any text of a caller can be repeated, lone surrogates included."""

    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(json.dumps(content).encode(), status, {**_PRIVATE, **(headers or {})})


class LastAnswer(JsonAnswer):
    """A JSON answer to a request that is not read to its end; closes the connection.

    The rest of the request is read and dropped for up to 30 s: a connection that is closed with bytes unread is reset,
    and a caller who is still sending might never see the answer.
    """

    def __init__(self, content: Any, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, status, {**(headers or {}), "connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the ASGI signature
        """Send it, then drop the rest of the request."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        is_more = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while is_more:
                    message = await asyncio.wait_for(receive(), _LINGER_IDLE_S)
                    is_more = message["type"] == "http.request" and message.get("more_body", False)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class FileAnswer(Response):
    """An answer with a file that is read while it is sent, so that slow readers keep no image in memory.

    It is 404 if the file was removed meanwhile. The file is closed however the connection ends.
    """

    def __init__(self, path: Path, media: str) -> None:
        super().__init__(media_type=media)
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file piece by piece."""
        try:
            file = self._path.open("rb")  # not in a thread: that could open it after this call has ended
        except FileNotFoundError:
            await error_answer(404, "Not Found").response(scope, receive, send)
            return
        with file:
            headers = [(b"content-type", str(self.media_type).encode())]
            headers.append((b"content-length", str(os.fstat(file.fileno()).st_size).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while piece := await asyncio.to_thread(file.read, _PIECE):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def error_answer(status: int, text: str, headers: dict[str, str] | None = None) -> AnswerError:
    """The exception that ends a request with `{"error": text}`."""
    return AnswerError(JsonAnswer({"error": text}, status, headers))


async def json_answer(content: Any, fault: Fault | None, status: int = 200) -> Response:
    """An answer with this JSON, with the fault of the call applied."""
    return await answer_body(json.dumps(content).encode(), "application/json", fault, dict(_PRIVATE), status)


async def answer_body(
    data: bytes, media: str, fault: Fault | None, headers: dict[str, str], status: int = 200
) -> Response:
    """An answer with this body, with the fault of the call applied."""
    name = fault.fault if fault else None
    if name == "truncated_body":
        response: Response = TruncatedResponse(data[: len(data) // 2], media, headers, announced=len(data))
    elif name == "wrong_length":
        response = TruncatedResponse(data, media, headers, announced=len(data) + 1)
    elif name == "slow_body" and fault:
        response = SlowResponse(data, media, headers, 1.0 if fault.seconds is None else fault.seconds)
    elif name == "empty_body":
        response = Response(b"", media_type=media, headers=headers)
    elif name == "junk" and fault:
        noise = random.Random(fault.seed).randbytes(_JUNK_BYTES)  # noqa: S311 - a repeatable body
        response = Response(noise, media_type=CONTENT_TYPES["png"], headers=headers)
    elif name == "other_format":
        other = _OTHER_FORMAT.get(media, "png")
        data = await asyncio.to_thread(_in_format, data, other)
        response = Response(data, media_type=CONTENT_TYPES[other], headers=headers)
    else:
        response = Response(data, media_type="text/plain" if name == "wrong_content_type" else media, headers=headers)
    if name not in ("empty_body", "junk"):
        response.status_code = status
    return response


def _in_format(data: bytes, image_format: str) -> bytes:
    return encode(plain_picture(data), image_format, quality=90)
