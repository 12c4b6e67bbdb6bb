"""One cell of a manifest as the value of one field of a request, or why it cannot be that."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.request.models import FieldSpec
from prefect_imagegen.core.request.scalars import has_lost_digits, is_encodable, number_of, scalar_of, truth_of

MAX_PROMPT_BYTES = 64_000
"""Longer prompts are refused: no encoder reads a tenth of it, and nearly always the wrong column was named."""
MAX_EXPLICIT_SEED = 2**63 - 1
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_SHOWN = 80
LOST_DIGITS = (
    "is a floating-point number of 2**53 or more, which has lost digits; write the column as integers or as text"
)


class BadValueError(ValueError):
    """A cell cannot be the value of its field; the message says why, for people."""


class BusyValueError(BadValueError):
    """A cell names something that is out of reach for now; nothing says that the cell is wrong."""


@dataclass(frozen=True, slots=True)
class FieldReader:
    """Reads the cells of one scalar field by its spec; without a spec it takes any JSON scalar as it is."""

    name: str
    spec: FieldSpec | None
    is_spelled: bool = False
    """Without a spec: whether numbers and truth values come as text, as in CSV."""

    def read(self, value: Any) -> Any:
        """The field's value, its default for None. Raises BadValueError."""
        if self.spec is None:
            value = number_of(value) if isinstance(value, Decimal) else value
            if (
                value is None
                or isinstance(value, str | bool | int)
                or (isinstance(value, float) and math.isfinite(value))
            ):
                if not isinstance(value, str):
                    return value
                return scalar_of(value) if self.is_spelled else _text(value)
            raise BadValueError("the value is no text, number or boolean")
        if value is None:
            return self.spec.default
        typed = self._typed(value, self.spec)
        if reason := self.spec.check(typed):
            raise BadValueError(reason + (_point(value) if self.spec.type in ("integer", "number") else ""))
        if self.spec.type == "string":
            text = _text(value)
            # Blanks around a known word are a typing error; any other text is for the API to judge.
            return text.strip() if text not in self.spec.choices and text.strip() in self.spec.choices else text
        return int(typed) if self.spec.type == "integer" else typed

    @staticmethod
    def _typed(value: Any, spec: FieldSpec) -> Any:
        """The number or truth value that a cell spells; the cell itself where it spells none."""
        if spec.type == "string":
            return value
        typed = truth_of(value) if spec.type == "boolean" else number_of(value)
        return value if typed is None else typed


def model_of(value: Any, default: str) -> str:
    """The model that a cell names, or the default where it names none. Raises BadValueError."""
    if value is None:
        return default
    slug = value.strip(" \t") if isinstance(value, str) else ""
    if not _SLUG.fullmatch(slug):
        raise BadValueError("a model is a slug such as flux-2-klein-9b")
    return slug


def prompt_of(value: Any) -> str:
    """The prompt, byte for byte. Raises BadValueError for one that is missing, blank, too long or no text."""
    if value is None:
        raise BadValueError("the prompt is missing")
    if not isinstance(value, str):
        raise BadValueError("the prompt must be text")
    if not value.strip():
        raise BadValueError("the prompt is empty")
    if len(_text(value)) > MAX_PROMPT_BYTES // 4 and (size := len(value.encode())) > MAX_PROMPT_BYTES:
        raise BadValueError(f"the prompt has {size} bytes, more than {MAX_PROMPT_BYTES}; is it the right column?")
    return value


def seed_of(value: Any) -> int | None:
    """The seed that a cell gives; None where it is to be derived (an empty cell or -1). Raises BadValueError."""
    if value is None:
        return None
    number = number_of(value)
    if number is None or number != int(number):
        raise BadValueError(f"the seed must be a whole number{_point(value)}")
    if has_lost_digits(number):
        raise BadValueError(f"the seed {LOST_DIGITS}")
    seed = int(number)
    if seed == -1:
        return None
    if not 0 <= seed <= MAX_EXPLICIT_SEED:
        raise BadValueError("the seed must be -1 (derive one) or lie in 0 to 2**63-1")
    return seed


def row_id_of(value: Any) -> str | None:
    """The id of a row as text; None for an empty cell. A float that is a whole number is written as an integer."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return text if text.strip() else None


def is_blank(value: Any) -> bool:
    """Whether a cell is text without any visible character."""
    return isinstance(value, str) and not value.strip()


def shown_value(value: Any) -> str:
    """The value of a cell as messages show it: at most 80 characters, and without secrets."""
    if value is None:
        return "nothing"
    text = redact(ascii(value) if isinstance(value, str) and not is_encodable(value) else repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _text(value: str) -> str:
    """The text as it is. Raises BadValueError for a lone surrogate, which UTF-8 cannot hold."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadValueError("the text holds half a character (a lone surrogate)") from None
    return value


def _point(value: Any) -> str:
    """A hint for a number that has a decimal comma; empty for any other value."""
    is_comma = isinstance(value, str) and value.count(",") == 1 and number_of(value.replace(",", ".")) is not None
    return ", with a decimal point, not a comma" if is_comma else ""
