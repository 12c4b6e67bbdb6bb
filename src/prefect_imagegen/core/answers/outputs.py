"""Where the images of an answer are: raw bytes, URLs or base64, in any known JSON shape."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prefect_imagegen.core.answers.json_values import DEEPEST, error_of, parse_json
from prefect_imagegen.core.base64_text import decode_base64

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_SHORTEST_BASE64 = 64
"""Characters; a shorter text is a word, not an image in base64."""
_NO_OUTPUT = frozenset({"prompt", "status_url", "response_url", "poll_url", "image_urls", "input", "inputs"})
"""Fields that may hold addresses other than those of outputs."""


@dataclass(frozen=True, slots=True)
class Output:
    """One image of an answer: its bytes, or the URL to fetch them from; or the error text that came instead."""

    data: bytes | None = None
    url: str | None = None
    error: str | None = None


def looks_like_image(data: bytes) -> bool:
    """Whether the bytes begin like a file of an image format."""
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[4:8] == b"ftyp"


def images_of_body(data: bytes) -> tuple[Output, ...]:
    """The images of a v1 answer with status 200: raw bytes, JSON with URLs or base64, or plain base64.

    If there is none, one `Output` with the error.
    """
    if looks_like_image(data):
        return (Output(data=data),)
    value = parse_json(data)
    if isinstance(value, dict | list | str):
        return outputs_of(value)
    text = data[:64].decode("latin-1").strip()
    image = _base64(data.decode("latin-1"))
    return (image or Output(error=f"no image in the answer, which begins {text!r}"),)


def outputs_of(value: Any) -> tuple[Output, ...]:
    """The images of a JSON answer, looked for in this order: images[].url, output, then any URL or base64 text.

    As many as the answer gives; if it gives none, one `Output` with the error.
    """
    if isinstance(value, dict):
        images = value.get("images")
        items = images if isinstance(images, list) else ()
        outputs = _distinct(output for item in items for output in _images_of(item))
        if outputs:
            return outputs
        error = error_of(value) if value.get("error") else None
        if error:
            return (Output(error=error),)
    return _distinct(_walk(value, 0)) or (Output(error="the answer names no output"),)


def _walk(value: Any, depth: int) -> Iterator[Output]:
    """The images of the first field of an object that has any, or of all items of a list."""
    if isinstance(value, str):
        yield from _text_outputs(value)
    elif depth > DEEPEST:
        return
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, depth + 1)
    elif isinstance(value, dict):
        # The fields of an output come first: an address elsewhere may be that of a reference that was sent.
        first = ("output", "output_url", "image_url", "url", "image", "data", "b64_json")
        others = [name for name in value if name not in first and name not in _NO_OUTPUT]
        for name in [*(name for name in first if name in value), *others]:
            outputs = list(_walk(value[name], depth + 1))
            if outputs:
                yield from outputs
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
