"""Formatting amounts of money, for people and for programs."""

import math

_PLACES = 4
_EXACT = 6


def usd(amount: float, *, places: int = _PLACES, signed: bool = False) -> str:
    """An amount in US dollars with its unit, as `1,234.5000 USD`; never `-0.0000`, and never with an exponent.

    `places`: digits after the point; a small amount that would show as zero gets four. `signed`: a plus sign before a
    positive amount.
    """
    return f"{figure(amount, places=places, signed=signed)} USD"


def figure(amount: float, *, places: int = _PLACES, signed: bool = False) -> str:
    """The amount without its unit, for columns that name the unit; `unknown` for an infinite amount or NaN."""
    if not math.isfinite(amount):
        return "unknown"
    shown = _rounded(amount, places)
    if not shown and _rounded(amount, _PLACES):
        places, shown = _PLACES, _rounded(amount, _PLACES)
    return f"{shown:{'+' if signed and shown else ''},.{places}f}"


def exact(amount: float) -> float:
    """The amount for reports and JSON, rounded to the millionth, which removes floating-point errors of sums."""
    return _rounded(amount, _EXACT)


def plain(amount: float) -> str:
    """The amount for HTTP headers: rounded to the millionth, without an exponent or trailing zeros."""
    return f"{exact(amount):.{_EXACT}f}".rstrip("0").rstrip(".")


def _rounded(amount: float, places: int) -> float:
    # Adding 0.0 turns -0.0 into 0.0.
    return round(amount, places) + 0.0
