"""From a manifest row to a validated request, or to all that is wrong with it."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefect_imagegen.core.manifest import COMMON_FIELDS, ColumnPlan, ManifestOptions
from prefect_imagegen.core.models import ASPECT_SIZES, MATCH_INPUT_IMAGE, MODELS, FieldSpec, ModelSpec
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.references import BadReferenceError, ReferenceFacts, is_signed, is_web, locate, shown
from prefect_imagegen.core.request import GenerationRequest, Reference, derive_seed
from prefect_imagegen.core.tally import Tally

MAX_PROMPT_BYTES = 64_000
"""Longer prompts are refused: no encoder reads even a tenth of it, and it is nearly always a wrong column."""
MAX_EXPLICIT_SEED = 2**63 - 1
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class RowError:
    """One thing wrong with one row: where, what was found there, and why it cannot be."""

    row: int
    column: str
    value: str
    reason: str

    def __str__(self) -> str:
        """One line for people; rows are counted from 0, as in `row_index`."""
        return f"row {self.row}, column {self.column}: {self.reason} (found {self.value})"


@dataclass(frozen=True, slots=True)
class ValidRow:
    """A row that can be asked for."""

    request: GenerationRequest
    row_id: str | None


class _BadValueError(ValueError):
    """A cell cannot be the field's value."""


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
    _readers: dict[str, tuple[dict[str, Any], list["_Reader"]]] = field(default_factory=dict)

    def validate(self, index: int, row: Mapping[str, Any]) -> ValidRow | list[RowError]:
        """The request of a row, or every error in it."""
        errors: list[RowError] = []

        def attempt(name: str, read: Callable[[Any], Any]) -> Any:
            try:
                return read(self._cell(row, name))
            except _BadValueError as error:
                column = ", ".join(self.plan.sources.get(name, (name,)))
                errors.append(RowError(index, column, _show(self._cell(row, name)), str(error)))
                return None

        model = attempt("model", lambda value: _model(value, self.options.model))
        prompt = attempt("prompt", _prompt)
        references = (attempt("image_urls", self._references) or ()) if self.is_fed("image_urls") else ()
        seed = attempt("seed", _seed)
        row_id = None
        if self.options.id_column:
            row_id = _text_id(row.get(self.options.id_column))
            if row_id is None:
                errors.append(RowError(index, self.options.id_column, "null", "the id is missing"))
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
            uris = [locate(text, self.base) for text in _reference_texts(self._cell(row, "image_urls"))]
        except (_BadValueError, BadReferenceError):
            return []
        return [uri for uri in uris if self._is_by_content(uri)]

    def _is_by_content(self, uri: str) -> bool:
        return self.options.reference_identity == "content" or not is_web(uri)

    def _references(self, cell: Any) -> tuple[Reference, ...]:
        return tuple(self._reference(text) for text in _reference_texts(cell))

    def _reference(self, text: str) -> Reference:
        try:
            uri = locate(text, self.base)
        except BadReferenceError as error:
            raise _BadValueError(f"{redact(text)}: {error}") from None
        if not self._is_by_content(uri):
            if is_signed(uri):
                raise _BadValueError(
                    "the reference is a signed URL, whose address changes at every signing, so its image would be"
                    " bought again; use --reference-identity content, or give a stable public URL"
                )
            return Reference("url", uri, uri)
        facts = self.contents.get(uri, "it was not read")
        if isinstance(facts, str):
            raise _BadValueError(f"{redact(uri)}: {facts}")
        return Reference("sha256", facts.sha256, shown(uri) if is_signed(uri) else uri, facts)

    def _cell(self, row: Mapping[str, Any], name: str) -> Any:
        columns = self.plan.sources.get(name, ())
        value = row[columns[0]] if len(columns) == 1 else None if not columns else [row[column] for column in columns]
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return self.options.values.get(name)
        return value

    def is_fed(self, name: str) -> bool:
        """Whether any row can hold a value for the field."""
        return name in self.plan.sources or name in self.options.values

    def _readers_of(self, model: str) -> tuple[dict[str, Any], list["_Reader"]]:
        """The defaults of a model's fields that nothing feeds, and the readers of all others."""
        if model not in self._readers:
            spec = MODELS.get(model)
            fields = spec.fields if spec else {}
            if spec and self.options.profile:
                fixed = self.options.profile.fixed
                fields = {name: replace(one, default=fixed.get(name, one.default)) for name, one in fields.items()}
            names = fields or sorted(self.plan.named - set(COMMON_FIELDS))
            readers = [_Reader(name, fields.get(name)) for name in names if self.is_fed(name)]
            defaults = {name: one.default for name, one in fields.items() if not self.is_fed(name)}
            self._readers[model] = (defaults, readers)
        return self._readers[model]

    def _warn(self, model: str, params: Mapping[str, Any], references: tuple[Reference, ...]) -> None:
        spec: ModelSpec | None = MODELS.get(model)
        if spec is None:
            return
        for name, limits in spec.fields.items():
            if limits.choices and params[name] not in limits.choices:
                self.warnings[f"{name} {params[name]!r} is not on the API's page of {model} and is sent as it is"] += 1
        if len(references) > spec.advised_references:
            self.warnings[f"more than {spec.advised_references} references: other hosts of {model} refuse that"] += 1


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one scalar field by its spec; without a spec, any JSON scalar as it is."""

    name: str
    spec: FieldSpec | None

    def read(self, value: Any) -> Any:
        if self.spec is None:
            if (
                value is None
                or isinstance(value, str | bool | int)
                or (isinstance(value, float) and math.isfinite(value))
            ):
                return value if not isinstance(value, str) else _text(value)
            raise _BadValueError("the value is no text, number or boolean")
        if value is None:
            return self.spec.default
        if self.spec.type == "string":
            if not isinstance(value, str):
                raise _BadValueError("it must be text")
            return _text(value)
        if self.spec.type == "boolean":
            if not isinstance(value, bool):
                raise _BadValueError("it must be true or false")
            return value
        return self._number(value)

    def _number(self, value: Any) -> int | float:
        spec = self.spec
        if spec is None or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _BadValueError(f"it must be {'a whole number' if spec and spec.type == 'integer' else 'a number'}")
        if spec.type == "integer" and value != int(value):
            raise _BadValueError("it must be a whole number")
        low, high = spec.minimum, spec.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            raise _BadValueError(f"it must lie in {low:g} to {high:g}")
        return int(value) if spec.type == "integer" else value


def _model(value: Any, default: str) -> str:
    if value is None:
        return default
    if not isinstance(value, str) or not _SLUG.fullmatch(value):
        raise _BadValueError("a model is a slug such as flux-2-klein-9b")
    return value


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
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value != int(value):
        raise _BadValueError("the seed must be a whole number")
    seed = int(value)
    if seed == -1:
        return None
    if not 0 <= seed <= MAX_EXPLICIT_SEED:
        raise _BadValueError("the seed must be -1 (derive one) or lie in 0 to 2**63-1")
    return seed


def _reference_texts(cell: Any) -> list[str]:
    """The references of a cell as they are spelled: one, a list, JSON text of a list, or several columns' cells."""
    found: list[Any] = []
    for item in cell if isinstance(cell, list) else [cell]:
        if isinstance(item, str) and item.lstrip().startswith("["):
            found += _json_list(item)
        else:
            found += item if isinstance(item, list) else [item]
    texts = [item for item in found if item not in (None, "")]
    if not all(isinstance(item, str) for item in texts):
        raise _BadValueError("a reference must be a URL or a path")
    return [_text(item) for item in texts]


def _json_list(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise _BadValueError("a reference list in text form must be JSON") from None
    return value if isinstance(value, list) else [value]


def _text_id(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    return text if text.strip() else None


def _show(value: Any) -> str:
    """The value for people: short, and without secrets."""
    text = redact(ascii(value) if isinstance(value, str) and not _encodable(value) else repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
