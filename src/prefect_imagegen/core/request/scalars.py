"""Scalar values of requests, out of what tables hold: numbers and truth values as text, decimals, other numbers."""

import math
import re
from decimal import Decimal
from typing import Any

NULL_WORDS = frozenset(
    {
        *("NULL", "null", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "NaN", "nan", "-NaN", "-nan"),
        *("-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", r"\N"),
    }
)
"""Words that programs write into a CSV for a missing value: what pyarrow reads as such; pandas' own; that of MySQL."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_TRUTH = {"true": True, "false": False}
_MAX_DIGITS = 400
_EXACT_FLOATS = 2**53


def number_of(value: Any) -> int | float | None:
    """The finite number that a cell holds, or spells with a decimal point; None where it is no such thing.

    A decimal or a spelled number that is whole becomes an int of any size, exactly; a float stays what it is.
    Truth values are no numbers.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = _spelled(value.strip())
    if isinstance(value, Decimal):
        return _plain(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return None


def has_lost_digits(value: Any) -> bool:
    """Whether a whole number may have been another one before it became a float, which holds 53 bits."""
    return isinstance(value, float) and abs(value) >= _EXACT_FLOATS


def _spelled(text: str) -> Decimal | None:
    return Decimal(text) if len(text) <= _MAX_DIGITS and _NUMBER.fullmatch(text) else None


def _plain(value: Decimal) -> int | float | None:
    if not value.is_finite() or abs(value.adjusted()) > _MAX_DIGITS:
        return None
    if value == value.to_integral_value():
        return int(value)
    found = float(value)
    return found if math.isfinite(found) else None


def truth_of(value: Any) -> bool | None:
    """The truth value that a cell holds, or spells as true or false in any case; None where it is none."""
    if isinstance(value, str):
        return _TRUTH.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def scalar_of(text: str) -> str | int | float | bool:
    """The value of a text for a field that no model describes: a number, a truth value, or the text itself."""
    number, truth = number_of(text), truth_of(text)
    return truth if truth is not None else number if number is not None else text


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold the text: a lone surrogate, half a character, it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
