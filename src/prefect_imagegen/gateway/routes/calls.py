"""What routes share: the dependencies for key and account, the checks of a call, and injecting faults."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from prefect_imagegen.core.money import figure
from prefect_imagegen.core.request.models import spec_of
from prefect_imagegen.gateway.faults import HANG_S, Call, Fault
from prefect_imagegen.gateway.http.answers import HTML, AnswerError, JsonAnswer, error_answer
from prefect_imagegen.gateway.http.fault_middleware import DroppedConnection
from prefect_imagegen.gateway.http.intake import check_fields, json_body, too_busy
from prefect_imagegen.gateway.jobs.runner import JobRunner
from prefect_imagegen.gateway.limits import Seat, TooBusyError
from prefect_imagegen.gateway.state.account import AccountState, Record, reset_header

_OTHER_ROUTES = frozenset({"get-user-credits"})
"""Names in the place of a model that are routes of other methods."""
_MISSING_KEY = "Missing Authorization or x-api-key in header"
_BAD_KEY = "Unauthorized. API key is invalid or may have expired."


@dataclass(frozen=True, slots=True)
class AcceptedCall:
    """A call that has passed all checks: its body, the fault to inject, and its place at the gate."""

    body: dict[str, Any]
    fault: Fault | None
    seat: Seat


def account_state_of(request: Request) -> AccountState:
    """The account state of the gateway that serves the request."""
    account_state: AccountState = request.app.state.account_state
    return account_state


AccountStateOf = Annotated[AccountState, Depends(account_state_of)]


def base_of(request: Request, account_state: AccountState) -> str:
    """The base URL of the URLs in an answer: the setting `public_url`, else the URL that the caller used."""
    return (account_state.settings.public_url or str(request.base_url)).rstrip("/")


def check_key(request: Request, account_state: AccountStateOf) -> str:
    """The account of the request's key. Raises AnswerError (401) for a wrong or missing one.

    Any key is accepted where the gateway has none.
    """
    key = request.headers.get("x-api-key", "")
    if not key:
        raise error_answer(401, _BAD_KEY if request.headers.get("authorization") else _MISSING_KEY)
    account = account_state.account_of(key)
    if account_state.revoked or account is None:
        raise error_answer(401, _BAD_KEY)
    return account


AccountOf = Annotated[str, Depends(check_key)]


@asynccontextmanager
async def place_at_gate(request: Request, account_state: AccountState, account: str) -> AsyncIterator[Seat]:
    """Take a place at the gate for a call. Raises AnswerError (429), before anything is read."""
    runner: JobRunner = request.app.state.runner
    try:
        with runner.gate.seat(account) as seat:
            yield seat
    except TooBusyError as error:
        reset = reset_header(account_state.settings.clock() + runner.retry_after_s)
        raise too_busy(error, runner.retry_after_s, {"x-rate-limit-reset-at-utc": reset}) from None


@asynccontextmanager
async def accepted(
    request: Request, account_state: AccountState, account: str, model: str, call: Call
) -> AsyncIterator[AcceptedCall]:
    """Check everything about a call before its job starts. Raises AnswerError, or HTTPException (405)."""
    account_state.calls[call] += 1
    runner: JobRunner = request.app.state.runner
    if model in _OTHER_ROUTES:
        raise HTTPException(405, headers={"allow": "GET"})
    if model not in account_state.models:
        raise error_answer(404, f"Model {model[:100]} not found")
    if runner.state != "ready":
        raise error_answer(503, f"the gateway is {runner.state}", {"retry-after": "1"})
    limits = account_state.settings.limits
    async with place_at_gate(request, account_state, account) as seat:
        body = await json_body(request, limits, runner.gate, seat)
        check_fields(body, spec_of(model).references, limits)
        fault = account_state.settings.faults.pick(call, model, str(body.get("prompt", "")))
        await inject(fault, "before", request)
        if (reset := account_state.count_post(account)) is not None:
            raise error_answer(429, "rate_limit_exceeded", {"x-rate-limit-reset-at-utc": reset_header(reset)})
        if not account_state.affords(account, model):
            left, price = account_state.left(account), account_state.price(model)
            raise error_answer(406, f"Insufficient credits: {figure(left)} left, {figure(price)} needed")
        yield AcceptedCall(body, fault, seat)


def pick_fault(account_state: AccountState, call: Call, record: Record | None = None) -> Fault | None:
    """The fault to inject into a call about a record, if any."""
    prompt = str(record.body.get("prompt", "")) if record else ""
    return account_state.settings.faults.pick(call, record.model if record else "", prompt)


async def inject(fault: Fault | None, when: str, request: Request) -> None:
    """Inject a fault at this point (`before` or `after`): wait for a hang, or raise AnswerError with its answer."""
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
        if fault.replaced_status == 429:
            moment = datetime.now(UTC).timestamp() + (1.0 if fault.seconds is None else fault.seconds)
            headers["x-rate-limit-reset-at-utc"] = reset_header(moment)
        raise AnswerError(JsonAnswer(fault.content, fault.replaced_status or 200, headers))
    elif fault.fault == "html":
        raise AnswerError(HTMLResponse(HTML, fault.replaced_status or 200))


def check_key_if_set(request: Request, account_state: AccountStateOf) -> None:
    """Raise AnswerError (401) for a wrong or missing key, where the gateway has keys."""
    if account_state.has_key:
        check_key(request, account_state)


WITH_KEY = Depends(check_key)
"""The dependency of routes that require a key but do not use its account."""
WITH_KEY_IF_SET = Depends(check_key_if_set)
"""The dependency of routes that require a key only where one is set (metrics, OpenAPI)."""
