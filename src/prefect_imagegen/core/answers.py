"""The shapes in which the Segmind API answers, read without trusting its headers.

Source: Segmind's documentation of v1 and v2, its SDK 1.3.0, and public users' code; they contradict one another,
so every shape that any of them shows is understood. What is not understood proves nothing, and is said to be so.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from prefect_imagegen.core.base64_text import decode_base64

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_SHORTEST_BASE64 = 64
"""Shorter texts are words."""
_DEEPEST = 6
"""No known answer nests deeper; a hostile one shall cost no stack."""
_MOST_VALUES = 2_000_000
_LONG_WORD = re.compile(r"[A-Za-z0-9+/=]{200,}+")
"""A picture in base64, within what was sent."""
_LONGEST_LITERAL = 500_000
"""Characters of a Python dict in a history, pictures left out: each may become a value of a kilobyte."""
_DONE = frozenset({"COMPLETED", "SUCCESS", "SUCCEEDED"})
_UNDER_WAY = frozenset({"QUEUED", "PROCESSING", "PENDING", "IN_QUEUE", "IN_PROGRESS", "STARTING", "RUNNING"})
_JOB_STATUSES = (200, 422)
"""The HTTP statuses under which a body tells of a job: 422 goes with FAILED."""
_OUTPUT_NAMES = ("output", "images", "image_url", "output_url", "data")
_LISTED = "data"
"""The name under which the request history gives its rows."""
_PAGING = frozenset({"pagination", "paging", "pageinfo", "page", "meta", "metadata", "links"})
_TOTALS = frozenset({"total", "totalcount", "totalitems", "totalrows"})
_MORE = frozenset({"hasmore", "hasnext", "hasnextpage", "next", "nextpage", "nextcursor", "nexttoken", "nextpagetoken"})
"""Names, in plain letters, of what a listing tells of its pages."""
_NO_OUTPUT = frozenset({"prompt", "status_url", "response_url", "poll_url", "image_urls", "input", "inputs"})
"""What may hold addresses that are no output."""
_EPOCH_MS = 1e11
_YEARS = range(2000, 2100)
_HALF_DAY = re.compile(r"\b[ap]\.?m\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Output:
    """Where one image is: its bytes, or a URL to fetch them from; or the error that came instead."""

    data: bytes | None = None
    url: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class JobAnswer:
    """An answer about a v2 job: `state` is COMPLETED, FAILED or PENDING; metrics are what the API measured."""

    state: str
    error: str | None = None
    outputs: tuple[Output, ...] = ()
    """One for each image; empty where none is named (yet)."""
    is_known: bool = True
    """Whether the word for the state is one that we know; another one is not terminal."""
    seed: int | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


def looks_like_image(data: bytes) -> bool:
    """Whether the first bytes are those of an image format."""
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[4:8] == b"ftyp"


def parse_json(data: bytes | str) -> Any:
    """The JSON value, or None if the bytes or the text are none, or are of millions of values.

    Half characters become question marks.
    """
    if _is_huge(data):
        return None
    try:
        return _whole(json.loads(data))
    except (ValueError, RecursionError):
        return None


def error_text(data: bytes) -> str:
    """The error text of a body: `error`, `detail` or `message`, plain or nested; else its beginning."""
    found = _error_of(parse_json(data))
    if found:
        return found
    text = data[:2000].decode("utf-8", "replace")
    return re.sub(r"<[^>]*>", " ", text).strip() or "no text"


def images_of_body(data: bytes) -> tuple[Output, ...]:
    """The images of a v1 answer with status 200: raw bytes, JSON with URLs or base64, or plain base64.

    Where there is none, one `Output` with the error.
    """
    if looks_like_image(data):
        return (Output(data=data),)
    value = parse_json(data)
    if isinstance(value, dict | list | str):
        return outputs_of(value)
    text = data[:64].decode("latin-1").strip()
    found = _base64(data.decode("latin-1"))
    return (found or Output(error=f"no image in the answer, which begins {text!r}"),)


def outputs_of(value: Any) -> tuple[Output, ...]:
    """The images of a JSON answer, in the order: images[].url, output, then any URL or base64 within.

    Several, where the answer gives several; where there is none, one `Output` with the error.
    """
    if isinstance(value, dict):
        images = value.get("images")
        items = images if isinstance(images, list) else ()
        found = _distinct(out for item in items for out in _images_of(item))
        if found:
            return found
        error = _error_of(value) if value.get("error") else None
        if error:
            return (Output(error=error),)
    return _distinct(_walk(value, 0)) or (Output(error="the answer names no output"),)


def job_of(value: Any, *, status: int = 200, request_id: str | None = None) -> JobAnswer | None:
    """A v2 status or result body; None if it is no such body: it proves nothing then.

    It counts with HTTP status 200 or 422 only, and if it names our `request_id` or none. Only FAILED and the words for
    'done' are terminal.
    """
    if status not in _JOB_STATUSES or not isinstance(value, dict) or not isinstance(value.get("status"), str):
        return None
    named = value.get("request_id")
    if request_id is not None and named is not None and not is_same_id(named, request_id):
        return None
    state = value["status"].upper()
    metrics = value.get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    facts: dict[str, Any] = {
        "seed": _integer(value.get("seed")),
        "cost_usd": number(metrics.get("cost")),
        "latency_s": number(metrics.get("total_time")) or number(metrics.get("inference_time")),
        "metrics": metrics,
    }
    if state == "FAILED":
        return JobAnswer("FAILED", error=_error_of(value) or "the API gave no reason", **facts)
    if state in _DONE:
        outputs = outputs_of(value) if any(value.get(name) for name in _OUTPUT_NAMES) else ()
        return JobAnswer("COMPLETED", outputs=tuple(one for one in outputs if one.error is None), **facts)
    return JobAnswer("PENDING", is_known=state in _UNDER_WAY, **facts)


def listed_rows(value: Any) -> list[Any] | None:
    """The rows of a page of the request history; None if it is no such page, and so proves nothing."""
    if not isinstance(value, dict) or says_failed(value):
        return None
    rows = value.get(_LISTED)
    return rows if isinstance(rows, list) else None


def listed_total(value: Mapping[str, Any]) -> int | None:
    """How many rows there are on all pages of a listing, where one of them tells."""
    told = (number(part.get(name)) for part in _page_facts(value) for name in part if _plain(name) in _TOTALS)
    return next((int(total) for total in told if total is not None), None)


def announces_more(value: Mapping[str, Any]) -> bool:
    """Whether a page of a listing says, in whatever way, that more rows follow."""
    return any(bool(part[name]) for part in _page_facts(value) for name in part if _plain(name) in _MORE)


def _page_facts(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parts of a page that tell of paging: the object itself, and those within it."""
    yield value
    yield from (part for name, part in value.items() if _plain(name) in _PAGING and isinstance(part, Mapping))


