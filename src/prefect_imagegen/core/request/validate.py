"""From a manifest row to a validated request, or to all that is wrong with it."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.request.manifest import ColumnPlan, ManifestOptions
from prefect_imagegen.core.request.models import ASPECT_SIZES, MATCH_INPUT_IMAGE, MODELS, FieldSpec, ModelSpec
from prefect_imagegen.core.request.near_names import COMMON_FIELDS
from prefect_imagegen.core.request.reference_cells import path_hint, reference_texts
from prefect_imagegen.core.request.references import (
    BadReferenceError,
    BusyReason,
    is_signed,
    is_web,
    locate,
    shown,
    unescaped,
)
from prefect_imagegen.core.request.request import GenerationRequest, Reference, derive_seed
from prefect_imagegen.core.request.scalars import has_lost_digits, is_encodable, number_of, scalar_of, truth_of
from prefect_imagegen.core.tally import Tally

MAX_PROMPT_BYTES = 64_000
"""Longer prompts are refused: no encoder reads even a tenth of it, and it is nearly always a wrong column."""
MAX_EXPLICIT_SEED = 2**63 - 1
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHOWN = 80
_LOST = "is a floating-point number of 2**53 or more, which has lost digits; write the column as integers or as text"
_NO_FREE_TEXT = frozenset({"model", "seed"}).union(
    name
    for spec in MODELS.values()
    for name, field_spec in spec.fields.items()
    if field_spec.type != "string" or field_spec.choices
)
"""Fields whose cell says nothing where it holds blanks only: numbers, truth values and words of a list."""


@dataclass(frozen=True, slots=True)
class RowError:
    """One thing wrong with one row: where, what was found there, and why it cannot be."""

    row: int
    column: str
    value: str
    reason: str
    place: str = ""
    """Where the row stands for who opens the file: its name, and the line or row in it."""
    is_busy: bool = False
    """Nothing is known to be wrong: a host was busy, and the same row may be fine later."""

    def __str__(self) -> str:
        """One line for people; rows are counted from 0, as in `row_index`."""
        place = f" ({self.place})" if self.place else ""
        return f"row {self.row}{place}, column {self.column}: {self.reason} (found {self.value})"


@dataclass(frozen=True, slots=True)
class ValidRow:
    """A row that can be asked for."""

    request: GenerationRequest
    row_id: str | None


class _BadValueError(ValueError):
    """A cell cannot be the field's value."""


class _BusyError(_BadValueError):
    """A cell may be right: what it names is out of reach for now."""


