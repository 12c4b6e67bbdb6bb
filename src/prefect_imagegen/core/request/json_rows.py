"""Rows of JSON Lines manifests: parsing a line, and the Arrow type of a column with any values."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from prefect_imagegen.core.request.scalars import is_encodable

_INT64 = range(-(2**63), 2**63)
_EXACT = range(-(2**53), 2**53 + 1)
"""Integers that a double holds exactly."""


class BadJsonError(ValueError):
    """A line is not a JSON object that can be read without loss; the message says why, for people."""


def row_of(line: str) -> dict[str, Any]:
    """The object in one line. Raises BadJsonError, also for repeated names and for numbers too large for a float."""
    try:
        row = _DECODER.decode(line.strip(" \t\r\n"))
    except RecursionError:
        raise BadJsonError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BadJsonError(f"it is no JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(row, dict):
        raise BadJsonError(f"it is no JSON object, but {_kind_name(row)}")
    for name in row:
        if not name.isascii() and not is_encodable(name):
            raise BadJsonError(f"the name {name!a} holds half a character (a lone surrogate)")
    return row


class ColumnKinds:
    """The kinds of values in each column of some JSON lines, collected row by row without keeping the values."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the values of a row."""
        for name, value in row.items():
            self._kinds.setdefault(name, set()).add(_kind(value))

    @property
    def schema(self) -> pa.Schema:
        """The columns in the order of their first appearance, each in the type that holds all its values.

        Text, truth values, whole numbers, numbers, and lists of texts keep their type. Whatever else there is
        (objects, other lists, numbers beyond 64 bits, mixtures) is text: texts as they are, the rest as JSON.
        """
        return pa.schema([(name, _type(kinds - {"null"})) for name, kinds in self._kinds.items()])


def carried_array(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    """The values of a column as an array of the type that `ColumnKinds` found."""
    if pa.types.is_string(kind):
        return pa.array([None if value is None else _as_text(value) for value in values], kind)
    return pa.array(list(values), kind)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_KINDS: dict[type, str] = {type(None): "null", str: "text", bool: "truth", float: "number"}


def _kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return "exact" if value in _EXACT else "whole" if value in _INT64 else "json"
    if isinstance(value, list) and all(item is None or isinstance(item, str) for item in value):
        return "texts"
    return _KINDS.get(type(value), "json")


_TYPES: tuple[tuple[frozenset[str], pa.DataType], ...] = (
    (frozenset(), pa.null()),
    (frozenset({"truth"}), pa.bool_()),
    (frozenset({"exact", "whole"}), pa.int64()),
    (frozenset({"exact", "number"}), pa.float64()),
    (frozenset({"texts"}), pa.list_(pa.string())),
)


def _type(kinds: set[str]) -> pa.DataType:
    return next((kind for names, kind in _TYPES if kinds <= names), pa.string())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise BadJsonError(f"the name {counts.most_common(1)[0][0]!r} occurs twice in one object")
    return unique


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadJsonError(f"the number {text[:40]} is larger than a float can be")
    return value


def _int(text: str) -> int:
    if len(text) > 400:
        raise BadJsonError(f"a number has {len(text)} digits")
    return int(text)


def _constant(name: str) -> None:
    """What Python writes for a missing number is a missing value."""
    if name != "NaN":
        raise BadJsonError(f"{name} is no JSON")


def _kind_name(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(type(value), "a number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_float, parse_int=_int, parse_constant=_constant, strict=True
)