def _plain(name: Any) -> str:
    return str(name).lower().replace("_", "").replace("-", "")


def detail_rows(value: Any, request_id: str) -> list[dict[str, Any]] | None:
    """The rows of one request, bare or under `data`, one for each output; None if it is none of that request."""
    if not isinstance(value, dict | list):
        return None
    found = value.get(_LISTED, value) if isinstance(value, dict) else value
    rows = found if isinstance(found, list) else [found]
    ours = [row for row in rows if isinstance(row, dict) and is_same_id(row.get("request_id"), request_id)]
    return ours or None


def is_same_id(named: Any, request_id: str) -> bool:
    """Whether an answer names a request, whose id it may write as a number, or in other letters (big or small)."""
    return str(named).casefold() == request_id.casefold()


def says_failed(value: dict[str, Any]) -> bool:
    """Whether an object says of itself, under whatever HTTP status, that it is no answer to what was asked."""
    status = value.get("status")
    words = isinstance(status, str) and status.lower() in ("error", "failed", "failure", "fail")
    codes = isinstance(status, int) and not isinstance(status, bool) and status >= 400
    said = bool(value.get("error")) or bool(value.get("errors"))
    return said or value.get("success") is False or value.get("ok") is False or words or codes


def shape_of(value: Any) -> str:
    """A JSON value in a few words, without what it holds: for telling what was not understood."""
    if isinstance(value, dict):
        inner = value.get(_LISTED)
        if isinstance(inner, dict):
            return f"an object whose {_LISTED} is {shape_of(inner)}"
        names = ", ".join(sorted(str(name)[:30] for name in value)[:6])
        return f"an object with {names}" if names else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "no JSON" if value is None else f"a {type(value).__name__}"


