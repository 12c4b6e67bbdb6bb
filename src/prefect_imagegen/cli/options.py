"""The options of the commands, and how their texts become settings. Secrets come from the environment only."""

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from prefect_imagegen.app.config.options import GenerateOptions
from prefect_imagegen.app.config.settings import ProviderSettings, StoreSettings
from prefect_imagegen.cli.output import quiet_prefect
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.request.manifest import parse_value
from prefect_imagegen.core.request.profiles import DEFAULT_PROFILE, PROFILES
from prefect_imagegen.core.secrets import FROM_ENVIRONMENT, secret_option

T = TypeVar("T")
_BLOCK = re.compile(r"^(segmind|gpu-worker-pool|image-store)/[A-Za-z0-9-]+$")


def store_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add --store and --storage-option to a command."""
    function = click.option(
        "--storage-option", "storage_options", multiple=True, metavar="K=V", help="Option of the store's file system."
    )(function)
    return click.option("--store", required=True, metavar="URL", help="URL or path of the store, or image-store/NAME.")(
        function
    )


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
    )(function)


def json_option(function: Callable[..., T]) -> Callable[..., T]:
    """Add --json to a command."""
    return click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")(function)


def generate_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add everything that `generate` and `plan` take."""
    options = (
        click.argument("manifest"),
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


def store_of(given: Mapping[str, Any]) -> StoreSettings:
    """The store that --store and --storage-option name. Only a block loads Prefect. Raises RefusedError."""
    store, options = given["store"], parse_storage_options(given["storage_options"])
    if not is_block(store):
        return StoreSettings(store, options)
    quiet_prefect()
    from prefect_imagegen.blocks.resolve import resolve_store  # noqa: PLC0415 - loads Prefect, for blocks alone

    return asyncio.run(resolve_store(store, options))


def backend_of(given: Mapping[str, Any]) -> ProviderSettings:
    """The backend that --backend names. Only a block loads Prefect. Raises RefusedError."""
    if not is_block(given["backend"]):
        return ProviderSettings(given["backend"])
    quiet_prefect()
    from prefect_imagegen.blocks.resolve import resolve_provider  # noqa: PLC0415 - loads Prefect, for blocks alone

    return asyncio.run(resolve_provider(given["backend"]))


def parse_storage_options(pairs: Sequence[str], option: str = "--storage-option") -> dict[str, Any]:
    """The options of `K=V` pairs: JSON or text; `env:NAME` is taken from the environment, also within JSON.

    Raises RefusedError for a secret in clear, or a variable that is not set.
    """
    found: dict[str, Any] = {}
    for name, text in _pairs(pairs, option).items():
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        secret = secret_option({name: value})
        if secret is not None:
            raise RefusedError(
                "secret_in_clear",
                f"{option} {secret} looks like a secret, which every user of this machine could read.",
                remedy="Put it into the environment and write "
                + (f"{name}=env:NAME." if secret == name else "env:NAME in its place."),
            )
        found[name] = _from_environment(value, f"{option} {name}")
    return found


def _from_environment(value: Any, option: str) -> Any:
    """A value with what the environment holds for each `env:NAME` in it."""
    if isinstance(value, dict):
        return {name: _from_environment(inner, option) for name, inner in value.items()}
    if isinstance(value, list):
        return [_from_environment(inner, option) for inner in value]
    if not isinstance(value, str) or not value.startswith(FROM_ENVIRONMENT):
        return value
    variable = value.removeprefix(FROM_ENVIRONMENT)
    if variable not in os.environ:
        raise RefusedError("bad_option", f"{option}: {variable} is not set.", remedy="Export it.")
    return os.environ[variable]


def _pairs(pairs: Sequence[str], option: str) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise RefusedError("bad_option", f"{option} {name}: not of the form NAME=VALUE.", remedy="Correct it.")
        found[name] = value
    return found


def options_of(given: Mapping[str, Any]) -> GenerateOptions:
    """The options of a parsed command line. Raises RefusedError that names the option."""
    columns: dict[str, list[str]] = {}
    for pair in given["columns"]:
        for name, column in _pairs([pair], "--column").items():
            columns.setdefault(name, []).append(column)
    plain = (
        *("base_url", "api_version", "model", "id_column", "max_in_flight", "requests_per_minute", "shard_size"),
        *("limit", "max_attempts", "deadline", "max_failure_rate", "on_invalid"),
        *("max_cost_usd", "on_unknown", "history_lag", "drain_seconds"),
        *("reference_identity", "reference_transport", "check_references", "max_reference_megapixels"),
        *("allow_private_references", "allow_local_references", "keep_references"),
        *("endpoint_limit", "profile", "strict_parameters", "weights", "weights_license"),
    )
    values = {name: parse_value(name, text) for name, text in _pairs(given["values"], "--set").items()}
    try:
        return GenerateOptions(
            columns=columns,
            values=values,
            endpoints=list(given["endpoints"]),
            carry=list(given["carry"]),
            manifest_storage_options=parse_storage_options(
                given["manifest_storage_options"], "--manifest-storage-option"
            ),
            reference_storage_options=parse_storage_options(
                given["reference_storage_options"], "--reference-storage-option"
            ),
            **{name: given[name] for name in plain if given[name] is not None},
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise RefusedError("bad_option", f"--{name}: {first['msg']}.", remedy="Correct it.") from error
