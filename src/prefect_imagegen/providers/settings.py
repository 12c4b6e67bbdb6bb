"""The plain settings of a provider, made by blocks, the command line and Python callers; the key is a SecretStr."""

from dataclasses import dataclass

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """Who makes the images, and how to reach it. `provider` is a name of `providers.registry.PROVIDERS`.

    None in any field means the default. Resolved settings have everything filled in.
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
