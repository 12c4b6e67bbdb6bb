"""The options of a run as a pydantic model, made from the table of options."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, create_model, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from prefect_imagegen.app.config.option_fields import option_field
from prefect_imagegen.app.config.option_rows import TableRow
from prefect_imagegen.app.config.option_table import GROUPS, OPTIONS, OptionArguments, OptionTable
from prefect_imagegen.core.request.manifest import ManifestOptions
from prefect_imagegen.core.request.models import DEFAULT_MODEL
from prefect_imagegen.core.request.profiles import PROFILES

P = ParamSpec("P")
S = TypeVar("S")


def _model_field(row: TableRow, position: int) -> tuple[Any, Any]:
    return row.type, option_field(row.name, json_schema_extra=partial(_in_form, position))


def _in_form(position: int, schema: dict[str, Any]) -> None:
    """Give a property its place in Prefect's form, and a plain field where it may be None.

    For `integer or null` the form asks first which of the two it is; and a field with the default null is sent as null
    where it is left empty. So such an option is an integer without a default: an empty field is not sent.
    """
    schema["position"] = position
    inner = [variant for variant in schema.get("anyOf", ()) if variant != {"type": "null"}]
    if len(inner) == 1:
        del schema["anyOf"]
        schema |= inner[0]
    if "default" in schema and schema["default"] is None:
        del schema["default"]


def _typed_as(arguments: Callable[P, object]) -> Callable[[Callable[[S], None]], Callable[Concatenate[S, P], None]]:
    """For type checkers: a method that takes what `arguments` takes."""
    raise NotImplementedError


if TYPE_CHECKING:

    class _Fields(BaseModel, OptionTable, frozen=True):
        """The options as fields: type checkers read their types in the table."""

else:  # The dataclass itself is no base: pydantic would not see the factories of its defaults.
    _Fields = create_model(
        "_Fields", **{row.name: _model_field(row, position) for position, row in enumerate(OPTIONS.values())}
    )


class RunOptions(_Fields):
    """How a manifest is read and how its images are made. Every default is that of the command line.

    An option is given by its own name, or in its group: `RunOptions(limit=8)`, `RunOptions(execution={"limit": 8})`.
    It is read by its own name: `options.limit`. Forms show the groups.
    """

    # The input may hold secrets.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    if TYPE_CHECKING:

        @_typed_as(OptionArguments)
        def __init__(self) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _without_groups(cls, arguments: Any) -> Any:
        """The options by their own names. A default inside a group does not count: forms fill in every field."""
        if not isinstance(arguments, Mapping):
            return arguments
        options = {name: value for name, value in arguments.items() if name not in GROUPS}
        for group in GROUPS.keys() & arguments.keys():
            for name, value in _members(group, arguments[group]).items():
                if name not in options:
                    options[name] = value
                elif value not in (OPTIONS[name].default, options[name]):
                    raise PydanticCustomError(
                        "option_twice",
                        "{name} is given twice, by itself and in {group}, with different values",
                        {"name": name, "group": group},
                    )
        return options

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema of the groups; the names of the options themselves are taken too."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        properties = schema["properties"]
        schema["properties"] = {
            group: {
                "type": "object",
                "title": group.capitalize(),
                "description": table.__doc__,
                "position": position,
                "properties": {row.name: properties[row.name] for row in OPTIONS.values() if row.group == group},
                "additionalProperties": False,
            }
            for position, (group, table) in enumerate(GROUPS.items())
        }
        schema["patternProperties"] = {f"^({'|'.join(OPTIONS)})$": {}}
        return schema

    def manifest_options(
        self, model: str | None = None, profile: str | None = None, weights: str | None = None
    ) -> ManifestOptions:
        """The options about the manifest; `model`, `profile` and `weights` are the provider's own."""
        return ManifestOptions(
            self.columns,
            self.values,
            self.id_column,
            self.model or model or DEFAULT_MODEL,
            self.reference_identity,
            PROFILES[profile] if profile else None,
            weights,
            self.strict_parameters,
            self.carry,
            self.allow_local_references,
        )


def did_you_mean(name: str) -> str:
    """What to do about an option that is not there."""
    near = difflib.get_close_matches(name, OPTIONS, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(OPTIONS)}."


def _members(group: str, members: Any) -> Mapping[str, Any]:
    """The options of a group. Raises PydanticCustomError for what does not belong there."""
    if not isinstance(members, Mapping):
        raise PydanticCustomError("option_group", "{group} is a group of options", {"group": group})
    for name in members:
        if name not in OPTIONS:
            remedy = did_you_mean(str(name))
            raise PydanticCustomError(
                "option_unknown",
                "there is no option {name} in {group}. {remedy}",
                {"name": repr(name), "group": group, "remedy": remedy},
            )
        if OPTIONS[name].group != group:
            raise PydanticCustomError(
                "option_elsewhere",
                "{name} is not in {group}, but in {own}",
                {"name": name, "group": group, "own": OPTIONS[name].group},
            )
    return members
