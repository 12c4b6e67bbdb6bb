"""Resolve the settings of a provider: options first, then the settings, the environment and the defaults."""

import os
from dataclasses import replace

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.ports import Provider
from prefect_imagegen.providers.entry import ProviderEntry
from prefect_imagegen.providers.registry import PROVIDERS, entry_of
from prefect_imagegen.providers.settings import ProviderSettings

_OWN_OPTIONS = ("endpoints", "endpoint_limit", "profile", "strict_parameters", "weights", "weights_license")
_OVERRIDES = (
    *("base_url", "api_version", "model", "requests_per_minute", "max_in_flight"),
    *("endpoints", "endpoint_limit", "profile", "weights", "weights_license"),
)
"""Options that replace the setting of the same name."""


def resolve_provider(settings: ProviderSettings, options: RunOptions) -> ProviderSettings:
    """The settings with everything filled in.

    Raises RefusedError: `backend_unknown`, `backend_broken`, `bad_url`, `bad_option`; for a pool also `no_endpoints`,
    `bad_endpoint`.
    """
    entry = entry_of(settings.provider)
    _refuse_foreign_options(entry, options)
    overrides = {name: value for name in _OVERRIDES if (value := getattr(options, name)) not in (None, [])}
    overrides |= {name: tuple(value) for name, value in overrides.items() if isinstance(value, list)}
    resolved = entry.resolve(replace(settings, **overrides), os.environ)
    _refuse_transport(entry, options)
    return resolved


def open_provider(settings: ProviderSettings, deadline: float) -> Provider:
    """The provider of resolved settings. `deadline`: seconds for one call, and to wait for a healthy worker."""
    return entry_of(settings.provider).open(settings, deadline)


def _refuse_foreign_options(entry: ProviderEntry, options: RunOptions) -> None:
    """Raise RefusedError (`bad_option`) for options that mean nothing to the provider."""
    for name in _OWN_OPTIONS:
        if getattr(options, name) and name not in entry.own_options:
            option = f"--{name.removesuffix('s') if name == 'endpoints' else name.replace('_', '-')}"
            others = " or ".join(other.name for other in PROVIDERS.values() if name in other.own_options)
            raise RefusedError("bad_option", f"{option} is for a pool of workers.", remedy=f"Add --backend {others}.")


def _refuse_transport(entry: ProviderEntry, options: RunOptions) -> None:
    """Raise RefusedError (`bad_option`) for a way of sending references that the provider does not have."""
    transport = options.reference_transport
    if not entry.abilities.reference_urls and transport not in ("auto", "data-url"):
        raise RefusedError(
            "bad_option",
            f"--reference-transport {transport} is for the API: workers get the pictures themselves.",
            remedy="Leave it out.",
        )
    if transport == "upload" and not entry.abilities.uploads:
        raise RefusedError(
            "bad_option",
            f"--reference-transport upload is not possible: {entry.name} takes no uploads.",
            remedy="Use presign or data-url, or leave it out.",
        )