@dataclass(slots=True)
class RowValidator:
    """Turns rows (column -> value) into requests; collects warnings and the models seen on the way."""

    options: ManifestOptions
    plan: ColumnPlan
    base: str = ""
    """The folder of the manifest as a URI: what relative references start from."""
    contents: Mapping[str, ReferenceFacts | str] = field(default_factory=dict)
    """What is known of references that are identified by their content, by URI; a text says why one is unreadable."""
    warnings: Counter[str] = field(default_factory=Tally)
    models: Counter[str] = field(default_factory=Counter)
    untyped_texts: frozenset[str] = frozenset()
    """Fields without a known type, fed by a format that knows text only: their numbers are read out of the text."""
    _readers: dict[tuple[str, frozenset[str]], tuple[dict[str, Any], list["_Reader"]]] = field(default_factory=dict)

    def validate(self, index: int, row: Mapping[str, Any]) -> ValidRow | list[RowError]:
        """The request of a row, or every error in it."""
        errors: list[RowError] = []

        def attempt(name: str, read: Callable[[Any], Any]) -> Any:
            try:
                return read(self._cell(row, name))
            except _BadValueError as error:
                column = ", ".join(self.plan.sources.get(name, (name,)))
                value = _show(self._cell(row, name))
                errors.append(RowError(index, column, value, str(error), is_busy=isinstance(error, _BusyError)))
                return None

        model = attempt("model", lambda value: _model(value, self.options.model))
        prompt = attempt("prompt", _prompt)
        references = (attempt("image_urls", self._references) or ()) if self.is_fed("image_urls") else ()
        seed = attempt("seed", _seed)
        row_id = self._row_id(index, row, errors)
        params: dict[str, Any] = {"prompt": prompt}
        if model is not None:
            self.models[model] += 1
            defaults, readers = self._readers_of(model)
            params |= defaults
            for reader in readers:
                value = attempt(reader.name, reader.read)
                if value is not None:
                    params[reader.name] = value
            if params.get("aspect_ratio") == MATCH_INPUT_IMAGE and not references:
                found = RowError(index, "aspect_ratio", MATCH_INPUT_IMAGE, "it needs at least one reference image")
                errors.append(found)
            errors += self._undrawable(index, params)
        if errors or model is None:
            return errors
        self._warn(model, params, references)
        params["seed"] = derive_seed(row_id=row_id, prompt=prompt, references=references) if seed is None else seed
        profile = self.options.profile.name if self.options.profile else None
        return ValidRow(GenerationRequest(model, params, references, profile, self.options.weights), row_id)

    def _row_id(self, index: int, row: Mapping[str, Any], errors: list[RowError]) -> str | None:
        """The row's own identity; what is wrong with it is added to the errors."""
        column = self.options.id_column
        if not column:
            return None
        cell = row.get(column)
        row_id = _text_id(cell)
        if row_id is None:
            errors.append(RowError(index, column, "null", "the id is missing"))
        elif has_lost_digits(cell):
            errors.append(RowError(index, column, _show(cell), f"the id {_LOST}"))
        return row_id

    def _undrawable(self, index: int, params: Mapping[str, Any]) -> list[RowError]:
        """What workers of one's own cannot do: draw without a size, and with --strict-parameters all they ignore."""
        profile, ratio = self.options.profile, params.get("aspect_ratio")
        if profile is None:
            return []
        wrong = {name: f"{profile.fixed[name]!r} only (--strict-parameters)" for name in profile.ignored(params)}
        wrong = wrong if self.options.strict_parameters else {}
        if ratio is not None and ratio != MATCH_INPUT_IMAGE and ratio not in ASPECT_SIZES:
            wrong["aspect_ratio"] = f"no size for it; use one of {', '.join(ASPECT_SIZES)}"
        return [
            RowError(
                index,
                ", ".join(self.plan.sources.get(name, (name,))),
                _show(params[name]),
                f"the profile {profile.name} has {reason}",
            )
            for name, reason in wrong.items()
        ]

    def contents_needed(self, row: Mapping[str, Any]) -> list[str]:
        """URIs of the row's references whose content is their identity."""
        if not self.is_fed("image_urls"):
            return []
        try:
            cells = self._reference_cells(self._cell(row, "image_urls"))
            uris = [unescaped(self._locate(text)) for text in reference_texts(cells)]
        except BadReferenceError:
            return []
        return [uri for uri in uris if self._is_by_content(uri)]

    def _locate(self, text: str) -> str:
        return locate(text, self.base, allow_local=self.options.allow_local_references)

    def _is_by_content(self, uri: str) -> bool:
        return self.options.reference_identity == "content" or not is_web(uri)

    def _references(self, cell: Any) -> tuple[Reference, ...]:
        try:
            texts = reference_texts(self._reference_cells(cell))
        except BadReferenceError as error:
            raise _BadValueError(str(error)) from None
        return tuple(self._reference(text) for text in texts)

    def _reference_cells(self, cell: Any) -> list[Any]:
        """The cells that feed the references: several columns come as one list."""
        return cell if len(self.plan.sources.get("image_urls", ())) > 1 and isinstance(cell, list) else [cell]

    def _reference(self, text: str) -> Reference:
        try:
            uri = self._locate(text)
        except BadReferenceError as error:
            raise _BadValueError(f"{redact(text)}: {error}") from None
        if not self._is_by_content(uri):
            if is_signed(uri):
                raise _BadValueError(
                    "the reference is a signed URL, whose address changes at every signing, so its image would be"
                    " bought again; use --reference-identity content, or give a stable public URL"
                )
            return Reference("url", uri, unescaped(uri))
        uri = unescaped(uri)
        facts = self.contents.get(uri, "it was not read")
        if isinstance(facts, str):
            reason = f"{redact(uri)}: {facts}{path_hint(text) if 'does not exist' in facts else ''}"
            raise _BusyError(reason) if isinstance(facts, BusyReason) else _BadValueError(reason)
        return Reference("sha256", facts.sha256, shown(uri) if is_signed(uri) else uri, facts)

    def _cell(self, row: Mapping[str, Any], name: str) -> Any:
        columns = self.plan.sources.get(name, ())
        value = row[columns[0]] if len(columns) == 1 else None if not columns else [row[column] for column in columns]
        if (
            value is None
            or (isinstance(value, float) and math.isnan(value))
            or (name in _NO_FREE_TEXT and _blank(value))
        ):
            return self.options.values.get(name)
        return value

    def is_fed(self, name: str) -> bool:
        """Whether any row can hold a value for the field."""
        return name in self.plan.sources or name in self.options.values

    def _readers_of(self, model: str) -> tuple[dict[str, Any], list["_Reader"]]:
        """The defaults of a model's fields that nothing feeds, and the readers of all others."""
        key = (model, self.untyped_texts)
        if key not in self._readers:
            spec = MODELS.get(model)
            fields = spec.fields if spec else {}
            if spec and self.options.profile:
                fixed = self.options.profile.fixed
                fields = {name: replace(one, default=fixed.get(name, one.default)) for name, one in fields.items()}
            names = fields or sorted(self.plan.named - set(COMMON_FIELDS))
            texts = self.untyped_texts
            readers = [_Reader(name, fields.get(name), name in texts) for name in names if self.is_fed(name)]
            defaults = {name: one.default for name, one in fields.items() if not self.is_fed(name)}
            self._readers[key] = (defaults, readers)
        return self._readers[key]

    def _warn(self, model: str, params: Mapping[str, Any], references: tuple[Reference, ...]) -> None:
        spec: ModelSpec | None = MODELS.get(model)
        if spec is None:
            return
        for name, limits in spec.fields.items():
            if limits.choices and params[name] not in limits.choices:
                value = _show(params[name])
                self.warnings[f"{name} {value} is not on the API's page of {model} and is sent as it is"] += 1
        if len(references) > spec.advised_references:
            self.warnings[f"more than {spec.advised_references} references: other hosts of {model} refuse that"] += 1


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one scalar field by its spec; without a spec, any JSON scalar as it is."""

    name: str
    spec: FieldSpec | None
    is_spelled: bool = False
    """Without a spec: whether numbers and truth values come as text."""

    def read(self, value: Any) -> Any:
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
            raise _BadValueError("the value is no text, number or boolean")
        if value is None:
            return self.spec.default
        if self.spec.type == "string":
            if not isinstance(value, str):
                raise _BadValueError("it must be text")
            text = _text(value)
            # Blanks around a known word are a slip of the hand; any other text is the API's to judge.
            return text.strip() if text not in self.spec.choices and text.strip() in self.spec.choices else text
        if self.spec.type == "boolean":
            truth = truth_of(value)
            if truth is None:
                raise _BadValueError("it must be true or false")
            return truth
        return self._number(value, self.spec)

    def _number(self, value: Any, spec: FieldSpec) -> int | float:
        number = number_of(value)
        if number is None:
            what = "a whole number" if spec.type == "integer" else "a number"
            raise _BadValueError(f"it must be {what}{_point(value)}")
        if spec.type == "integer" and number != int(number):
            raise _BadValueError("it must be a whole number")
        low, high = spec.minimum, spec.maximum
        if (low is not None and number < low) or (high is not None and number > high):
            raise _BadValueError(f"it must lie in {low:g} to {high:g}")
        return int(number) if spec.type == "integer" else number


def _blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _point(value: Any) -> str:
    """A hint for numbers with a decimal comma."""
    is_comma = isinstance(value, str) and value.count(",") == 1 and number_of(value.replace(",", ".")) is not None
    return ", with a decimal point, not a comma" if is_comma else ""


def _model(value: Any, default: str) -> str:
    if value is None:
        return default
    slug = value.strip(" \t") if isinstance(value, str) else ""
    if not _SLUG.fullmatch(slug):
        raise _BadValueError("a model is a slug such as flux-2-klein-9b")
    return slug


def _prompt(value: Any) -> str:
    if value is None:
        raise _BadValueError("the prompt is missing")
    if not isinstance(value, str):
        raise _BadValueError("the prompt must be text")
    if not value.strip():
        raise _BadValueError("the prompt is empty")
    if len(_text(value)) > MAX_PROMPT_BYTES // 4 and (size := len(value.encode())) > MAX_PROMPT_BYTES:
        raise _BadValueError(f"the prompt has {size} bytes, more than {MAX_PROMPT_BYTES}; is it the right column?")
    return value


def _text(value: str) -> str:
    """The text, byte for byte; refuses what UTF-8 cannot hold."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _BadValueError("the text holds half a character (a lone surrogate)") from None
    return value


def _seed(value: Any) -> int | None:
    """An explicit seed; None where one is to be derived."""
    if value is None:
        return None
    number = number_of(value)
    if number is None or number != int(number):
        raise _BadValueError(f"the seed must be a whole number{_point(value)}")
    if has_lost_digits(number):
        raise _BadValueError(f"the seed {_LOST}")
    seed = int(number)
    if seed == -1:
        return None
    if not 0 <= seed <= MAX_EXPLICIT_SEED:
        raise _BadValueError("the seed must be -1 (derive one) or lie in 0 to 2**63-1")
    return seed


def _text_id(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return text if text.strip() else None


def _show(value: Any) -> str:
    """The value for people: short, and without secrets."""
    if value is None:
        return "nothing"
    text = redact(ascii(value) if isinstance(value, str) and not is_encodable(value) else repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
