"""Pages of the reference made from the command line, the options, the flow and the blocks."""

import inspect
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from click.testing import CliRunner
from prefect.blocks.fields import SecretDict
from prefect.utilities.callables import parameter_schema
from pydantic.fields import FieldInfo
from tables import table

from prefect_imagegen.app.config.option_table import GROUPS, OPTIONS
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.blocks import GpuWorkerPool, ImageStore, Segmind
from prefect_imagegen.cli.main import cli
from prefect_imagegen.flows.generate_images import generate_images

_FIRST = ["demo", "plan", "generate", "status"]
"""What a newcomer needs stands first."""
_NAMES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "dict": "object",
    "Any": "any",
    "SecretStr": "secret",
    "SecretDict": "secret object",
}


def commands() -> str:
    """The help of every command, 88 columns wide, each below a heading of its own."""
    with click.Context(cli) as context:
        found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    visible = [name for name, command in found.items() if command is not None and not command.hidden]
    ordered = [*_FIRST, *(name for name in visible if name not in _FIRST)]
    return "\n\n".join(f"## {name}\n\n{_help(name)}" for name in ordered)


def _help(name: str) -> str:
    shown = CliRunner().invoke(cli, [name, "--help"], prog_name="prefect-imagegen", terminal_width=88)
    if shown.exit_code != 0:
        raise RuntimeError(f"{name} --help: {shown.output}")
    return f"```text\n{shown.output.rstrip()}\n```"


def options() -> str:
    """The options of a run, each group below a heading of its own."""
    parts = []
    for group, table_of_group in GROUPS.items():
        rows = (
            (f"`{name}`<br>`{row.flag}`", *_described(name, RunOptions.model_fields[name]))
            for name, row in OPTIONS.items()
            if row.group == group
        )
        columns = ("field, on the command line", "type", "default", "meaning")
        parts.append(f"### {group}\n\n{table_of_group.__doc__}\n\n{table(columns, *rows)}")
    return "\n\n".join(parts)


def flow_parameters() -> str:
    """The parameters of the flow `generate-images`."""
    rows = []
    described = parameter_schema(generate_images.fn).properties
    for name, parameter in inspect.signature(generate_images.fn).parameters.items():
        is_required = parameter.default is inspect.Parameter.empty
        field = (
            FieldInfo.from_annotation(parameter.annotation)
            if is_required
            else FieldInfo.from_annotated_attribute(parameter.annotation, parameter.default)
        )
        field.description = described[name]["description"]
        rows.append((f"`{name}`", *_described(name, field)))
    return table(("parameter", "type", "default", "meaning"), *rows)


def blocks() -> str:
    """The fields of every block, each block below a heading of its own."""
    parts = []
    for block in (Segmind, GpuWorkerPool, ImageStore):
        summary = (block.__doc__ or "").strip().splitlines()[0]
        rows = ((f"`{name}`", *_described(name, field)) for name, field in block.model_fields.items())
        named = f"Its name on a command line and in a flow: `{block.get_block_type_slug()}/NAME`."
        head = f"## {block.__name__}\n\n{summary}\n{named}"
        parts.append(f"{head}\n\n{table(('field', 'type', 'default', 'meaning'), *rows)}")
    return "\n\n".join(parts)


def _described(name: str, field: FieldInfo) -> tuple[str, str, str]:
    """Type, default and meaning. Raises RuntimeError for a field that says nothing of itself."""
    if not field.description:
        raise RuntimeError(f"{name} has no description")
    return _type_of(field), _default_of(field), field.description


def _type_of(field: FieldInfo) -> str:
    """The type in words, with its range."""
    limits = {
        name: getattr(part, name) for part in field.metadata for name in ("ge", "gt", "le") if hasattr(part, name)
    }
    words = [_type_text(field.annotation)]
    words += [f"from {limits['ge']:g}"] if "ge" in limits else []
    words += [f"above {limits['gt']:g}"] if "gt" in limits else []
    words += [f"to {limits['le']:g}"] if "le" in limits else []
    return " ".join(words)


def _type_text(annotation: Any) -> str:
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _type_text(inner[0])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type_text(part) for part in inner if part is not type(None))
    if get_origin(annotation) is list:
        return f"list of {_type_text(inner[0])}"
    name = getattr(get_origin(annotation) or annotation, "__name__", str(annotation))
    return _NAMES.get(name, f"`{name}`")


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or isinstance(value, SecretDict) or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
