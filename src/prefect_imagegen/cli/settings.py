"""The values of a parsed command line as settings and options. Secrets come from the environment only."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_origin

from pydantic import ValidationError

from prefect_imagegen.app.config.option_rows import TableRow
from prefect_imagegen.app.config.option_table import OPTIONS
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.cli.options import is_provider_block, is_store_block
from prefect_imagegen.cli.prefect_api import quiet_prefect
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.request.manifest import parse_value
from prefect_imagegen.core.secrets import FROM_ENVIRONMENT, secret_option
from prefect_imagegen.providers.settings import ProviderSettings


def store_of(parsed: Mapping[str, Any]) -> StoreSettings:
    """The store that --store and --storage-option name. Only a block loads Prefect. Raises RefusedError."""
    store, options = parsed["store"], parse_storage_options(parsed["storage_options"])
    if not is_store_block(store):
        return StoreSettings(store, options)
    quiet_prefect()
    from prefect_imagegen.blocks.resolve import resolve_store

    return asyncio.run(resolve_store(store, options))


def backend_of(parsed: Mapping[str, Any]) -> ProviderSettings:
    """The backend that --backend names. Only a block loads Prefect. Raises RefusedError."""
    if not is_provider_block(parsed["backend"]):
        return ProviderSettings(parsed["backend"])
    quiet_prefect()
    from prefect_imagegen.blocks.resolve import resolve_provider

    return asyncio.run(resolve_provider(parsed["backend"]))


def parse_storage_options(pairs: Sequence[str], option: str = "--storage-option") -> dict[str, Any]:
    """The options of `K=V` pairs: JSON or text; `env:NAME` is taken from the environment, also within JSON.

    Raises RefusedError for a secret in clear, or a variable that is not set.
    """
    options: dict[str, Any] = {}
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
        options[name] = _from_environment(value, f"{option} {name}")
    return options


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
    values = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise RefusedError("bad_option", f"{option} {name}: not of the form NAME=VALUE.", remedy="Correct it.")
        values[name] = value
    return values


def options_of(parsed: Mapping[str, Any]) -> RunOptions:
    """The options of a parsed command line. Raises RefusedError that names the option."""
    arguments = {name: _converted(row, parsed[name]) for name, row in OPTIONS.items() if parsed[name] is not None}
    try:
        return RunOptions.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        flag = OPTIONS[str(first["loc"][0])].flag
        raise RefusedError("bad_option", f"{flag}: {first['msg']}.", remedy="Correct it.") from error


def _converted(row: TableRow, value: Any) -> Any:
    """The value of an option as click gives it, as its type: `NAME=VALUE` pairs are mappings. Raises RefusedError."""
    if row.option.secret:
        return parse_storage_options(value, row.flag)
    if get_origin(row.type) is list:
        return list(value)
    if row.type == dict[str, list[str]]:
        lists: dict[str, list[str]] = {}
        for pair in value:
            for name, member in _pairs([pair], row.flag).items():
                lists.setdefault(name, []).append(member)
        return lists
    if get_origin(row.type) is dict:
        return {name: parse_value(name, text) for name, text in _pairs(value, row.flag).items()}
    return value
