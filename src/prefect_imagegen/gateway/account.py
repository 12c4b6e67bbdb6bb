"""The account's side of the API: balance, request history, the catalogue and uploaded assets."""

import asyncio
import hashlib
import math
from datetime import UTC, date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from prefect_imagegen.core.money import exact
from prefect_imagegen.gateway.calls import (
    WITH_KEY,
    AccountOf,
    BooksOf,
    error_answer,
    json_answer,
    json_body,
    pick_fault,
    strike,
)
from prefect_imagegen.gateway.records import Books, Record
from prefect_imagegen.gateway.shapes import history_answer
from prefect_imagegen.gateway.studio import body_text
from prefect_imagegen.gateway.uploads import BadDataUrlError, asset_path, image_of_data_url

_HISTORY_DAYS = 31

router = APIRouter()


class HistoryFilter:
    """The query of the request history."""

    def __init__(
        self,
        page: int = 1,
        per_page: int = 20,
        from_date: date | None = None,
        to_date: date | None = None,
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
        """Whether a first day is asked for that is not later than a moment's."""
        if self._from is None or moment == float("-inf"):
            return False
        return datetime.fromtimestamp(moment, UTC).date() >= self._from

    def takes(self, record: Record) -> bool:
        """Whether the record is asked for."""
        day = datetime.fromtimestamp(record.submitted, UTC).date()
        return (
            (self._from is None or day >= self._from)
            and (self._to is None or day <= self._to)
            and self._model in record.model
            and self._status in ("", _history_state(record))
        )


@router.get("/v1/get-user-credits")
async def credits_left(request: Request, books: BooksOf, account: AccountOf) -> Response:
    """The balance; without a limit, a million."""
    books.calls["credits"] += 1
    fault = pick_fault(books, "credits")
    await strike(fault, "before", request)
    content = {"credits": exact(books.left(account)), "free-credits": 0.0}
    await strike(fault, "after", request)
    return json_answer(content, fault)


@router.get("/inference-request/request-history")
async def history(
    request: Request, filters: Annotated[HistoryFilter, Depends()], books: BooksOf, account: AccountOf
) -> Response:
    """Own requests, a page of rows, newest first."""
    books.calls["history"] += 1
    fault = pick_fault(books, "history")
    await strike(fault, "before", request)
    rows = [_history_row(request, record) for record in books.landed(account) if filters.takes(record)]
    if filters.sort_order == "asc":
        rows.reverse()
    if filters.sort_by in ("model_name", "credits_deduction"):
        rows.sort(key=lambda row: row[filters.sort_by] or 0, reverse=filters.sort_order == "desc")
    page, per_page = filters.page, filters.per_page
    if fault and fault.per_page:
        per_page = min(per_page, fault.per_page)
    if fault and fault.fault == "clamp_pages":
        page = min(page, max(1, math.ceil(len(rows) / per_page)))
    start = (page - 1) * per_page
    await strike(fault, "after", request)
    if start + per_page > len(rows) and filters.reaches(books.forgotten_until):
        # The list would end here as if nothing more had been: who looks for a call must not take it for that.
        raise error_answer(410, "older requests of these days are no longer kept")
    return history_answer(rows[start : start + per_page], fault, {"total": len(rows)})


@router.get("/inference-request/request-history/{request_id}")
async def history_detail(request_id: str, request: Request, books: BooksOf, account: AccountOf) -> Response:
    """One own request, of any age."""
    books.calls["history"] += 1
    fault = pick_fault(books, "history")
    await strike(fault, "before", request)
    record = next((record for record in books.landed(account) if record.request_id == request_id), None)
    if record is None:
        raise error_answer(404, f"Request {request_id} not found")
    row = _history_row(request, record)
    await strike(fault, "after", request)
    return history_answer(row, fault)


@router.get("/inference-model-information/list")
async def catalogue(books: BooksOf) -> list[dict[str, Any]]:
    """The models that are served."""
    return [{"slug": slug, "is_depreciated": False} for slug in books.models]


@router.post("/upload-asset", dependencies=[WITH_KEY])
async def upload(request: Request, books: BooksOf) -> Response:
    """Keep reference images, given as data URLs."""
    books.calls["upload"] += 1
    fault = pick_fault(books, "upload")
    await strike(fault, "before", request)
    body = await json_body(request)
    urls = body.get("data_urls")
    if not isinstance(urls, list) or not urls:
        raise error_answer(400, "data_urls must be a list of data URLs")
    names = [await _keep_asset(books, url) for url in urls]
    base = str(request.base_url).rstrip("/")
    await strike(fault, "after", request)
    content = {"file_urls": [f"{base}/assets/{name}" for name in names], "message": "Files uploaded successfully"}
    return json_answer(content, fault)


@router.head("/assets/{name}")
@router.get("/assets/{name}")
async def asset(name: str, books: BooksOf) -> Response:
    """A reference image that was uploaded."""
    path = asset_path(books, name)
    if path is None:
        raise error_answer(404, "Not Found")
    return Response(await asyncio.to_thread(path.read_bytes), media_type=f"image/{path.suffix[1:]}")


def _history_state(record: Record) -> str:
    return record.status if record.status in ("COMPLETED", "FAILED") else "PENDING"


def _history_row(request: Request, record: Record) -> dict[str, Any]:
    done = record.status == "COMPLETED"
    base = str(request.base_url).rstrip("/")
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


async def _keep_asset(books: Books, url: Any) -> str:
    """Write an uploaded image; its name."""
    try:
        data, suffix = image_of_data_url(str(url))
    except BadDataUrlError as error:
        raise error_answer(400, f"data_urls: {error}") from None
    name = f"{hashlib.sha256(data).hexdigest()}.{suffix if suffix.isalnum() else 'png'}"
    folder = books.folder / "assets"
    folder.mkdir(exist_ok=True)
    await asyncio.to_thread((folder / name).write_bytes, data)
    books.uploads.put(name, len(data), books.settings.clock())
    return name
