"""The routes of an account: balance, request history, catalogue of models, and uploads."""

import asyncio
import hashlib
import hmac
import math
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BeforeValidator

from prefect_imagegen.core.money import exact
from prefect_imagegen.gateway.http.answers import FileAnswer, error_answer, json_answer
from prefect_imagegen.gateway.http.intake import check_pictures, json_body
from prefect_imagegen.gateway.jobs.runner import body_text
from prefect_imagegen.gateway.routes.calls import AccountOf, AccountStateOf, base_of, inject, pick_fault, place_at_gate
from prefect_imagegen.gateway.routes.history_shapes import history_answer
from prefect_imagegen.gateway.state.account import AccountState, Record
from prefect_imagegen.gateway.state.uploads import BadDataUrlError, asset_path, image_of_data_url

_HISTORY_DAYS = 31
_SUFFIXES = frozenset({"png", "jpeg", "jpg", "webp", "gif", "avif", "tiff", "bmp"})
_SORTED_BY: Mapping[str, Callable[[Record], Any]] = {
    "model_name": lambda record: record.model,
    "credits_deduction": lambda record: record.cost,
}

router = APIRouter()


def _day(text: Any) -> Any:
    """A day in ISO format; pydantic itself would also accept numbers, as seconds since 1970."""
    return date.fromisoformat(text) if isinstance(text, str) else text


class HistoryFilter:
    """The query parameters of the request history. Raises AnswerError (400) for more than 31 days."""

    def __init__(
        self,
        page: int = 1,
        per_page: int = 20,
        from_date: Annotated[date | None, BeforeValidator(_day)] = None,
        to_date: Annotated[date | None, BeforeValidator(_day)] = None,
        model_name: str = "",
        status: str = "",
        sort_by: str = "model_created",
        sort_order: str = "desc",
    ) -> None:
        self.page, self.per_page = max(1, page), min(100, max(1, per_page))
        self.sort_by, self.sort_order = sort_by, sort_order
        self._from, self._to, self._model, self._status = from_date, to_date, model_name, status
        if from_date and to_date and (to_date - from_date).days > _HISTORY_DAYS:
            raise error_answer(400, "the window is at most 31 days")

    def reaches(self, moment: float) -> bool:
        """Whether `from_date` is on or before the day of a Unix time."""
        if self._from is None or moment == float("-inf"):
            return False
        return datetime.fromtimestamp(moment, UTC).date() >= self._from

    def matches(self, record: Record) -> bool:
        """Whether a record matches the query."""
        day = datetime.fromtimestamp(record.submitted, UTC).date()
        return (
            (self._from is None or day >= self._from)
            and (self._to is None or day <= self._to)
            and self._model in record.model
            and self._status in ("", _history_state(record))
        )


@router.get("/v1/get-user-credits")
async def credits_left(request: Request, account_state: AccountStateOf, account: AccountOf) -> Response:
    """The balance; without a limit, a million."""
    account_state.calls["credits"] += 1
    fault = pick_fault(account_state, "credits")
    await inject(fault, "before", request)
    content = {"credits": exact(account_state.left(account)), "free-credits": 0.0}
    await inject(fault, "after", request)
    return await json_answer(content, fault)


@router.get("/inference-request/request-history")
async def history(
    request: Request, filters: Annotated[HistoryFilter, Depends()], account_state: AccountStateOf, account: AccountOf
) -> Response:
    """Own requests, a page of rows, newest first."""
    account_state.calls["history"] += 1
    fault = pick_fault(account_state, "history")
    await inject(fault, "before", request)
    base = base_of(request, account_state)
    records = [record for record in account_state.in_history(account) if filters.matches(record)]
    if filters.sort_order == "asc":
        records.reverse()
    if filters.sort_by in _SORTED_BY:
        records.sort(key=_SORTED_BY[filters.sort_by], reverse=filters.sort_order == "desc")
    page, per_page = filters.page, filters.per_page
    if fault and fault.per_page:
        per_page = min(per_page, fault.per_page)
    if fault and fault.fault == "clamp_pages":
        page = min(page, max(1, math.ceil(len(records) / per_page)))
    start = (page - 1) * per_page
    await inject(fault, "after", request)
    if start + per_page > len(records) and filters.reaches(account_state.accounts[account].forgotten_until):
        # A short page would look like the end of the history, and a missing call like one that was never made.
        raise error_answer(410, "older requests of these days are no longer kept")
    page_records = records[start : start + per_page]
    rows = await asyncio.to_thread(lambda: [_history_row(base, record) for record in page_records])
    return await history_answer(rows, fault, {"total": len(records)})


