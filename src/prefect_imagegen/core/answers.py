"""The shapes in which the Segmind API answers, read without trusting its headers.

Source: Segmind's documentation of v1 and v2, its SDK 1.3.0, and public users' code; they contradict one another,
so every shape that any of them shows is understood.
"""

import ast
import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from typing import Any

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_BASE64 = re.compile(r"^[A-Za-z0-9+/_\s-]{64,}={0,2}\s*$")
_DATA_URI = re.compile(r"^data:[^,]*;base64,(.+)$", re.DOTALL)
_DEEPEST = 6
"""No known answer nests deeper; a hostile one shall cost no stack."""
_DONE = frozenset({"COMPLETED", "SUCCESS", "SUCCEEDED"})
_FAILED = frozenset({"FAILED", "ERROR", "CANCELLED", "CANCELED"})


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
    output: Output | None = None
    seed: int | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


def looks_like_image(data: bytes) -> bool:
    """Whether the first bytes are those of an image format."""
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[4:8] == b"ftyp"


def parse_json(data: bytes | str) -> Any:
    """The JSON value, or None if the bytes or the text are none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def error_text(data: bytes) -> str:
    """The error text of a body: `error`, `detail` or `message`, plain or nested; else its beginning."""
    found = _error_of(parse_json(data))
    if found:
        return found
    text = data[:2000].decode("utf-8", "replace")
    return re.sub(r"<[^>]*>", " ", text).strip() or "no text"


def image_of_body(data: bytes) -> Output:
    """The image of a v1 answer with status 200: raw bytes, JSON with a URL or base64, or plain base64."""
    if looks_like_image(data):
        return Output(data=data)
    value = parse_json(data)
    if isinstance(value, dict | list | str):
        return output_of(value)
    text = data[:64].decode("latin-1").strip()
    return _base64(data.decode("latin-1")) or Output(error=f"no image in the answer, which begins {text!r}")


def output_of(value: Any) -> Output:
    """The image of a JSON answer, in the order: images[].url, output, then any URL or base64 within."""
    if isinstance(value, dict):
        images = value.get("images")
        for item in images if isinstance(images, list) else ():
            found = _text_output(item.get("url") if isinstance(item, dict) else item)
            if found:
                return found
        error = _error_of(value) if value.get("error") else None
        if error:
            return Output(error=error)
    return _walk(value, 0) or Output(error="the answer names no output")


def job_of(value: Any) -> JobAnswer | None:
    """A v2 status or result body; None if it is no such body (HTML, another service).

    A body that announces a terminal state wins over the HTTP status. An unknown state is not terminal.
    """
    if not isinstance(value, dict) or not isinstance(value.get("status"), str):
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
    if state in _FAILED:
        return JobAnswer("FAILED", error=_error_of(value) or "the API gave no reason", **facts)
    if state in _DONE:
        has_output = any(value.get(name) for name in ("output", "images", "image_url", "output_url", "data"))
        return JobAnswer("COMPLETED", output=output_of(value) if has_output else None, **facts)
    return JobAnswer("PENDING", **facts)


def parse_inputs(text: Any) -> dict[str, Any] | None:
    """The `request_body` of a history row: an object, JSON text or the repr of a Python dict."""
    if isinstance(text, dict):
        return text
    if not isinstance(text, str):
        return None
    value = parse_json(text)
    if value is None:
        try:
            value = ast.literal_eval(text)
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


def _walk(value: Any, depth: int) -> Output | None:
    if isinstance(value, str):
        return _text_output(value)
    if depth > _DEEPEST:
        return None
    if isinstance(value, dict):
        first = ("output_url", "image_url", "url", "output", "image", "data", "b64_json")
        names = [name for name in first if name in value] + [
            name
            for name in value
            if name not in first and name not in ("prompt", "status_url", "response_url", "poll_url")
        ]
        items = [value[name] for name in names]
    elif isinstance(value, list):
        items = value
    else:
        return None
    return next((found for item in items if (found := _walk(item, depth + 1))), None)


def _text_output(text: Any) -> Output | None:
    if not isinstance(text, str):
        return None
    if text.startswith(("http://", "https://")):
        return Output(url=text)
    if match := _DATA_URI.match(text):
        return _base64(match[1])
    if text[:1] in "{[":
        inner = parse_json(text)
        return _walk(inner, 1) if inner is not None else None
    return _base64(text)


def _base64(text: str) -> Output | None:
    if not _BASE64.match(text):
        return None
    try:
        data = base64.b64decode("".join(text.split()), altchars=b"-_" if "-" in text or "_" in text else None)
    except (binascii.Error, ValueError):
        return None
    return Output(data=data) if looks_like_image(data) else None
