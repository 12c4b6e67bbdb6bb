"""Judges the answer of an image host about a reference: it is there, it is wrong, or its host is busy. Pure.

A busy host says nothing about the address: limits, overload or a missing server behind a proxy may be gone in an hour.
Sources: RFC 9110 and 6585; the 52x statuses are Cloudflare's for origins in trouble.
"""

import re
from dataclasses import dataclass

_PASSING = {
    202: "is not ready yet (status 202)",
    408: "timed out (status 408)",
    425: "asks to come later (status 425)",
    429: "takes no more requests for now (status 429)",
    500: "has an internal error (status 500)",
    502: "has trouble behind its proxy (status 502)",
    503: "is overloaded or closed for now (status 503)",
    504: "timed out behind its proxy (status 504)",
}
_LASTING = {
    401: ("it asks for a login (status 401)", "Give an address that opens without one."),
    403: (
        "it is not given out (status 403)",
        "Its signature has expired, or its host refuses use on other pages than its own: sign it anew, or copy it.",
    ),
    404: ("it does not exist (status 404)", "Correct the address."),
    410: ("it is gone for good (status 410)", "Correct the address."),
    451: ("it is withheld for legal reasons (status 451)", "Use another picture."),
}
_SLOWING = frozenset({429, 503})
_HOSTILE_TO_RETRY = frozenset({501, 505})
_KINDS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), kind)
    for pattern, kind in (
        (rb"\s*(<!--.*?-->\s*)?(<!doctype html|<html|<head|<body)", "a web page"),
        (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", "an SVG"),
        (rb"\s*<\?xml|\s*<[A-Z]", "XML"),
        (rb"%PDF-", "a PDF"),
        (rb"PK\x03\x04", "a ZIP archive"),
        (rb"version https://git-lfs", "a Git LFS pointer, not the file itself"),
        (rb"\s*[\[{]\s*[\[{}\]\x22]", "JSON"),
    )
)
_REMEDIES = {
    "a web page": "It may be a login, or the page around the picture: give the address of the picture file itself.",
    "an SVG": "Convert it to PNG.",
    "a PDF": "Convert it to PNG.",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with an answer and the remedy, for people. `is_passing`: it may succeed later.

    `slows`: the host wants fewer requests in general. `is_of_host`: it concerns the whole host, not just one image.
    """

    problem: str
    remedy: str
    is_passing: bool = False
    slows: bool = False
    is_of_host: bool = False


def judge_status(status: int) -> Verdict | None:
    """The verdict on an HTTP status other than a redirect; None where an image may follow."""
    if status in (200, 203):
        return None
    if status in _PASSING or (status > 500 and status not in _HOSTILE_TO_RETRY):
        problem = _PASSING.get(status, f"has trouble (status {status})")
        return Verdict(problem, "", is_passing=True, slows=status in _SLOWING, is_of_host=status not in (202, 500))
    problem, remedy = _LASTING.get(status, (f"it answered with status {status}", "Check the address."))
    return Verdict(problem, remedy)


def judge_body(data: bytes) -> Verdict:
    """The verdict on a body that does not begin like an image."""
    if not data:
        return Verdict("it is empty", "Check the address.")
    kind = next((name for pattern, name in _KINDS if pattern.match(data[:1024])), None)
    if kind is None:
        return Verdict("it is no picture of a known format", "Check the address.")
    return Verdict(f"it is {kind}, no picture", _REMEDIES.get(kind, "Give the address of the picture file itself."))
