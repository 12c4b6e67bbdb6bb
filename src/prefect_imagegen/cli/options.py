"""The options that several commands share, with what a shell completes for them. `settings` reads their values."""

import re
from collections.abc import Callable
from typing import TypeVar

import click
from click.shell_completion import CompletionItem

from prefect_imagegen.core.request.profiles import DEFAULT_PROFILE, PROFILES

T = TypeVar("T")
BACKENDS = ("segmind", "sandbox", "pool")
"""The providers that are built in, named here too since help and completion do not load it."""
_BLOCK = re.compile(r"^(segmind|gpu-worker-pool|image-store)/[A-Za-z0-9-]+$")


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
    function = click.option(
        "--endpoint",
        "endpoints",
        multiple=True,
        metavar="DIALECT+URL",
        help="A worker of the backend pool: openai+http://HOST:PORT or segmind+http://HOST:PORT. Repeatable.",
    )(function)
    function = click.option("--base-url", metavar="URL", help="Base URL of the API or gateway.")(function)
    return click.option(
        "--backend",
        default="segmind",
        show_default=True,
        help="segmind, sandbox, pool, or a block: segmind/NAME, gpu-worker-pool/NAME.",
        shell_complete=complete_backend,
    )(function)


def json_option(function: Callable[..., T]) -> Callable[..., T]:
    """Add --json to a command."""
    return click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")(function)


def generate_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add everything that `generate` and `plan` take."""
    options = (
        click.argument("manifest", shell_complete=complete_file),
        click.option(
            "--manifest-storage-option",
            "manifest_storage_options",
            multiple=True,
            metavar="K=V",
            help="Option of the manifest's file system.",
        ),
        backend_options,
        click.option("--endpoint-limit", type=int, metavar="N", help="Calls at once for each worker. [default: 2]"),
        click.option(
            "--profile",
            type=click.Choice(sorted(PROFILES)),
            help=f"How workers run the model. [default: {DEFAULT_PROFILE}]",
        ),
        click.option("--strict-parameters", is_flag=True, help="Refuse rows that ask for what the profile cannot do."),
        click.option("--weights", metavar="LABEL", help="Label of the workers' weights; part of the key."),
        click.option("--weights-license", metavar="TEXT", help="Licence of the workers' weights, for the metadata."),
        click.option("--api-version", type=click.Choice(["v1", "v2"]), help="v2 submits and polls (default)."),
        click.option("--model", metavar="SLUG", help="Model of rows that name none. [default: flux-2-klein-9b]"),
        click.option("--column", "columns", multiple=True, metavar="FIELD=COLUMN", help="Which column feeds a field."),
        click.option("--set", "values", multiple=True, metavar="FIELD=VALUE", help="Value where a row has none."),
        click.option("--id-column", metavar="C", help="Column that identifies a row; unique."),
        click.option("--carry", multiple=True, metavar="COLUMN", help="Carry a column of bytes too. Repeatable."),
        click.option("--max-in-flight", type=int, metavar="N", help="Calls at once. [default: 16]"),
        click.option("--requests-per-minute", type=float, metavar="N", help="Submits a minute; 0 = no limit."),
        click.option("--shard-size", type=int, metavar="N", help="Rows per Prefect task run. [default: 64]"),
        click.option("--limit", type=int, metavar="N", help="Only the first N rows."),
        click.option("--max-attempts", type=int, metavar="N", help="POSTs per row and run. [default: 5]"),
        click.option("--deadline", type=float, metavar="S", help="Seconds for one generation. [default: 600]"),
        click.option("--max-failure-rate", type=float, metavar="F", help="Stop above this share. [default: 0.5]"),
        click.option("--max-cost-usd", type=float, metavar="X", help="Hard cap on what the run spends."),
        click.option(
            "--on-unknown",
            type=click.Choice(["reconcile", "retry-once", "hold"]),
            help="What calls without an answer do. [default: reconcile]",
        ),
        click.option("--history-lag", type=float, metavar="S", help="Lag of the request history. [default: 7200]"),
        click.option("--drain-seconds", type=float, metavar="S", help="Wait for v1 calls at a stop. [default: 20]"),
        click.option("--on-invalid", type=click.Choice(["fail", "skip"]), help="What invalid rows do. [default: fail]"),
        click.option(
            "--reference-identity",
            type=click.Choice(["url", "content"]),
            help="What web references go by. [default: url]",
        ),
        click.option(
            "--reference-transport",
            type=click.Choice(["auto", "presign", "upload", "data-url"]),
            help="How private references travel. [default: auto]",
        ),
        click.option(
            "--reference-storage-option",
            "reference_storage_options",
            multiple=True,
            metavar="K=V",
            help="Option of the references' file system.",
        ),
        click.option(
            "--check-references",
            type=click.Choice(["all", "sample", "none"]),
            help="Which are looked at before any call. [default: all]",
        ),
        click.option("--max-reference-megapixels", type=float, metavar="N", help="Refuse larger ones. [default: 64]"),
        click.option("--allow-private-references", is_flag=True, help="Fetch from private networks too."),
        click.option("--allow-local-references", is_flag=True, help="A manifest elsewhere may name files here."),
        click.option("--keep-references", is_flag=True, help="Keep the references in the store."),
        json_option,
        store_options,
    )
    for option in reversed(options):
        function = option(function)
    return function


def is_block(text: str) -> bool:
    """Whether a store or backend is named by a block of Prefect."""
    return _BLOCK.match(text) is not None
