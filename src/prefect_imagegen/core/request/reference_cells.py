"""Parses cells of references: an address or path, several addresses, JSON, attachments, or an object. Pure.

One rule decides where a text is several addresses: it is cut at commas, semicolons, bars and blanks that stand right
before a `scheme://`, if each piece is a whole URL. A piece with a query may go on behind a comma, so that one is
refused rather than guessed; items of a list are never cut there. Lists of paths are not guessed at all.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from prefect_imagegen.core.request.references import BadReferenceError

_REMEDY = 'give them as a list, as JSON (["...", "..."]) or in several columns'
_NO_DATA = "image data does not belong into a manifest; give an address or a path"
_BLANKS = " \t\r\n\f\v\u00a0\u200b\u200e\u200f\u2060\ufeff"
"""What may stand around an address unseen: blanks, and the marks that copying from pages and tables leaves."""
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{1,15}://"
_STARTS = re.compile(_SCHEME)
_CUT = re.compile(rf"(?<![\s,;|])[\s,;|]+(?={_SCHEME})")
_WRAPPED = r""""[^"]*"|'[^']*'|“[^”]*”|<[^<>\s]*>"""
_QUOTED = re.compile(rf"(?:{_WRAPPED})(?:[\s,;|]+(?:{_WRAPPED}))*[\s,;|]*")
_ATTACHED = re.compile(rf"\(({_SCHEME}[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)\)(?=[\s,;]|$)")
_FORMULA = re.compile(r'=(?:HYPERLINK|IMAGE)\(\s*"([^"]+)"', re.IGNORECASE)
_LIST_BEGINS = re.compile(r"""[\[{]\s*["'{\[]""")
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_SRCSET = re.compile(r"\s\d+(?:\.\d+)?[wx]$")
_ENDING = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif)"
_ENDS_LIKE_PICTURE = re.compile(rf"{_ENDING}$", re.IGNORECASE)
_BASE64 = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR)[A-Za-z0-9+/=\s]{60}")
_HOST_FIRST = re.compile(
    r"(?:www\.[^/\s]+|[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|io|co|dev|app|[a-z]{2}))/", re.IGNORECASE
)
_HALF_SCHEME = re.compile(r"h?t?tps?:|https?//|https?%3A", re.IGNORECASE)
_PATHS = re.compile(rf"{_ENDING}\s*[,;|\n]", re.IGNORECASE)
_ADDRESS_FIELDS = ("url", "src", "uri", "path")
_DEEPEST = 4


def reference_texts(cells: Iterable[Any]) -> list[str]:
    """The references in a row's cells, in order, each as it is written, without blanks and marks around it.

    A cell is null, text, a list, or an object with one of the fields url, src, uri, path (the first that is there).
    Raises BadReferenceError.
    """
    return [text for cell in cells for text in _of_value(cell, 0)]


def path_hint(text: str) -> str:
    """A hint about a path that does not exist, as the end of a sentence; empty if there is none."""
    if "://" in text:
        return ""
    if _HALF_SCHEME.match(text) or _HOST_FIRST.match(text):
        return "; if it is meant as an address, it has to begin with https:// or http://"
    if _PATHS.search(text):
        return f"; if these are several, {_REMEDY}"
    if "\\" in text:
        return "; paths are written with / and not with \\"
    return ""


