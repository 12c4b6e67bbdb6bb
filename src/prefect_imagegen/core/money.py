"""Amounts of money, as people and as programs read them."""

import math

_PLACES = 4
_EXACT = 6


def usd(amount: float, *, places: int = _PLACES, signed: bool = False) -> str:
    """An amount in US dollars with its unit: `1,234.5000 USD`, never `-0.0000`, an exponent or a tail of digits.

    `places`: digits after the point, more where nothing would be seen of a small amount. `signed`: with a plus before
    what is more than nothing.
    """
    return f"{figure(amount, places=places, signed=signed)} USD"


def figure(amount: float, *, places: int = _PLACES, signed: bool = False) -> str:
    """The amount without its unit, for columns that name it; what is no number is `unknown`."""
    if not math.isfinite(amount):
        return "unknown"
    shown = _rounded(amount, places)
    if not shown and _rounded(amount, _PLACES):
        places, shown = _PLACES, _rounded(amount, _PLACES)
    return f"{shown:{'+' if signed and shown else ''},.{places}f}"


def exact(amount: float) -> float:
    """The amount for reports and JSON: to the millionth, since sums of floating-point numbers carry dust."""
    return _rounded(amount, _EXACT)


def plain(amount: float) -> str:
    """The amount for headers: to the millionth, without an exponent, and without zeros that say nothing."""
    return f"{exact(amount):.{_EXACT}f}".rstrip("0").rstrip(".")


def _rounded(amount: float, places: int) -> float:
    # Adding nothing takes the sign from a nothing that has one.
    return round(amount, places) + 0.0
