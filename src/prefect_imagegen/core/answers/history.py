"""Pages and rows of the API's request history."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from prefect_imagegen.core.answers.json_values import LISTED, is_same_id, parse_json, parse_number, whole

_LONG_WORD = re.compile(r"[A-Za-z0-9+/=]{200,}+")
"""An image in base64 within a body that was sent."""
_LONGEST_LITERAL = 500_000
"""Characters of a Python literal that are parsed, images left out: each may become a value of a kilobyte."""
_PAGING = frozenset({"pagination", "paging", "pageinfo", "page", "meta", "metadata", "links"})
_TOTALS = frozenset({"total", "totalcount", "totalitems", "totalrows"})
_MORE = frozenset({"hasmore", "hasnext", "hasnextpage", "next", "nextpage", "nextcursor", "nexttoken", "nextpagetoken"})
"""Fields in which a listing describes its pages, in lower case and without separators."""


def listed_rows(value: Any) -> list[Any] | None:
    """The rows of a page of the request history; None if the value is not such a page, and proves nothing."""
    if not isinstance(value, dict) or says_failed(value):
        return None
    rows = value.get(LISTED)
    return rows if isinstance(rows, list) else None


def listed_total(value: Mapping[str, Any]) -> int | None:
    """The number of rows on all pages of a listing; None where this page does not say."""
    totals = (parse_number(part.get(name)) for part in _page_facts(value) for name in part if _plain(name) in _TOTALS)
    return next((int(total) for total in totals if total is not None), None)


def announces_more(value: Mapping[str, Any]) -> bool:
    """Whether a page of a listing says, in any known form, that more rows follow."""
    return any(bool(part[name]) for part in _page_facts(value) for name in part if _plain(name) in _MORE)


def _page_facts(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The objects that may describe the paging: the page itself, and its fields for that purpose."""
    yield value
    yield from (part for name, part in value.items() if _plain(name) in _PAGING and isinstance(part, Mapping))


def _plain(name: Any) -> str:
    return str(name).lower().replace("_", "").replace("-", "")


def detail_rows(value: Any, request_id: str) -> list[dict[str, Any]] | None:
    """The history rows of one request, one for each output; None if the value holds no row of that request.

    The rows may stand by themselves or under `data`.
    """
    if not isinstance(value, dict | list):
        return None
    listed = value.get(LISTED, value) if isinstance(value, dict) else value
    rows = listed if isinstance(listed, list) else [listed]
    ours = [row for row in rows if isinstance(row, dict) and is_same_id(row.get("request_id"), request_id)]
    return ours or None


def says_failed(value: dict[str, Any]) -> bool:
    """Whether an object says that it reports an error, whatever its HTTP status."""
    status = value.get("status")
    words = isinstance(status, str) and status.lower() in ("error", "failed", "failure", "fail")
    codes = isinstance(status, int) and not isinstance(status, bool) and status >= 400
    has_error = bool(value.get("error")) or bool(value.get("errors"))
    return has_error or value.get("success") is False or value.get("ok") is False or words or codes


def parse_inputs(text: Any) -> dict[str, Any] | None:
    """The `request_body` of a history row, which is an object, JSON text or the repr of a Python dict; else None."""
    if isinstance(text, dict):
        return text
    if not isinstance(text, str):
        return None
    value = parse_json(text)
    if value is None and len(_LONG_WORD.sub("", text)) <= _LONGEST_LITERAL:
        try:
            value = whole(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, dict) else None
