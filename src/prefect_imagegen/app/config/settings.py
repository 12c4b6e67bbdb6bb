"""Plain settings that blocks, the command line and Python callers all turn into; secrets are SecretStr."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """Where images come from. `provider` is a key of `app.config.resolve.PROVIDERS`; None means: take the default."""

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
    """Of a pool, as what follows: `DIALECT+URL` each."""
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