def _of_value(value: Any, depth: int) -> list[str]:
    """The references of a cell (depth 0), or of what stands within its lists and objects."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, str):
        return _of_text(value, depth)
    if isinstance(value, bytes):
        raise BadReferenceError(_NO_DATA)
    if not isinstance(value, list | tuple | dict) or depth > _DEEPEST:
        raise BadReferenceError("a reference must be a URL or a path")
    if isinstance(value, dict):
        return _of_object(value, depth)
    return [text for item in value for text in _of_value(item, depth + 1)]


def _of_object(value: dict[Any, Any], depth: int) -> list[str]:
    fields = {name.lower(): content for name, content in value.items() if isinstance(name, str)}
    if fields.get("bytes"):
        raise BadReferenceError(_NO_DATA)
    for name in _ADDRESS_FIELDS:
        if isinstance(fields.get(name), str) and fields[name].strip(_BLANKS):
            return _of_value(fields[name], depth + 1)
    if fields.keys().isdisjoint(_ADDRESS_FIELDS):
        names = ", ".join(sorted(fields)[:8]) or "nothing"
        raise BadReferenceError(f"the object has none of the fields url, src, uri and path (it has: {names})")
    return []


def _of_text(text: str, depth: int) -> list[str]:
    _refuse_half_characters(text)
    text = text.strip(_BLANKS)
    if not text:
        return []
    if text[0] in _CLOSING and (listed := _of_brackets(text, depth)) is not None:
        return listed
    if _QUOTED.fullmatch(text):
        return [address for token in re.findall(_WRAPPED, text) for address in _of_text(token[1:-1], depth + 1)]
    if (formula := _FORMULA.match(text)) is not None:
        return _of_text(formula[1], depth + 1)
    if text.startswith("<"):
        raise BadReferenceError("it is markup; give the address alone")
    if _BASE64.match(text):
        raise BadReferenceError(_NO_DATA)
    return _attachments(text) or _pieces(text, is_item=depth > 0)


def _of_brackets(text: str, depth: int) -> list[str] | None:
    """The references of a text form of a list or an object; None where it is none, but a name with brackets.

    Besides JSON: what Python, NumPy, Postgres and DuckDB print for lists.
    """
    if depth > _DEEPEST:
        raise BadReferenceError("a reference must be a URL or a path")
    if text[0] != "(":
        try:
            return _of_value(json.loads(text), depth + 1)
        except (json.JSONDecodeError, RecursionError):
            pass
    is_closed = text.endswith(_CLOSING[text[0]])
    inner = text[1:-1].strip(_BLANKS)
    if is_closed and _QUOTED.fullmatch(inner):
        return [address for token in re.findall(_WRAPPED, inner) for address in _of_text(token[1:-1], depth + 1)]
    if is_closed and _STARTS.match(inner):
        return _pieces(inner, is_item=False)
    if text[0] != "(" and (is_closed or _LIST_BEGINS.match(text)):
        raise BadReferenceError('a reference list in text form must be JSON, such as ["a.png", "b.png"]')
    return None


def _attachments(text: str) -> list[str]:
    """The addresses of `name (https://...), name (https://...)`, and of links in Markdown; none where it is neither."""
    if _STARTS.match(text) or not text.endswith(")"):
        return []
    addresses = _ATTACHED.findall(text)
    return addresses if sum("://" in rest for rest in _ATTACHED.split(text)[::2]) == 0 else []


def _pieces(text: str, *, is_item: bool) -> list[str]:
    """The address or path that a text is, or the addresses that it lists; an item of a list may have commas inside."""
    pieces = _CUT.split(text)
    earlier = pieces[:-1]
    with_query = next((piece for piece in earlier if "?" in piece), None)
    if is_item and (not earlier or with_query is not None):
        return [text]
    if with_query is not None or (_STARTS.match(text) and _names_behind_query(text)):
        raise BadReferenceError(f"it looks like several addresses, and one with a ? may go on behind it; {_REMEDY}")
    if not earlier:
        return [text]
    pieces[-1] = pieces[-1].rstrip(" ,;|")
    if any(_SRCSET.search(piece) for piece in pieces):
        raise BadReferenceError("it is a srcset, several sizes of one picture; give the address of one")
    if not all(_is_whole(piece) for piece in pieces):
        raise BadReferenceError(f"it looks like several references, and not each is a whole URL; {_REMEDY}")
    return pieces


def _names_behind_query(text: str) -> bool:
    """Whether the query of an address ends in what looks like the name of a second picture."""
    *before, last = re.split(r"[,;|]\s", text.partition("?")[2])
    return bool(before) and "?" not in last and _ENDS_LIKE_PICTURE.search(last[-8:]) is not None


def _is_whole(piece: str) -> bool:
    try:
        parts = urlsplit(piece)
    except ValueError:
        return False
    return bool(_STARTS.match(piece)) and bool(parts.netloc or (parts.scheme == "file" and parts.path))


def _refuse_half_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadReferenceError("the text holds half a character (a lone surrogate)") from None
