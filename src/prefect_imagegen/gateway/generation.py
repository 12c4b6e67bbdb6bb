"""Generation: the blocking call (v1), submit and poll (v2), and the download of outputs."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from prefect_imagegen.gateway.calls import (
    WITH_KEY,
    BooksOf,
    accept,
    answer_body,
    error_answer,
    pick_fault,
    strike,
)
from prefect_imagegen.gateway.faults import Call
from prefect_imagegen.gateway.records import Books, Record
from prefect_imagegen.gateway.studio import BadRequestError, Studio, checked, media_type

router = APIRouter()


@router.post("/v1/{model}", dependencies=[WITH_KEY])
async def run(model: str, request: Request, books: BooksOf) -> Response:
    """Draw and answer with the image's bytes; cost, seed and id are in the headers."""
    body, fault = await accept(request, books, model, "run")
    try:
        checked(model, body)
    except BadRequestError as error:
        raise error_answer(400, str(error)) from None
    studio: Studio = request.app.state.studio
    record = studio.open_record(model, body, fault, str(request.base_url).rstrip("/"))
    await asyncio.shield(studio.start(record))
    if fault is not None and (fault.fault, fault.when) == ("status", "after"):
        books.refund(record, f"Internal error: {fault.text}")
    await strike(fault, "after", request)
    if record.status == "FAILED":
        raise error_answer(500 if record.broken else 400, record.error or "")
    path, record.fetched = books.output_of(record), True
    data = b"" if path is None else await asyncio.to_thread(path.read_bytes)
    headers = {
        "x-request-id": record.request_id,
        "x-cost": f"{record.cost:.6g}",
        "x-generation-time": f"{(record.finished or 0) - (record.started or 0):.3f}",
        "x-seed-value": str(record.seed),
    }
    if record.applied:
        headers["x-imagegen-applied"] = json.dumps(record.applied)  # ASCII, as headers must be
    if books.credits is not None:
        headers["x-remaining-credits"] = f"{books.credits:.6g}"
    return answer_body(data, media_type(record), fault, headers)


@router.post("/v2/{model}", dependencies=[WITH_KEY])
async def submit(model: str, request: Request, books: BooksOf) -> Response:
    """Queue the request; a body that cannot be drawn is found out later, as at Segmind."""
    body, fault = await accept(request, books, model, "submit")
    studio: Studio = request.app.state.studio
    record = studio.open_record(model, body, fault, str(request.base_url).rstrip("/"))
    studio.start(record)
    await strike(fault, "after", request)
    base = str(request.base_url).rstrip("/")
    content = {
        "request_id": record.request_id,
        "status": "QUEUED",
        "poll_url": f"{base}/v1/requests/{record.request_id}",
        "status_url": f"{base}/v2/requests/{record.request_id}/status",
        "response_url": f"{base}/v2/requests/{record.request_id}",
    }
    return answer_body(json.dumps(content).encode(), "application/json", fault, {})


@router.get("/v2/requests/{request_id}/status", dependencies=[WITH_KEY])
async def status(request_id: str, request: Request, books: BooksOf) -> Response:
    """The state of a v2 request."""
    return await _job(request, books, request_id, "status")


@router.get("/v1/requests/{request_id}", dependencies=[WITH_KEY])
@router.get("/v2/requests/{request_id}", dependencies=[WITH_KEY])
async def result(request_id: str, request: Request, books: BooksOf) -> Response:
    """The final body of a v2 request, with the address of its output."""
    return await _job(request, books, request_id, "result")


@router.get("/generations/{name}")
async def download(name: str, request: Request, books: BooksOf) -> Response:
    """An output; public, as at Segmind, until its time is over."""
    books.calls["download"] += 1
    record = books.records.get(name.rsplit(".", 1)[0])
    fault = pick_fault(books, "download", record)
    await strike(fault, "before", request)
    path = books.output_of(record) if record else None
    if record is None or path is None or path.name != name:
        raise error_answer(404, "Not Found")
    record.fetched = True
    return answer_body(await asyncio.to_thread(path.read_bytes), media_type(record), fault, {})


async def _job(request: Request, books: Books, request_id: str, call: Call) -> Response:
    """The state (`status`) or the final body (`result`) of a v2 request."""
    books.calls[call] += 1
    record = books.find(request_id)
    fault = pick_fault(books, call, record)
    await strike(fault, "before", request)
    if record is None:
        raise error_answer(404, f"Request {request_id} not found")
    base = str(request.base_url).rstrip("/")
    content: dict[str, Any] = {"status": record.status, "request_id": request_id, "metrics": _metrics(record)}
    if record.status == "FAILED":
        said = record.fault.status if record.fault and record.fault.fault == "failed" else 422
        return JSONResponse(content | {"error": record.error}, said if said == 200 else 422)
    if record.status != "COMPLETED":
        if record.fault and record.fault.fault == "unknown_state":
            content["status"] = "WARMING_UP"
        url = f"{base}/v2/requests/{request_id}"
        return JSONResponse(content | {"status_url": f"{url}/status", "response_url": url})
    content["metrics"]["cost"] = record.cost
    if books.credits is not None:
        content["metrics"]["remaining_credits"] = round(books.credits, 6)
    if call == "result":
        content |= _output(record, books, base)
    return answer_body(json.dumps(content).encode(), "application/json", fault, {})


def _metrics(record: Record) -> dict[str, float]:
    if record.finished is None or record.started is None:
        return {}
    return {
        "inference_time": round(record.finished - record.started, 3),
        "queue_time": round(record.started - record.submitted, 3),
        "total_time": round(record.finished - record.submitted, 3),
    }


def _output(record: Record, books: Books, base: str) -> dict[str, Any]:
    url = f"{base}/generations/{record.output}"
    path = books.output_of(record)
    size = str(path.stat().st_size) if path else "0"
    return {
        "output": url,
        "seed": str(record.seed),
        "prompt": record.body.get("prompt"),
        "error": None,
        "images": [{"url": url, "content_type": media_type(record), "file_name": record.output, "file_size": size}],
        "timings": {},
    } | ({"applied": dict(record.applied)} if record.applied else {})
