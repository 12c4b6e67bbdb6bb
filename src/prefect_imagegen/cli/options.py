"""The options that several commands share, with what a shell completes for them. `settings` reads their values."""

import re
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from prefect_imagegen.app.config.option_rows import TableRow
from prefect_imagegen.app.config.option_table import OPTIONS

T = TypeVar("T")
BACKENDS = ("segmind", "sandbox", "pool")
"""The providers that are built in, named here too since help and completion do not load it."""
_OF_BACKENDS = ("base_url", "endpoints")
"""Options that every command takes that calls a backend."""
_STORE_BLOCK = re.compile(r"^image-store/[A-Za-z0-9-]+$")
_PROVIDER_BLOCK = re.compile(r"^[a-z0-9-]+/[A-Za-z0-9-]+$")


def complete_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Let the shell complete the path of a file."""
    return [CompletionItem(incomplete, type="file")]


def complete_folder(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Let the shell complete the path of a folder."""
    return [CompletionItem(incomplete, type="dir")]


def complete_backend(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's signature
    """The backends that begin so. Blocks are not offered: naming them takes Prefect's API."""
    return [name for name in BACKENDS if name.startswith(incomplete)]


def store_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add --store and --storage-option to a command."""
    function = click.option(
        "--storage-option", "storage_options", multiple=True, metavar="K=V", help="Option of the store's file system."
    )(function)
    return click.option(
        "--store",
        required=True,
        metavar="URL",
        help="URL or path of the store, or image-store/NAME.",
        shell_complete=complete_folder,
    )(function)


def backend_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add --backend, --base-url and --endpoint to a command."""
    for name in reversed(_OF_BACKENDS):
        function = click_option(OPTIONS[name])(function)
    return click.option(
        "--backend",
        default="segmind",
        show_default=True,
        help="segmind, sandbox, pool, an installed provider, or a block: segmind/NAME, gpu-worker-pool/NAME.",
        shell_complete=complete_backend,
    )(function)


def click_option(row: TableRow) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """An option of a run as one of the command line; None or empty where it is not given."""
    default = row.option.unset or (f"{row.default:g}" if isinstance(row.default, float) else row.default)
    shown = f" [default: {default}]" if default else ""
    return click.option(
        row.flag, row.name, metavar=row.option.metavar, help=row.option.short + shown, **_kind(row.type)
    )


def _kind(annotation: Any) -> dict[str, Any]:
    """What click has to know of a type: a flag, a choice, a number, or a text that may be repeated."""
    variants = [annotation]
    if get_origin(annotation) in (Union, UnionType):
        variants = [variant for variant in get_args(annotation) if variant is not NoneType]
    plain = variants[0]
    if plain is bool:
        return {"is_flag": True}
    if get_origin(plain) is Literal:
        return {"type": click.Choice(get_args(plain))}
    if get_origin(plain) in (list, dict):
        return {"multiple": True}
    return {"type": plain}


def json_option(function: Callable[..., T]) -> Callable[..., T]:
    """Add --json to a command."""
    return click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")(function)


def generate_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add everything that `generate` and `plan` take."""
    options: tuple[Callable[[Callable[..., T]], Callable[..., T]], ...] = (
        click.argument("manifest", shell_complete=complete_file),
        store_options,
        json_option,
        backend_options,
        *(click_option(row) for name, row in OPTIONS.items() if name not in _OF_BACKENDS),
    )
    for option in reversed(options):
        function = option(function)
    return function


def is_store_block(store: str) -> bool:
    """Whether a store is named by a block of Prefect; any other text is a path or a URL."""
    return _STORE_BLOCK.match(store) is not None


def is_provider_block(backend: str) -> bool:
    """Whether a backend is named by a block of Prefect. Names of providers have no slash."""
    return _PROVIDER_BLOCK.match(backend) is not None