def moment(value: Any) -> datetime | None:
    """A time in any form that an API may give it; without a zone where it says none. None if it is no time.

    A day without an hour, a time with am or pm, and one of another epoch (a zero) are none: too little is known.
    """
    found = _moment(value)
    return found if found is not None and found.year in _YEARS else None


def _moment(value: Any) -> datetime | None:
    if isinstance(value, bool) or value in (None, ""):
        return None
    seconds = number(value)
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


def parse_inputs(text: Any) -> dict[str, Any] | None:
    """The `request_body` of a history row: an object, JSON text or the repr of a Python dict."""
    if isinstance(text, dict):
        return text
    if not isinstance(text, str):
        return None
    value = parse_json(text)
    if value is None and len(_LONG_WORD.sub("", text)) <= _LONGEST_LITERAL:
        try:
            value = _whole(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def number(value: Any) -> float | None:
    """A finite, non-negative number, also where it came as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if 0 <= found < float("inf") else None


def _is_huge(data: bytes | str) -> bool:
    """Whether a body holds so many values that they would take gigabytes; pictures in base64 are one each."""
    if len(data) <= _MOST_VALUES:
        return False
    body = data.encode("utf-8", "replace") if isinstance(data, str) else data
    return sum(map(body.count, (b"[", b"{", b","))) > _MOST_VALUES


def _whole(value: Any) -> Any:
    """A value whose texts any file can hold: cut within a character, they have lone surrogates."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value


def _integer(value: Any) -> int | None:
    try:
        return None if value is None or isinstance(value, bool | float) else int(value)
    except (ValueError, TypeError):
        return None


def _error_of(value: Any, depth: int = 0) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if depth > _DEEPEST:
        return None
    if isinstance(value, list):
        return "; ".join(filter(None, (_error_of(item, depth + 1) for item in value[:5]))) or None
    if isinstance(value, dict):
        for name in ("error", "detail", "message", "msg"):
            found = _error_of(value.get(name), depth + 1)
            if found:
                return found
    return None


def _walk(value: Any, depth: int) -> Iterator[Output]:
    """All images of the first part of a value that has any; of a list, those of all its items."""
    if isinstance(value, str):
        yield from _text_outputs(value)
    elif depth > _DEEPEST:
        return
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, depth + 1)
    elif isinstance(value, dict):
        # An address beside the output may be that of a reference that was sent.
        first = ("output", "output_url", "image_url", "url", "image", "data", "b64_json")
        others = [name for name in value if name not in first and name not in _NO_OUTPUT]
        for name in [*(name for name in first if name in value), *others]:
            found = list(_walk(value[name], depth + 1))
            if found:
                yield from found
                return


def _images_of(item: Any) -> Iterator[Output]:
    yield from _text_outputs(item.get("url") if isinstance(item, dict) else item)


def _distinct(outputs: Iterable[Output]) -> tuple[Output, ...]:
    return tuple(dict.fromkeys(outputs))


def _text_outputs(text: Any) -> Iterator[Output]:
    if not isinstance(text, str):
        return
    if text.startswith(("http://", "https://")):
        yield Output(url=text)
    elif text[:1] in "{[":
        inner = parse_json(text)
        if inner is not None:
            yield from _walk(inner, 1)
    else:
        yield from filter(None, [_base64(text)])


def _base64(text: str) -> Output | None:
    if len(text) < _SHORTEST_BASE64:
        return None
    try:
        data = decode_base64(text)
    except ValueError:
        return None
    return Output(data=data) if looks_like_image(data) else None
