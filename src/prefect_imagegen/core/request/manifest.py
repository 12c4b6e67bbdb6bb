"""Matches the columns of a manifest with the fields of requests."""

import difflib
import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.metadata import carried_name
from prefect_imagegen.core.request.models import DEFAULT_MODEL, MODELS, REFERENCES, known_fields
from prefect_imagegen.core.request.near_names import COMMON_FIELDS, likely_prompt, manifest_fields, near_fields
from prefect_imagegen.core.request.profiles import Profile
from prefect_imagegen.core.request.references import is_signed

_SHOWN = 30


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """The user's options for reading a manifest.

    `columns` maps a field to the column that feeds it (`image_urls` to several, in order). `values` holds defaults of
    fields for this run. `id_column` is the column with the row's identity. `model` is used for rows that name no model.
    """

    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    id_column: str | None = None
    model: str = DEFAULT_MODEL
    reference_identity: Literal["url", "content"] = "url"
    """How http(s) references are identified; all others are identified by their content."""
    profile: Profile | None = None
    """How own GPU workers run the model: its fixed values replace the model's defaults."""
    weights: str | None = None
    strict_parameters: bool = False
    """Whether a row with parameters that the profile ignores is an error."""
    carry: Sequence[str] = ()
    """Columns of bytes that are copied to the metadata nevertheless."""
    allow_local_references: bool = False
    """Whether a manifest that is not on this machine may name files of this machine."""
    key_scope: str | None = None
    """The provider's part of the request key, for a provider that has one."""


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """Which columns feed which field (`sources`), and which are copied to the metadata under which name (`carried`)."""

    sources: Mapping[str, tuple[str, ...]]
    carried: Mapping[str, str]
    named: frozenset[str]
    """Fields that the user named with --column or --set; models without a ModelSpec get these too."""
    near: Mapping[str, str] = field(default_factory=dict)
    """Unused columns whose name looks like an unfed field, with that field."""
    left_out: tuple[str, ...] = ()
    """Columns of bytes, which are neither read nor copied."""
    id_column: str | None = None

    @property
    def fed(self) -> frozenset[str]:
        """The columns that feed fields, and the id column."""
        feeding = {column for columns in self.sources.values() for column in columns}
        return frozenset(feeding | ({self.id_column} if self.id_column else set()))

    @property
    def untyped(self) -> frozenset[str]:
        """Fields fed by a column in which numbers are read from text: all but the seed and those that are text."""
        texts = {name for name, spec in known_fields().items() if spec.type == "string"}
        return self.named.intersection(self.sources) - texts.union(COMMON_FIELDS)

    @property
    def needed(self) -> frozenset[str]:
        """The columns that have to be read."""
        return self.fed | frozenset(self.carried) | frozenset(self.near)


def plan_columns(columns: Sequence[str], options: ManifestOptions, binary: Collection[str] = ()) -> ColumnPlan:
    """Match the manifest's columns with the fields of requests; `binary` are those that hold bytes.

    Raises RefusedError (`manifest_schema`) for a named column that does not exist, a field fed by several columns,
    a column name that occurs twice, or a manifest without prompts; `signed_value` for a signed URL among the values.
    """
    _refuse_doubled(columns)
    # Where no row can name a model, a column that is a field of other models only is not read.
    has_models = "model" in {*columns, *options.columns, *options.values}
    fields = manifest_fields(None if has_models else options.model)
    sources: dict[str, tuple[str, ...]] = {name: (name,) for name in columns if name in fields}
    for name, feeding in options.columns.items():
        if len(feeding) > 1 and name != REFERENCES:
            raise RefusedError(
                "manifest_schema",
                f"The field {name!r} is mapped to several columns: {', '.join(feeding)}.",
                remedy="Only image_urls takes several.",
            )
        sources[name] = tuple(feeding)
    wanted = [column for feeding in sources.values() for column in feeding]
    for column in [*wanted, *([options.id_column] if options.id_column else []), *options.carry]:
        if column not in columns:
            raise RefusedError(
                "manifest_schema",
                f"The manifest has no column {column!r}; it has: {_list(columns)}.",
                remedy=_suggest(column, columns) or "Correct --column, --id-column or --carry.",
            )
    if "prompt" not in sources and "prompt" not in options.values:
        raise RefusedError(
            "manifest_schema",
            f"The manifest has no column 'prompt'; it has: {_list(columns)}.",
            remedy="Name the column that holds the prompts: --column "
            + shlex.quote(f"prompt={likely_prompt(columns) or 'COLUMN'}"),
        )
    _refuse_signed(options.values.get(REFERENCES))
    # Reference addresses may be private: they reach the metadata as references, never as a raw column.
    hidden = set(sources.get(REFERENCES, ()))
    _refuse_private(options.carry, hidden)
    hidden |= {name for name in ("prompt", "seed", "model") if sources.get(name) == (name,)}
    carried: dict[str, str] = {}
    left_out = tuple(column for column in columns if column in binary and column not in {*wanted, *options.carry})
    for column in columns:
        if column not in hidden and (column not in binary or column in options.carry):
            name = carried_name(column)
            while name in columns and name != column:
                name = carried_name(f"manifest_{name}")
            carried[column] = name
    unused = [column for column in columns if column not in {*wanted, *binary, options.id_column}]
    return ColumnPlan(
        sources,
        carried,
        frozenset(options.columns) | frozenset(options.values),
        near_fields(unused, {*sources, *options.values}, fields),
        left_out,
        options.id_column,
    )


