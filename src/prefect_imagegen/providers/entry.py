"""What the rest of the program knows of a provider before it is opened: its entry in `providers.registry`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from pydantic import SecretStr

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.policy.abilities import Abilities
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.secrets import holds_secret
from prefect_imagegen.ports import Provider
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.store_kind import StoreKind, kind_of_engine

DEFAULT_IN_FLIGHT = 16
Environment = Mapping[str, str]
_URLS = {"base_url": "--base-url", "history_url": "the history URL", "assets_url": "the assets URL"}
_OF_THE_ENVIRONMENT = ("api_key", *_URLS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEntry:
    """A provider: its name, what it can do, how its settings are resolved, and how it is opened.

    `open` makes the provider of resolved settings; its other argument is --deadline in seconds.
    """

    name: str
    abilities: Abilities
    open: Callable[[ProviderSettings, float], Provider]
    resolver: Callable[[ProviderSettings, Environment], ProviderSettings] | None = None
    """How settings are resolved, where the fields below do not say it all."""
    default_url: str | None = None
    """The base URL of the service; None where the user has to give one, or needs none."""
    default_rate: float | None = None
    """Submits a minute at the default URL; no limit elsewhere."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """The environment variables of settings, by field: `api_key`, `base_url`, `history_url`, `assets_url`."""
    needs_key: bool = True
    key_remedy: str = ""
    """How a user gives the key, as a sentence."""
    own_options: frozenset[str] = frozenset()
    """Options about GPU workers (fields of `RunOptions`) that have a meaning here; others refuse them."""
    embeds_gateway: bool = False
    """Whether a gateway is started for each run that names no base URL; it forgets everything with the run."""
    draws_placeholders: bool = False
    """Whether its images are placeholders, whatever its endpoint says."""
    may_be_gateway: bool = False
    """Whether what answers at another URL than the default one may be a gateway, which names its engine."""

    def resolve(self, settings: ProviderSettings, environment: Environment) -> ProviderSettings:
        """The settings with everything filled in: what is set, then the environment, then the defaults.

        Raises RefusedError: `bad_url`, and what a resolver of its own raises.
        """
        if self.resolver is not None:
            return self.resolver(settings, environment)
        return _resolved_api(self, settings, environment)

    def is_embedded(self, settings: ProviderSettings) -> bool:
        """Whether the endpoint of resolved settings is a gateway that the run starts itself."""
        return self.embeds_gateway and not settings.base_url

    def url(self, settings: ProviderSettings) -> str:
        """The base URL of resolved settings; an empty text where there is none."""
        return (settings.base_url or self.default_url or "").rstrip("/")

    def names_engine(self, settings: ProviderSettings) -> bool:
        """Whether the endpoint has to be asked for its engine, since it may draw placeholders."""
        return self.may_be_gateway and not self.draws_placeholders and self.url(settings) != self.default_url

    def kind(self, engine: str | None) -> StoreKind:
        """The kind of store that its images go to. `engine`: what the endpoint names, if any."""
        return "sandbox" if self.draws_placeholders else kind_of_engine(engine)


def _resolved_api(entry: ProviderEntry, settings: ProviderSettings, environment: Environment) -> ProviderSettings:
    """As `ProviderEntry.resolve`, for an API with one endpoint."""
    values = {
        name: getattr(settings, name) or environment.get(entry.variables.get(name, "")) or None
        for name in _OF_THE_ENVIRONMENT
    }
    key = values["api_key"]
    for name, shown in _URLS.items():
        _check_url(entry, shown, values[name])
    rate = settings.requests_per_minute
    if rate is None and (values["base_url"] or entry.default_url or "").rstrip("/") == entry.default_url:
        rate = entry.default_rate
    return replace(
        settings,
        api_key=SecretStr(key) if isinstance(key, str) else key,
        base_url=values["base_url"],
        history_url=values["history_url"],
        assets_url=values["assets_url"],
        api_version=settings.api_version or "v2",
        requests_per_minute=rate,
        max_in_flight=settings.max_in_flight or DEFAULT_IN_FLIGHT,
    )


def _check_url(entry: ProviderEntry, name: str, url: str | None) -> None:
    if url is not None and holds_secret(url):
        raise RefusedError(
            "bad_url",
            f"{name} {redact(url)} holds a password or a signature, and metadata names the address.",
            remedy=f"Give it without one. The key has a place of its own. {entry.key_remedy}".strip(),
        )
    if url is not None and not is_web_address(url):
        raise RefusedError("bad_url", f"{name} {redact(url)} is no http(s) URL.", remedy="Correct it.")


def is_web_address(url: str) -> bool:
    """Whether a URL is http(s), with a host and a valid port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
