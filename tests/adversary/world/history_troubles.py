"""What goes wrong with the request history: envelopes, pages, order, types."""

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from .wire import Reply, Request


def rows_of(reply: Reply) -> tuple[Any, list[Any]] | None:
    """The JSON value of an honest list, and its rows."""
    try:
        value = json.loads(reply.body)
    except ValueError:
        return None
    rows = value.get("data") if isinstance(value, dict) else value
    return (value, rows) if isinstance(rows, list) else None


def _with_rows(reply: Reply, rows: list[Any]) -> Reply:
    listing = rows_of(reply)
    if listing is None:
        return reply
    value = listing[0]
    return replace(reply, body=json.dumps(value | {"data": rows} if isinstance(value, dict) else rows).encode())


def _envelope(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """The rows in another envelope. Only one at a time: around that of an error, it would look like an empty list."""
    listing = rows_of(reply)
    if listing is None or "envelope(" in reply.note:
        return reply
    rows = listing[1]
    forms: dict[str, Any] = {
        "items": {"data": {"items": rows, "count": len(rows)}},
        "bare": rows,
        "requests": {"requests": rows},
        "results": {"results": rows, "next": None},
        "by-id": {"data": {str(row.get("request_id")): row for row in rows}},
        "null": {"data": None},
        "nothing": {"status": "ok"},
        "text": {"data": json.dumps(rows)},
        "empty-error": {"data": [], "error": "history is temporarily unavailable"},
        "nested-rows": {"data": [{"request": row} for row in rows]},
    }
    return replace(reply, body=json.dumps(forms[arg]).encode())


def _shuffled(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    listing = rows_of(reply)
    if listing is None:
        return reply
    rows = list(listing[1])
    rng.shuffle(rows)
    return _with_rows(reply, rows)


def _oldest_first(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    listing = rows_of(reply)
    return reply if listing is None else _with_rows(reply, listing[1][::-1])


def _doubled(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    listing = rows_of(reply)
    return reply if listing is None else _with_rows(reply, [row for row in listing[1] for _ in range(2)])


def _row_types(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """The inputs of every row with other types: `arg` is `texts` (numbers as text) or `floats`."""
    listing = rows_of(reply)
    if listing is None:
        return reply
    return _with_rows(reply, [_retyped(row, arg) for row in listing[1]])


def _retyped(row: dict[str, Any], arg: str) -> dict[str, Any]:
    body = _inputs(row.get("request_body"))
    if body is None:
        return row
    return row | {"request_body": json.dumps({name: _other(value, arg) for name, value in body.items()})}


def _other(value: Any, arg: str) -> Any:
    if isinstance(value, bool):
        return str(value) if arg == "texts" else int(value)
    if isinstance(value, int | float):
        return str(value) if arg == "texts" else float(value)
    return None if value == [] and arg == "texts" else value


def _inputs(text: Any) -> dict[str, Any] | None:
    if isinstance(text, dict):
        return text
    if not isinstance(text, str):
        return None
    try:
        return dict(json.loads(text))
    except ValueError:
        pass
    try:
        return dict(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return None  # another trouble has made it unreadable


def _unreadable(reply: Reply, arg: Any, request: Request, rng: Random) -> Reply:
    """The inputs of every row cut off after `arg` characters, so that they are no JSON."""
    listing = rows_of(reply)
    if listing is None:
        return reply
    rows = [row | {"request_body": str(row.get("request_body"))[:arg] + "..."} for row in listing[1]]
    return _with_rows(reply, rows)


HISTORY_SPOILERS: dict[str, Callable[[Reply, Any, Request, Random], Reply]] = {
    "envelope": _envelope,
    "shuffled": _shuffled,
    "oldest-first": _oldest_first,
    "doubled": _doubled,
    "row-types": _row_types,
    "unreadable-inputs": _unreadable,
}
