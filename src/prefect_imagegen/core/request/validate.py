"""Validates manifest rows: a row becomes a request, or the list of all its errors."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.request.cell_values import (
    LOST_DIGITS,
    BadValueError,
    BusyValueError,
    FieldReader,
    is_blank,
    model_of,
    prompt_of,
    row_id_of,
    seed_of,
    shown_value,
)
from prefect_imagegen.core.request.manifest import ColumnPlan, ManifestOptions
from prefect_imagegen.core.request.models import (
    ASPECT_SIZES,
    MATCH_INPUT_IMAGE,
    MODELS,
    REFERENCES,
    ModelSpec,
    known_fields,
    spec_of,
)
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
from prefect_imagegen.core.request.scalars import has_lost_digits
from prefect_imagegen.core.tally import Tally


def _fields_without_free_text() -> frozenset[str]:
    """Fields for which a cell of blanks counts as empty: numbers, truth values and words from a fixed list."""
    fields = {name for name, spec in known_fields().items() if spec.type != "string" or spec.choices}
    return frozenset(fields | {"model", "seed"})


@dataclass(frozen=True, slots=True)
class RowError:
    """One error in one manifest row: the row's position (from 0), the column, the value found and the reason."""

    row: int
    column: str
    value: str
    reason: str
    place: str = ""
    """The file and the line or row in it, as a person who opens the file counts them."""
    is_busy: bool = False
    """The host of a reference was busy: nothing is known to be wrong, and the same row may be valid later."""

    def __str__(self) -> str:
        """One line for people; rows are counted from 0, as in `row_index`."""
        place = f" ({self.place})" if self.place else ""
        return f"row {self.row}{place}, column {self.column}: {self.reason} (found {self.value})"


@dataclass(frozen=True, slots=True)
class ValidRow:
    """A valid row: its request, and its id where the manifest has an id column."""

    request: GenerationRequest
    row_id: str | None


