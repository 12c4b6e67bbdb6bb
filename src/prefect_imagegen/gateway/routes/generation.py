"""Generation: the blocking call (v1), submit and poll (v2), and the download of outputs."""

import asyncio
import json
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from prefect_imagegen.core.money import exact, plain
from prefect_imagegen.gateway.faults import Call
from prefect_imagegen.gateway.http.answers import FileAnswer, answer_body, error_answer, json_answer
from prefect_imagegen.gateway.jobs.runner import BadRequestError, JobRunner, checked_params, media_type
from prefect_imagegen.gateway.routes.calls import AccountOf, AccountStateOf, accepted, base_of, inject, pick_fault
from prefect_imagegen.gateway.state.account import AccountState, Record

router = APIRouter()


@router.post("/v1/{model}")
async def run(model: str, request: Request, account_state: AccountStateOf, account: AccountOf) -> Response:
    """Draw and answer with the image's bytes; cost, seed and id are in the headers."""
    runner: JobRunner = request.app.state.runner
    async with accepted(request, account_state, account, model, "run") as call:
        try:
            checked_params(model, call.body)
        except BadRequestError as error:
            raise error_answer(400, str(error)) from None
        fault = call.fault
        record = runner.open_record(account, model, call.body, fault, base_of(request, account_state))
        task = runner.start(record, call.seat)
    del call  # its body may be large, and the work may take long
    await asyncio.shield(task)
    if fault is not None and fault.when == "after" and fault.replaced_status not in (None, 200):
        account_state.refund(record, f"Internal error: {fault.text}")
    await inject(fault, "after", request)
    if record.status == "FAILED":
        raise error_answer(500 if record.broken else 400, record.error or "")
    data, record.fetched = await _output_bytes(account_state, record), True
    headers = {
        "x-request-id": record.request_id,
        "x-cost": plain(record.cost),
        "x-generation-time": f"{(record.finished or 0) - (record.started or 0):.3f}",
        "x-seed-value": str(record.seed),
        "x-remaining-credits": plain(account_state.left(account)),
    }
    if record.applied:
        headers["x-imagegen-applied"] = json.dumps(record.applied)  # ASCII, as headers must be
    return await answer_body(data, media_type(record), fault, headers)


@router.post("/v2/{model}")
async def submit(model: str, request: Request, account_state: AccountStateOf, account: AccountOf) -> Response:
    """Queue the request; a body that cannot be drawn is found out later, as at Segmind."""
    runner: JobRunner = request.app.state.runner
    base = base_of(request, account_state)
    async with accepted(request, account_state, account, model, "submit") as call:
        record = runner.open_record(account, model, call.body, call.fault, base)
        runner.start(record, call.seat)
        fault = call.fault
    await inject(fault, "after", request)
    content = {
        "request_id": record.request_id,
        "status": "QUEUED",
        "poll_url": f"{base}/v1/requests/{record.request_id}",
        "status_url": f"{base}/v2/requests/{record.request_id}/status",
        "response_url": f"{base}/v2/requests/{record.request_id}",
    }
    return await json_answer(content, fault)


@router.get("/v2/requests/{request_id}/status")
async def status(request_id: str, request: Request, account_state: AccountStateOf, account: AccountOf) -> Response:
    """The state of a v2 request."""
    return await _job(request, account_state, account, request_id, "status")


@router.get("/v1/requests/{request_id}")
@router.get("/v2/requests/{request_id}")
async def result(request_id: str, request: Request, account_state: AccountStateOf, account: AccountOf) -> Response:
    """The final body of a v2 request, with the address of its output."""
    return await _job(request, account_state, account, request_id, "result")


@router.get("/generations/{name}")
async def download(name: str, request: Request, account_state: AccountStateOf) -> Response:
    """An output; public, as at Segmind, until its time is over."""
    account_state.calls["download"] += 1
    record = account_state.records.get(name.rsplit(".", 1)[0])
    fault = pick_fault(account_state, "download", record)
    await inject(fault, "before", request)
    path = account_state.output_of(record) if record else None
    if record is None or path is None or path.name != name:
        raise error_answer(404, "Not Found")
    record.fetched = True
    if fault is None:
        return FileAnswer(path, media_type(record))
    data = await asyncio.to_thread(path.read_bytes)
    await inject(fault, "after", request)
    return await answer_body(data, media_type(record), fault, {})


async def _output_bytes(account_state: AccountState, record: Record) -> bytes:
    """The image of a v1 call. Refunds the call and raises AnswerError (500) if the file was removed meanwhile."""
    path = account_state.output_of(record)
    with suppress(FileNotFoundError):
        if path is not None:
            return await asyncio.to_thread(path.read_bytes)
    text = "Internal error: the output was removed before it was sent, to make room for others"
    account_state.refund(record, text)
    raise error_answer(500, text)


async def _job(request: Request, account_state: AccountState, account: str, request_id: str, call: Call) -> Response:
    """The state (`status`) or the final body (`result`) of a v2 request."""
    account_state.calls[call] += 1
    record = account_state.find(account, request_id)
    fault = pick_fault(account_state, call, record)
    await inject(fault, "before", request)
    if record is None:
        raise error_answer(404, f"Request {request_id[:100]} not found")
    status, content = _job_answer(record, account_state, base_of(request, account_state), call)
    await inject(fault, "after", request)
    return await json_answer(content, fault, status)


def _job_answer(record: Record, account_state: AccountState, base: str, call: Call) -> tuple[int, dict[str, Any]]:
    """The HTTP status and body of an answer about a v2 request."""
    content: dict[str, Any] = {
        "status": record.status,
        "request_id": record.request_id,
        "metrics": _metrics(record),
    }
    if record.status == "FAILED":
        script_status = record.fault.status if record.fault and record.fault.fault == "failed" else 422
        return (200 if script_status == 200 else 422), content | {"error": record.error}
    if record.status != "COMPLETED":
        if record.fault and record.fault.fault == "unknown_state":
            content["status"] = "WARMING_UP"
        url = f"{base}/v2/requests/{record.request_id}"
        return 200, content | {"status_url": f"{url}/status", "response_url": url}
    content["metrics"] |= {"cost": record.cost, "remaining_credits": exact(account_state.left(record.account))}
    return 200, content | (_output(record, account_state, base) if call == "result" else {})


def _metrics(record: Record) -> dict[str, float]:
    if record.finished is None or record.started is None:
        return {}
    return {
        "inference_time": round(record.finished - record.started, 3),
        "queue_time": round(record.started - record.submitted, 3),
        "total_time": round(record.finished - record.submitted, 3),
    }


def _output(record: Record, account_state: AccountState, base: str) -> dict[str, Any]:
    url = f"{base}/generations/{record.output}"
    path = account_state.output_of(record)
    size = str(path.stat().st_size) if path else "0"
    return {
        "output": url,
        "seed": str(record.seed),
        "prompt": record.body.get("prompt"),
        "error": None,
        "images": [{"url": url, "content_type": media_type(record), "file_name": record.output, "file_size": size}],
        "timings": {},
    } | ({"applied": dict(record.applied)} if record.applied else {})
