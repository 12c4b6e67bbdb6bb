"""JSON bodies of any server: values, numbers, times and error texts, within bounded time and memory."""

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

DEEPEST = 6
"""Levels of nesting that are searched: no known answer has more, and a hostile one must not exhaust the stack."""
_MOST_VALUES = 2_000_000
_EPOCH_MS = 1e11
_YEARS = range(2000, 2100)
_HALF_DAY = re.compile(r"\b[ap]\.?m\b", re.IGNORECASE)
LISTED = "data"
"""The field that holds the rows of the request history."""


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON document; None if it is not JSON, or holds millions of values.

    Lone surrogates (half characters) become question marks.
    """
    if _is_huge(data):
        return None
    try:
        return whole(json.loads(data))
    except (ValueError, RecursionError):
        return None


def error_text(data: bytes) -> str:
    """The error text of a body: its `error`, `detail` or `message`, plain or nested; else how the body begins."""
    message = error_of(parse_json(data))
    if message:
        return message
    text = data[:2000].decode("utf-8", "replace")
    return re.sub(r"<[^>]*>", " ", text).strip() or "no text"


def error_of(value: Any, depth: int = 0) -> str | None:
    """The error text in a JSON value, searched in `error`, `detail`, `message` and `msg`; None without one."""
    if isinstance(value, str):
        return value.strip() or None
    if depth > DEEPEST:
        return None
    if isinstance(value, list):
        return "; ".join(filter(None, (error_of(item, depth + 1) for item in value[:5]))) or None
    if isinstance(value, dict):
        for name in ("error", "detail", "message", "msg"):
            message = error_of(value.get(name), depth + 1)
            if message:
                return message
    return None


def parse_number(value: Any) -> float | None:
    """A finite, non-negative number, given as a number or as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = float(value)
    except (ValueError, OverflowError):
        return None
    return amount if 0 <= amount < float("inf") else None


def parse_integer(value: Any) -> int | None:
    """A whole number, given as an integer or as text; None for anything else."""
    try:
        return None if value is None or isinstance(value, bool | float) else int(value)
    except (ValueError, TypeError):
        return None


def parse_time(value: Any) -> datetime | None:
    """A time in any form an API may use: ISO 8601, an HTTP date, or epoch seconds or milliseconds; None if unreadable.

    It has no time zone where the text names none. A date without a time, a time with am or pm, and a year outside
    2000 to 2099 count as unreadable: they leave too much open.
    """
    moment = _moment(value)
    return moment if moment is not None and moment.year in _YEARS else None


def _moment(value: Any) -> datetime | None:
    if isinstance(value, bool) or value in (None, ""):
        return None
    seconds = parse_number(value)
    if seconds:
        try:
            return datetime.fromtimestamp(seconds / (1000 if seconds > _EPOCH_MS else 1), UTC)
        except (ValueError, OverflowError, OSError):
            return None
    text = str(value).strip()
    if ":" not in text or _HALF_DAY.search(text):
        return None
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return read(text)
        except (ValueError, TypeError, IndexError):
            continue
    return None


def is_same_id(named: Any, request_id: str) -> bool:
    """Whether an id in an answer is this request id; it may be written as a number, or in other case."""
    return str(named).casefold() == request_id.casefold()


def shape_of(value: Any) -> str:
    """The shape of a JSON value in a few words, without its contents, for messages about answers not understood."""
    if isinstance(value, dict):
        inner = value.get(LISTED)
        if isinstance(inner, dict):
            return f"an object whose {LISTED} is {shape_of(inner)}"
        names = ", ".join(sorted(str(name)[:30] for name in value)[:6])
        return f"an object with {names}" if names else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "no JSON" if value is None else f"a {type(value).__name__}"


def _is_huge(data: bytes | str) -> bool:
    """Whether a body holds so many values that parsing would take gigabytes; an image in base64 is one value."""
    if len(data) <= _MOST_VALUES:
        return False
    body = data.encode("utf-8", "replace") if isinstance(data, str) else data
    return sum(map(body.count, (b"[", b"{", b","))) > _MOST_VALUES


def whole(value: Any) -> Any:
    """The value with every lone surrogate (from a text cut within a character) replaced, so that files can hold it."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {whole(name): whole(item) for name, item in value.items()}
    return value