@router.get("/inference-request/request-history/{request_id}")
async def history_detail(
    request_id: str, request: Request, account_state: AccountStateOf, account: AccountOf
) -> Response:
    """One own request, of any age."""
    account_state.calls["history"] += 1
    fault = pick_fault(account_state, "history")
    await inject(fault, "before", request)
    record = next((record for record in account_state.in_history(account) if record.request_id == request_id), None)
    if record is None:
        raise error_answer(404, f"Request {request_id[:100]} not found")
    row = _history_row(base_of(request, account_state), record)
    await inject(fault, "after", request)
    return await history_answer(row, fault)


@router.get("/inference-model-information/list")
async def catalogue(account_state: AccountStateOf) -> list[dict[str, Any]]:
    """The models that are served."""
    return [{"slug": slug, "is_depreciated": False} for slug in account_state.models]


@router.post("/upload-asset")
async def upload(request: Request, account_state: AccountStateOf, account: AccountOf) -> Response:
    """Keep reference images, given as data URLs."""
    account_state.calls["upload"] += 1
    fault = pick_fault(account_state, "upload")
    await inject(fault, "before", request)
    limits, runner = account_state.settings.limits, request.app.state.runner
    async with place_at_gate(request, account_state, account) as seat:
        urls = (await json_body(request, limits, runner.gate, seat)).get("data_urls")
        if not isinstance(urls, list) or not urls:
            raise error_answer(400, "data_urls must be a list of data URLs")
        check_pictures(urls, "data_urls", limits)
        names = [await _keep_asset(account_state, url) for url in urls]
    base = base_of(request, account_state)
    await inject(fault, "after", request)
    content = {"file_urls": [f"{base}/assets/{name}" for name in names], "message": "Files uploaded successfully"}
    return await json_answer(content, fault)


@router.head("/assets/{name}")
@router.get("/assets/{name}")
async def asset(name: str, account_state: AccountStateOf) -> Response:
    """A reference image that was uploaded."""
    path = asset_path(account_state, name)
    if path is None:
        raise error_answer(404, "Not Found")
    return FileAnswer(path, f"image/{path.suffix[1:]}")


def _history_state(record: Record) -> str:
    return record.status if record.status in ("COMPLETED", "FAILED") else "PENDING"


def _history_row(base: str, record: Record) -> dict[str, Any]:
    done = record.status == "COMPLETED"
    return {
        "request_id": record.request_id,
        "model_name": record.model,
        "model_status": _history_state(record),
        "model_created": datetime.fromtimestamp(record.submitted, UTC).isoformat(),
        "credits_deduction": record.cost if done else None,
        "latency_ms": round(1000 * (record.finished - record.submitted)) if record.finished else None,
        "request_body": body_text(record),
        "generation_url": f"{base}/generations/{record.output}" if done else None,
        "error": record.error,
    }


async def _keep_asset(account_state: AccountState, url: Any) -> str:
    """Store an uploaded image; returns its name."""
    try:
        name, size = await asyncio.to_thread(_write_asset, account_state, str(url))
    except BadDataUrlError as error:
        raise error_answer(400, f"data_urls: {error}") from None
    account_state.uploads.put(name, size, account_state.settings.clock())
    return name


def _write_asset(account_state: AccountState, url: str) -> tuple[str, int]:
    """Write an uploaded image; returns its name and size. The name cannot be guessed from the image."""
    data, suffix = image_of_data_url(url, account_state.settings.limits.reference_bytes)
    digest = hmac.new(account_state.secret, data, hashlib.sha256).hexdigest()
    name = f"{digest}.{suffix if suffix in _SUFFIXES else 'png'}"
    folder = account_state.folder / "assets"
    folder.mkdir(exist_ok=True)
    part = (
        folder / f"{name}.{secrets.token_hex(8)}"
    )  # replaced atomically: a reader of the same image keeps its own file
    part.write_bytes(data)
    part.replace(folder / name)
    return name, len(data)
