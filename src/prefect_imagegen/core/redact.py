"""Texts from outside, made safe to show and to store: no keys, no signed queries, no asset addresses."""

import re

_KEY = re.compile(r"SG_[0-9A-Fa-f]{8,}")
# An asset's address holds the e-mail address of the account that uploaded it.
_ASSET = re.compile(r"https?://[^\s\"'<>]*/assets/[^\s\"'<>]*")
_DATA = re.compile(r"data:[a-z]+/[^\s\"'<>]*", re.IGNORECASE)
_QUERY = re.compile(r"(https?://[^\s\"'<>?#]+)[?#][^\s\"'<>]*")
_OTHER_QUERY = re.compile(r"(\b\w+://[^\s\"'<>?]+)\?[^\s\"'<>]*")
_USER = re.compile(r"(\b\w+://)[^\s/@\"'<>]+@")
MAX_TEXT = 500
_READ = 8 * MAX_TEXT
"""The patterns look at no more than this: a page of HTML or a huge cell costs no time."""


def redact(text: str) -> str:
    """The text without API keys, user parts and queries of URLs, asset and data URLs; at most 500 characters.

    Half characters (lone surrogates), which no file can hold, become question marks. Signs that command a terminal
    or turn the direction of writing are replaced, line breaks become blanks.
    """
    text = text[:_READ].encode("utf-8", "replace").decode()
    text = _ASSET.sub("[asset url]", _DATA.sub("[data url]", _KEY.sub("[key]", text)))
    text = _USER.sub(r"\1", _OTHER_QUERY.sub(r"\1", _QUERY.sub(r"\1", text)))
    text = printable(" ".join(text.split()))
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def printable(text: str) -> str:
    """The text without signs that command a terminal, or turn or hide what is written; line breaks stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)
