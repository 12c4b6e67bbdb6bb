"""What every route does: check the key and the call, and let the script's faults strike."""

import asyncio
import json
import random
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from prefect_imagegen.core.image import CONTENT_TYPES, encode
from prefect_imagegen.core.money import figure
from prefect_imagegen.core.reference_pictures import plain_picture
from prefect_imagegen.gateway.faults import HANG_S, Call, Fault
from prefect_imagegen.gateway.records import Books, Record, reset_header
from prefect_imagegen.gateway.studio import Studio
from prefect_imagegen.gateway.wire import Dropped, Short, Slow

_MISSING_KEY = "Missing Authorization or x-api-key in header"
_BAD_KEY = "Unauthorized. API key is invalid or may have expired."
HTML = "<html><body><h1>Bad Gateway</h1></body></html>"
"""What somebody else answers who stands before the API."""
_JUNK_BYTES = 2048
_OTHER = {"image/png": "jpeg", "image/jpeg": "png"}


class AnswerError(Exception):
    """Ends a request with this answer."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def error_answer(status: int, text: str, headers: dict[str, str] | None = None) -> AnswerError:
    """To be raised: an answer with `{"error": text}`."""
    return AnswerError(JSONResponse({"error": text}, status, headers))


def books_of(request: Request) -> Books:
    """The books of the gateway that serves the request."""
    books: Books = request.app.state.books
    return books


BooksOf = Annotated[Books, Depends(books_of)]


def check_key(request: Request, books: BooksOf) -> str:
    """The account of the key. Raises the answer 401 for a wrong one; any key will do where none is set."""
    given = request.headers.get("x-api-key", "")
    if not given:
        raise error_answer(401, _BAD_KEY if request.headers.get("authorization") else _MISSING_KEY)
    account = books.account_of(given)
    if books.revoked or account is None:
        raise error_answer(401, _BAD_KEY)
    return account


AccountOf = Annotated[str, Depends(check_key)]


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object of the body. Raises the answers 406 and 400."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise error_answer(406, "Invalid content type")
    try:
        body = await request.json()
    except (ValueError, RecursionError):  # the latter for very deep nesting
        body = None
    if not isinstance(body, dict):
        raise error_answer(400, "The body must be a JSON object")
    return body


async def accept(
    request: Request, books: Books, account: str, model: str, call: Call
) -> tuple[dict[str, Any], Fault | None]:
    """Everything that is checked before work is taken on; the body, and the fault that strikes the request."""
    books.calls[call] += 1
    studio: Studio = request.app.state.studio
    if model not in books.models:
        raise error_answer(404, f"Model {model} not found")
    if studio.state != "ready":
        raise error_answer(503, f"the gateway is {studio.state}", {"retry-after": "1"})
    body = await json_body(request)
    fault = books.settings.faults.pick(call, model, str(body.get("prompt", "")))
    await strike(fault, "before", request)
    if (reset := books.over_rate(account)) is not None:
        raise error_answer(429, "rate_limit_exceeded", {"x-rate-limit-reset-at-utc": reset_header(reset)})
    if studio.full:
        moment = books.settings.clock() + studio.free_in
        raise error_answer(
            429, "rate_limit_exceeded: the queue is full", {"x-rate-limit-reset-at-utc": reset_header(moment)}
        )
    if not books.affords(account, model):
        left, price = books.left(account), books.price(model)
        raise error_answer(406, f"Insufficient credits: {figure(left)} left, {figure(price)} needed")
    return body, fault


def pick_fault(books: Books, call: Call, record: Record | None = None) -> Fault | None:
    """The fault that strikes a call about a record."""
    prompt = str(record.body.get("prompt", "")) if record else ""
    return books.settings.faults.pick(call, record.model if record else "", prompt)


async def strike(fault: Fault | None, when: str, request: Request) -> None:
    """Raise the answer of a fault that ends the call at this point."""
    if fault is None or fault.when != when:
        return
    if fault.fault == "hang":
        await asyncio.sleep(HANG_S if fault.seconds is None else fault.seconds)
    elif fault.fault == "disconnect":
        raise AnswerError(Dropped())
    elif fault.fault == "redirect":
        raise AnswerError(RedirectResponse(f"{request.base_url}elsewhere", 302))
    elif fault.fault in ("status", "json_error"):
        headers = {}
        if fault.answered == 429:
            moment = datetime.now(UTC).timestamp() + (1.0 if fault.seconds is None else fault.seconds)
            headers["x-rate-limit-reset-at-utc"] = reset_header(moment)
        raise AnswerError(JSONResponse(fault.content, fault.answered or 200, headers))
    elif fault.fault == "html":
        raise AnswerError(HTMLResponse(HTML, fault.answered or 200))


def json_answer(content: Any, fault: Fault | None, status: int = 200) -> Response:
    """The answer with this JSON, as its fault would have it."""
    return answer_body(json.dumps(content).encode(), "application/json", fault, {}, status)


def answer_body(data: bytes, media: str, fault: Fault | None, headers: dict[str, str], status: int = 200) -> Response:
    """The answer with this body, as its fault would have it."""
    name = fault.fault if fault else None
    if name == "truncated_body":
        response: Response = Short(data[: len(data) // 2], media, headers, announced=len(data))
    elif name == "wrong_length":
        response = Short(data, media, headers, announced=len(data) + 1)
    elif name == "slow_body" and fault:
        response = Slow(data, media, headers, 1.0 if fault.seconds is None else fault.seconds)
    elif name == "empty_body":
        response = Response(b"", media_type=media, headers=headers)
    elif name == "junk" and fault:
        noise = random.Random(fault.seed).randbytes(_JUNK_BYTES)  # noqa: S311 - a repeatable body
        response = Response(noise, media_type=CONTENT_TYPES["png"], headers=headers)
    elif name == "other_format":
        other = _OTHER.get(media, "png")
        data = encode(plain_picture(data), other, quality=90)
        response = Response(data, media_type=CONTENT_TYPES[other], headers=headers)
    else:
        response = Response(data, media_type="text/plain" if name == "wrong_content_type" else media, headers=headers)
    if name not in ("empty_body", "junk"):
        response.status_code = status
    return response


WITH_KEY = Depends(check_key)
"""The dependency of every route that asks for the key."""
