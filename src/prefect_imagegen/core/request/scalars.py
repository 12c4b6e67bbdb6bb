"""Reads scalar values from the cells of tables: numbers and truth values, also as text or decimals."""

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
"""Words that mean a missing value in a CSV: those of pyarrow, pandas and MySQL."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_TRUTH = {"true": True, "false": False}
_MAX_DIGITS = 400
_EXACT_FLOATS = 2**53


def number_of(value: Any) -> int | float | None:
    """The finite number in a cell, also as text with a decimal point; None for anything else.

    A whole number given as a decimal or as text becomes an int of any size, exactly; a float stays a float. Truth
    values are not numbers.
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
    number = float(value)
    return number if math.isfinite(number) else None


def truth_of(value: Any) -> bool | None:
    """The truth value in a cell, also as the text true or false in any case; None for anything else."""
    if isinstance(value, str):
        return _TRUTH.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def scalar_of(text: str) -> str | int | float | bool:
    """The value of a text for a field that no model defines: a number, a truth value, or the text itself."""
    number, truth = number_of(text), truth_of(text)
    return truth if truth is not None else number if number is not None else text


def is_encodable(text: str) -> bool:
    """Whether the text can be encoded in UTF-8: a text with a lone surrogate (half a character) cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
