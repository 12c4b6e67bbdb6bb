"""What every route does: check the key and the call, and let the script's faults strike."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from prefect_imagegen.core.money import figure
from prefect_imagegen.gateway.faults import HANG_S, Call, Fault
from prefect_imagegen.gateway.http.answers import HTML, AnswerError, JsonAnswer, error_answer
from prefect_imagegen.gateway.http.fault_middleware import DroppedConnection
from prefect_imagegen.gateway.http.intake import check_fields, json_body, too_busy
from prefect_imagegen.gateway.jobs.runner import JobRunner
from prefect_imagegen.gateway.limits import Seat, TooBusyError
from prefect_imagegen.gateway.state.account import AccountState, Record, reset_header

_OTHER_ROUTES = frozenset({"get-user-credits"})
"""What stands in the place of a model, and is none."""
_MISSING_KEY = "Missing Authorization or x-api-key in header"
_BAD_KEY = "Unauthorized. API key is invalid or may have expired."


@dataclass(frozen=True, slots=True)
class Taken:
    """A call that was taken on: its body, the fault that strikes it, and its place among the calls at once."""

    body: dict[str, Any]
    fault: Fault | None
    seat: Seat


def books_of(request: Request) -> AccountState:
    """The books of the gateway that serves the request."""
    books: AccountState = request.app.state.books
    return books


BooksOf = Annotated[AccountState, Depends(books_of)]


def base_of(request: Request, books: AccountState) -> str:
    """The base URL of the addresses in an answer: as the gateway is told, else as the caller called it."""
    return (books.settings.public_url or str(request.base_url)).rstrip("/")


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


@asynccontextmanager
async def seated(request: Request, books: AccountState, account: str) -> AsyncIterator[Seat]:
    """A place among the calls at once. Raises the answer 429: nothing was read yet."""
    studio: JobRunner = request.app.state.studio
    try:
        with studio.gate.seat(account) as seat:
            yield seat
    except TooBusyError as error:
        reset = reset_header(books.settings.clock() + studio.free_in)
        raise too_busy(error, studio.free_in, {"x-rate-limit-reset-at-utc": reset}) from None


@asynccontextmanager
async def accepted(request: Request, books: AccountState, account: str, model: str, call: Call) -> AsyncIterator[Taken]:
    """Everything that is checked before work is taken on."""
    books.calls[call] += 1
    studio: JobRunner = request.app.state.studio
    if model in _OTHER_ROUTES:
        raise HTTPException(405, headers={"allow": "GET"})
    if model not in books.models:
        raise error_answer(404, f"Model {model[:100]} not found")
    if studio.state != "ready":
        raise error_answer(503, f"the gateway is {studio.state}", {"retry-after": "1"})
    limits = books.settings.limits
    async with seated(request, books, account) as seat:
        body = await json_body(request, limits, studio.gate, seat)
        check_fields(body, limits)
        fault = books.settings.faults.pick(call, model, str(body.get("prompt", "")))
        await inject(fault, "before", request)
        if (reset := books.over_rate(account)) is not None:
            raise error_answer(429, "rate_limit_exceeded", {"x-rate-limit-reset-at-utc": reset_header(reset)})
        if not books.affords(account, model):
            left, price = books.left(account), books.price(model)
            raise error_answer(406, f"Insufficient credits: {figure(left)} left, {figure(price)} needed")
        yield Taken(body, fault, seat)


def pick_fault(books: AccountState, call: Call, record: Record | None = None) -> Fault | None:
    """The fault that strikes a call about a record."""
    prompt = str(record.body.get("prompt", "")) if record else ""
    return books.settings.faults.pick(call, record.model if record else "", prompt)


async def inject(fault: Fault | None, when: str, request: Request) -> None:
    """Raise the answer of a fault that ends the call at this point."""
    if fault is None or fault.when != when:
        return
    if fault.fault == "hang":
        await asyncio.sleep(HANG_S if fault.seconds is None else fault.seconds)
    elif fault.fault == "disconnect":
        raise AnswerError(DroppedConnection())
    elif fault.fault == "redirect":
        raise AnswerError(RedirectResponse(f"{request.base_url}elsewhere", 302))
    elif fault.fault in ("status", "json_error"):
        headers = dict[str, str]()
        if fault.answered == 429:
            moment = datetime.now(UTC).timestamp() + (1.0 if fault.seconds is None else fault.seconds)
            headers["x-rate-limit-reset-at-utc"] = reset_header(moment)
        raise AnswerError(JsonAnswer(fault.content, fault.answered or 200, headers))
    elif fault.fault == "html":
        raise AnswerError(HTMLResponse(HTML, fault.answered or 200))


def check_key_if_set(request: Request, books: BooksOf) -> None:
    """Raise the answer 401 for a wrong key, or none, where the gateway has keys."""
    if books.has_key:
        check_key(request, books)


WITH_KEY = Depends(check_key)
"""The dependency of routes that ask for the key, and have no use for the account."""
WITH_KEY_IF_SET = Depends(check_key_if_set)
"""The dependency of routes that are open where no key is set: figures, and the description of the routes."""