def names_to_look_for(options: ManifestOptions) -> frozenset[str]:
    """The column names expected in a header: those of fields, and those that the user named."""
    named = {column for feeding in options.columns.values() for column in feeding}
    return manifest_fields() | named | ({options.id_column} if options.id_column else set())


def check_fields(named: Iterable[str], models: Iterable[str]) -> None:
    """Refuse a field that no model of the manifest has, if all its models are known ones.

    Raises RefusedError (`unknown_field`).
    """
    slugs = sorted(models)
    if not slugs or any(slug not in MODELS for slug in slugs):
        return
    known = set(COMMON_FIELDS).union(*(MODELS[slug].fields for slug in slugs))
    for name in sorted(named):
        if name not in known:
            raise RefusedError(
                "unknown_field",
                f"{', '.join(slugs)} has no field {name!r}; it has: {', '.join(sorted(known))}.",
                remedy=_suggest(name, sorted(known)) or "Correct --column or --set.",
            )


def parse_value(name: str, text: str) -> Any:
    """The value of `--set NAME=TEXT`, in the field's type; JSON, else text, for a field that no model defines.

    Raises RefusedError (`bad_value`).
    """
    spec = known_fields().get(name)
    kind = {"prompt": "string", "model": "string", "seed": "integer"}.get(name) or (spec.type if spec else None)
    if kind == "string":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        if kind is None:
            return text
        raise RefusedError(
            "bad_value", f"--set {name}={text}: {name} takes a value of type {kind}.", remedy="Correct the value."
        ) from None
    return value


def _refuse_doubled(columns: Sequence[str]) -> None:
    doubled = sorted(name for name, count in Counter(columns).items() if count > 1)
    if doubled:
        raise RefusedError(
            "manifest_schema", f"The manifest has several columns named {doubled[0]!r}.", remedy="Rename them."
        )


def _refuse_private(carried: Iterable[str], references: Collection[str]) -> None:
    private = next((name for name in carried if name in references), None)
    if private is not None:
        raise RefusedError(
            "manifest_schema",
            f"The column {private!r} holds references, whose addresses may be private; it is never carried.",
            remedy="Leave out --carry for it: the metadata has the column references.",
        )


def _refuse_signed(references: Any) -> None:
    if is_signed(str(references)):
        raise RefusedError(
            "signed_value",
            "A value for image_urls holds a signed URL; values of a run are stored, and signatures must not be.",
            remedy="Put it into a column of the manifest, and use --reference-identity content.",
        )


def _list(columns: Sequence[str]) -> str:
    """The names of the columns for people, as many as fit a message."""
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return (", ".join(columns[:_SHOWN]) or "none") + more


def _suggest(name: str, known: Sequence[str]) -> str:
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1)
    return f"Did you mean {lowered[close[0]]!r}?" if close else ""