@dataclass(slots=True)
class RowValidator:
    """Turns rows (column -> value) into requests, and counts the warnings and models of all rows."""

    options: ManifestOptions
    plan: ColumnPlan
    base: str = ""
    """The folder of the manifest as a URI; relative references start from it."""
    contents: Mapping[str, ReferenceFacts | str] = field(default_factory=dict)
    """Facts of the references that are identified by their content, by URI; a text says why one is unreadable."""
    warnings: Counter[str] = field(default_factory=Tally)
    models: Counter[str] = field(default_factory=Counter)
    untyped_texts: frozenset[str] = frozenset()
    """Fields of unknown type in a format that holds text only, such as CSV: numbers are read from the text."""
    _no_free_text: frozenset[str] = field(default_factory=_fields_without_free_text)
    _readers: dict[tuple[str, frozenset[str]], tuple[dict[str, Any], list[FieldReader]]] = field(default_factory=dict)

    def validate(self, index: int, row: Mapping[str, Any]) -> ValidRow | list[RowError]:
        """The request of a row, or all its errors. `index` is the row's position in the manifest, from 0."""
        errors: list[RowError] = []

        def attempt(name: str, read: Callable[[Any], Any]) -> Any:
            try:
                return read(self._cell(row, name))
            except BadValueError as error:
                column = ", ".join(self.plan.sources.get(name, (name,)))
                value = shown_value(self._cell(row, name))
                errors.append(RowError(index, column, value, str(error), is_busy=isinstance(error, BusyValueError)))
                return None

        model = attempt("model", lambda value: model_of(value, self.options.model))
        prompt = attempt("prompt", prompt_of)
        references = attempt(REFERENCES, self._references) if self.is_fed(REFERENCES) else ()
        seed = attempt("seed", seed_of)
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
            if references is not None:
                errors += self._reference_errors(index, model, params, len(references))
            errors += self._undrawable(index, model, params)
        if errors or model is None:
            return errors
        assert references is not None  # noqa: S101 - an unreadable cell is an error
        self._warn(model, params, references)
        params["seed"] = derive_seed(row_id=row_id, prompt=prompt, references=references) if seed is None else seed
        profile = self.options.profile.name if self.options.profile else None
        options = self.options
        return ValidRow(
            GenerationRequest(model, params, references, profile, options.weights, options.key_scope), row_id
        )

    def _row_id(self, index: int, row: Mapping[str, Any], errors: list[RowError]) -> str | None:
        """The value of the row's id column, None without one; an error in it is added to `errors`."""
        column = self.options.id_column
        if not column:
            return None
        cell = row.get(column)
        row_id = row_id_of(cell)
        if row_id is None:
            errors.append(RowError(index, column, "null", "the id is missing"))
        elif has_lost_digits(cell):
            errors.append(RowError(index, column, shown_value(cell), f"the id {LOST_DIGITS}"))
        return row_id

    def _reference_errors(self, index: int, model: str, params: Mapping[str, Any], count: int) -> list[RowError]:
        """Errors in the number of references: too few or too many for the model, or none for its aspect ratio."""
        spec = spec_of(model)
        if reason := spec.references.check(count):
            columns = ", ".join(self.plan.sources.get(REFERENCES, (REFERENCES,)))
            return [RowError(index, columns, str(count or "nothing"), f"{model} {reason}{self._remedy(count)}")]
        ratio = spec.size.ratio
        if ratio and params.get(ratio) == MATCH_INPUT_IMAGE and not count:
            return [RowError(index, ratio, MATCH_INPUT_IMAGE, "it needs at least one reference image")]
        return []

    def _remedy(self, count: int) -> str:
        is_fed = count or self.is_fed(REFERENCES)
        return "" if is_fed else f"; fill a column {REFERENCES}, or name yours: --column {REFERENCES}=COLUMN"

    def _undrawable(self, index: int, model: str, params: Mapping[str, Any]) -> list[RowError]:
        """Errors for own GPU workers: a model without weights, an aspect ratio without a size.

        With --strict-parameters also fields that the profile ignores.
        """
        profile, spec = self.options.profile, spec_of(model)
        if profile is None:
            return []
        if model in MODELS and not spec.has_weights:
            reason = "its weights are not public, so own GPU workers cannot run it; use the API, or another model"
            return [RowError(index, ", ".join(self.plan.sources.get("model", ("model",))), model, reason)]
        ratio = params.get(spec.size.ratio) if spec.size.ratio else None
        wrong = {name: f"{profile.fixed[name]!r} only (--strict-parameters)" for name in profile.ignored(params)}
        wrong = wrong if self.options.strict_parameters else {}
        if ratio is not None and ratio != MATCH_INPUT_IMAGE and ratio not in ASPECT_SIZES:
            wrong[spec.size.ratio or ""] = f"no size for it; use one of {', '.join(ASPECT_SIZES)}"
        return [
            RowError(
                index,
                ", ".join(self.plan.sources.get(name, (name,))),
                shown_value(params[name]),
                f"the profile {profile.name} has {reason}",
            )
            for name, reason in wrong.items()
        ]

    def references_of(self, row: Mapping[str, Any]) -> tuple[Reference, ...]:
        """The row's references, whatever else is wrong with it; empty if they are what is wrong."""
        try:
            return self._references(self._cell(row, REFERENCES)) if self.is_fed(REFERENCES) else ()
        except BadValueError:
            return ()

    def contents_needed(self, row: Mapping[str, Any]) -> list[str]:
        """The URIs of the row's references that are identified by their content, and so have to be read."""
        if not self.is_fed(REFERENCES):
            return []
        try:
            cells = self._reference_cells(self._cell(row, REFERENCES))
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
            raise BadValueError(str(error)) from None
        return tuple(self._reference(text) for text in texts)

    def _reference_cells(self, cell: Any) -> list[Any]:
        """The cells that hold the row's references: several columns come as one list."""
        return cell if len(self.plan.sources.get(REFERENCES, ())) > 1 and isinstance(cell, list) else [cell]

    def _reference(self, text: str) -> Reference:
        try:
            uri = self._locate(text)
        except BadReferenceError as error:
            raise BadValueError(f"{redact(text)}: {error}") from None
        if not self._is_by_content(uri):
            if is_signed(uri):
                raise BadValueError(
                    "the reference is a signed URL, whose address changes at every signing, so its image would be"
                    " bought again; use --reference-identity content, or give a stable public URL"
                )
            return Reference("url", uri, unescaped(uri))
        uri = unescaped(uri)
        facts = self.contents.get(uri, "it was not read")
        if isinstance(facts, str):
            reason = f"{redact(uri)}: {facts}{path_hint(text) if 'does not exist' in facts else ''}"
            raise BusyValueError(reason) if isinstance(facts, BusyReason) else BadValueError(reason)
        return Reference("sha256", facts.sha256, shown(uri) if is_signed(uri) else uri, facts)

    def _cell(self, row: Mapping[str, Any], name: str) -> Any:
        columns = self.plan.sources.get(name, ())
        value = row[columns[0]] if len(columns) == 1 else None if not columns else [row[column] for column in columns]
        if (
            value is None
            or (isinstance(value, float) and math.isnan(value))
            or (name in self._no_free_text and is_blank(value))
        ):
            return self.options.values.get(name)
        return value

    def is_fed(self, name: str) -> bool:
        """Whether a column or a default of the run gives the field a value."""
        return name in self.plan.sources or name in self.options.values

    def _readers_of(self, model: str) -> tuple[dict[str, Any], list[FieldReader]]:
        """The defaults of a model's fields that no column or run default feeds, and the readers of all others."""
        key = (model, self.untyped_texts)
        if key not in self._readers:
            spec = MODELS.get(model)
            fields = spec.fields if spec else {}
            if spec and self.options.profile:
                fixed = self.options.profile.fixed
                fields = {
                    name: replace(field_spec, default=fixed.get(name, field_spec.default))
                    for name, field_spec in fields.items()
                }
            names = fields or sorted(self.plan.named - set(COMMON_FIELDS))
            texts = self.untyped_texts
            readers = [FieldReader(name, fields.get(name), name in texts) for name in names if self.is_fed(name)]
            defaults = {name: field_spec.default for name, field_spec in fields.items() if not self.is_fed(name)}
            self._readers[key] = (defaults, readers)
        return self._readers[key]

    def _warn(self, model: str, params: Mapping[str, Any], references: tuple[Reference, ...]) -> None:
        spec: ModelSpec | None = MODELS.get(model)
        if spec is None:
            return
        for name, limits in spec.fields.items():
            if limits.choices and params[name] not in limits.choices:
                value = shown_value(params[name])
                self.warnings[f"{name} {value} is not on the API's page of {model} and is sent as it is"] += 1
        advised = spec.references.advised
        if advised is not None and len(references) > advised:
            self.warnings[f"more than {advised} references: other hosts of {model} refuse that"] += 1
