"""Removes secrets from texts from outside, before they are shown or stored: keys, signed queries, asset addresses."""

import base64
import re
import traceback
from urllib.parse import quote

_KEY = re.compile(r"SG_[0-9A-Fa-f]{8,}")
# An asset's address holds the e-mail address of the account that uploaded it.
_ASSET = re.compile(r"https?://[^\s\"'<>]*/assets/[^\s\"'<>]*")
_DATA = re.compile(r"data:[a-z]+/[^\s\"'<>]*", re.IGNORECASE)
_QUERY = re.compile(r"((?:\w+\+)?https?://[^\s\"'<>?#]+)[?#][^\s\"'<>]*")
_OTHER_QUERY = re.compile(r"(\b\w+://[^\s\"'<>?]+)\?[^\s\"'<>]*")
# The last @ ends the user part: a password may hold one too, and a / that should have been encoded. Digits and a /
# are a port.
_USER = re.compile(r"(\b\w+://)(?:[^\s/\"'<>]+|[^\s/:@\"'<>]*:(?!\d{1,5}/)[^\s\"'<>]+)@")
# Headers, and fields and parameters by name, as servers repeat them when they refuse a call.
_HEADER = re.compile(
    r"((?:authorization|x-api-key|x-amz-security-token|set-cookie|cookie)[\"']?\s*[:=>]\s*[\"']?)"
    r"(?:(?:bearer|basic|token|key)\s+)?[^\s\"'<>,;&}]+",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(\b(?:x-amz-|aws_?)?(?:api[_-]?key|(?:secret|access|account)_?(?:access_?)?key(?:_?id)?|credential|signature|"
    r"(?:access|session|security|sas|auth)[_-]?token|password|passwd|client[_-]?secret|jwt|hmac|signatureprovided)"
    r"(?:=|[\"']\s*[:=]\s*[\"']|>))[^\s\"'<>,;&}]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer|basic) +[\w.~+/=-]{8,}", re.IGNORECASE)
_SHORTEST = 8
"""A shorter key is not searched for: it might be part of ordinary words."""
MAX_TEXT = 500
_READ = 8 * MAX_TEXT
"""Characters that are searched at most, so that a page of HTML or a huge cell takes no time."""


def has_user(address: str) -> bool:
    """Whether an address has a user part, even with a password that is not percent-encoded."""
    user = _USER.search(address)
    return user is not None and user.end(1) == address.index("://") + len("://")


def redact(text: str, key: str = "") -> str:
    """The text without API keys, user parts and queries of URLs, asset and data URLs; at most 500 characters.

    `key` is a known API key of any form; it is removed as it is, percent-encoded and in base64. Lone surrogates become
    question marks, control characters (also those of writing direction) are replaced, line breaks become blanks.
    """
    text = text[:_READ].encode("utf-8", "replace").decode()
    for spelling in _spellings(key):
        text = text.replace(spelling, "[key]")
    text = _ASSET.sub("[asset url]", _DATA.sub("[data url]", _KEY.sub("[key]", text)))
    text = _USER.sub(r"\1", _OTHER_QUERY.sub(r"\1", _QUERY.sub(r"\1", text)))
    text = _NAMED.sub(r"\1[secret]", _HEADER.sub(r"\1[secret]", text))
    text = printable(" ".join(_BEARER.sub(r"\1 [secret]", text).split()))
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def printable(text: str) -> str:
    """The text with control characters, also those of writing direction, replaced; line breaks stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def traceback_of(error: BaseException) -> str:
    """The traceback of an error with its causes, redacted line by line, for the log."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line[: len(line) - len(line.lstrip())] + redact(line) for line in lines)


def _spellings(key: str) -> list[str]:
    """The forms in which servers repeat a key; none for a key that is too short to search for."""
    if len(key) < _SHORTEST:
        return []
    encoded = base64.b64encode(key.encode()).decode().rstrip("=")
    return [key, quote(key, safe=""), encoded]
