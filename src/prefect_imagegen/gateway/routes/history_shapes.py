"""The request history in other shapes: the right rows, as another version of the API might answer them."""

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import HTMLResponse, Response

from prefect_imagegen.gateway.faults import Fault
from prefect_imagegen.gateway.http.answers import HTML, answer_body, json_answer

Row = dict[str, Any]


async def history_answer(
    data: list[Row] | Row, fault: Fault | None, extra: Mapping[str, Any] | None = None
) -> Response:
    """An answer with a page of rows, or with one row, in the shape of the fault; `extra` goes beside `data`."""
    shape = fault.shape if fault else None
    if fault is None or shape is None:
        return await json_answer({"data": data, **(extra or {})}, fault)
    if shape == "empty_body":
        return Response(b"", media_type="application/json")
    if shape == "html":
        return HTMLResponse(HTML)
    if shape == "cut":
        text = json.dumps({"data": data, **(extra or {})}).encode()
        return await answer_body(text[: len(text) // 2], "application/json", None, {})
    rows = data if isinstance(data, list) else [data]
    if shape in _ROWS:
        rows = [_ROWS[shape](row) for row in rows]
        return await json_answer({"data": rows if isinstance(data, list) else rows[0], **(extra or {})}, None)
    envelopes: dict[str, Any] = {
        "items": {"data": {"items": rows}},
        "requests": {"requests": rows},
        "bare": data,
        "error": {"error": fault.text},
    }
    return await json_answer(envelopes[shape], None)


def _with_text_numbers(row: Row) -> Row:
    return row | {"request_body": repr(_as_text(ast.literal_eval(row["request_body"])))}


def _as_text(value: Any) -> Any:
    """The value with text in place of its numbers and booleans."""
    if isinstance(value, dict):
        return {name: _as_text(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_text(inner) for inner in value]
    return json.dumps(value) if isinstance(value, bool | int | float) else value


def _without(name: str) -> Callable[[Row], Row]:
    return lambda row: {key: value for key, value in row.items() if key != name}


_ROWS: dict[str, Callable[[Row], Row]] = {
    "text_numbers": _with_text_numbers,
    "no_body": lambda row: row | {"request_body": None},
    "no_url": lambda row: row | {"generation_url": None},
    "no_time": _without("model_created"),
    "no_id": _without("request_id"),
}
