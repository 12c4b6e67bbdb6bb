"""Plain settings of provider and store, made by blocks, the command line and Python callers; secrets are SecretStr."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """Who makes the images, and how to reach it. `provider` is one of `app.config.resolve.PROVIDERS`.

    None in any field means the default.
    """

    provider: str = "segmind"
    base_url: str | None = None
    history_url: str | None = None
    assets_url: str | None = None
    api_key: SecretStr | None = None
    api_version: str | None = None
    model: str | None = None
    requests_per_minute: float | None = None
    max_in_flight: int | None = None
    endpoints: tuple[str, ...] = ()
    """The workers of a pool, as `DIALECT+URL` each. This field and those after it are for pools only."""
    endpoint_limit: int | None = None
    profile: str | None = None
    weights: str | None = None
    weights_license: str | None = None


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """A store: an fsspec URL and its options. Options may hold secrets: they are never shown or stored."""

    url: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    public_base_url: str | None = None
