"""Texts from outside, made safe to show and to store: no keys, no signed queries, no asset addresses."""

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
"""A shorter key is not looked for: it might be a part of many words."""
MAX_TEXT = 500
_READ = 8 * MAX_TEXT
"""The patterns look at no more than this: a page of HTML or a huge cell costs no time."""


def has_user(address: str) -> bool:
    """Whether an address has a user part, also one with a password that is not encoded."""
    user = _USER.search(address)
    return user is not None and user.end(1) == address.index("://") + len("://")


def redact(text: str, key: str = "") -> str:
    """The text without API keys, user parts and queries of URLs, asset and data URLs; at most 500 characters.

    `key` is one that is known, whatever it looks like: it goes as it is, percent-encoded and in base64. Half
    characters (lone surrogates), which no file can hold, become question marks. Signs that command a terminal
    or turn the direction of writing are replaced, line breaks become blanks.
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
    """The text without signs that command a terminal, or turn or hide what is written; line breaks stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def traceback_of(error: BaseException) -> str:
    """The traceback of an error, its causes included, as a log may hold it: redacted line by line."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line[: len(line) - len(line.lstrip())] + redact(line) for line in lines)


def _spellings(key: str) -> list[str]:
    """How servers repeat a key; none for one that is too short to be told from other words."""
    if len(key) < _SHORTEST:
        return []
    encoded = base64.b64encode(key.encode()).decode().rstrip("=")
    return [key, quote(key, safe=""), encoded]
