"""From plain settings to the adapters behind the ports."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlsplit

import httpx
from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import ProviderSettings
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.request.models import DEFAULT_MODEL
from prefect_imagegen.core.request.profiles import DEFAULT_PROFILE, PROFILES, licence_of
from prefect_imagegen.core.secrets import holds_secret
from prefect_imagegen.net.client import make_client
from prefect_imagegen.ports import Dialect
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.pool.openai_images import OpenAIImages
from prefect_imagegen.providers.pool.provider import Pool, PoolPolicy
from prefect_imagegen.providers.segmind.provider import SEGMIND_URL, Endpoints, SegmindProvider
from prefect_imagegen.store.store_kind import StoreKind

DEFAULT_IN_FLIGHT = 16
SEGMIND_REQUESTS_PER_MINUTE = 50.0
"""Segmind publishes 5 to 1000 a minute, depending on page and plan; 50 is safe for paid ones."""
PROVIDERS = ("segmind", "sandbox", "pool")
_ENDPOINT = re.compile(r"^(?P<dialect>[a-z]+)\+(?P<url>https?://[^\s#]+)(?:#(?P<own>\S*))?$")
_BEARING = re.compile(r"[?@]")
"""A query or user information in a URL: a place where secrets stand."""


def resolve_provider(settings: ProviderSettings, options: RunOptions) -> ProviderSettings:
    """The settings with options, environment and defaults filled in, in this order.

    Raises RefusedError: `backend_unknown`, `bad_url`.
    """
    if settings.provider not in PROVIDERS:
        raise RefusedError(
            "backend_unknown",
            f"There is no backend {redact(settings.provider)!r}.",
            remedy=f"Use --backend {' or '.join(PROVIDERS)}, or a block such as segmind/NAME.",
        )
    if settings.provider == "pool":
        return _resolve_pool(settings, options)
    for name in ("endpoints", "endpoint_limit", "profile", "strict_parameters", "weights", "weights_license"):
        if getattr(options, name):
            option = f"--{name.removesuffix('s') if name == 'endpoints' else name.replace('_', '-')}"
            raise RefusedError("bad_option", f"{option} is for a pool of workers.", remedy="Add --backend pool.")
    environment = os.environ if settings.provider == "segmind" else {}
    key = settings.api_key or (
        SecretStr(environment["SEGMIND_API_KEY"]) if environment.get("SEGMIND_API_KEY") else None
    )
    base_url = options.base_url or settings.base_url or environment.get("SEGMIND_BASE_URL") or None
    own = {"--base-url": base_url, "the history URL": settings.history_url, "the assets URL": settings.assets_url}
    for name, url in own.items():
        if url is not None and holds_secret(url):
            raise RefusedError(
                "bad_url",
                f"{name} {redact(url)} holds a password or a signature, and metadata names the address.",
                remedy="Give it without one; the key goes into SEGMIND_API_KEY, or into a block segmind/NAME.",
            )
        if url is not None and not _is_web_address(url):
            raise RefusedError("bad_url", f"{name} {redact(url)} is no http(s) URL.", remedy="Correct it.")
    rate = options.requests_per_minute if options.requests_per_minute is not None else settings.requests_per_minute
    if rate is None and settings.provider == "segmind" and (base_url or SEGMIND_URL).rstrip("/") == SEGMIND_URL:
        rate = SEGMIND_REQUESTS_PER_MINUTE
    return replace(
        settings,
        api_key=key,
        base_url=base_url,
        history_url=settings.history_url or environment.get("SEGMIND_HISTORY_URL") or None,
        assets_url=settings.assets_url or environment.get("SEGMIND_ASSETS_URL") or None,
        api_version=options.api_version or settings.api_version or "v2",
        requests_per_minute=rate,
        max_in_flight=options.max_in_flight or settings.max_in_flight or DEFAULT_IN_FLIGHT,
    )


def _resolve_pool(settings: ProviderSettings, options: RunOptions) -> ProviderSettings:
    """The same for a pool. Raises RefusedError: `no_endpoints`, `bad_endpoint`, `bad_option`."""
    endpoints = tuple(options.endpoints) or settings.endpoints
    if not endpoints:
        raise RefusedError(
            "no_endpoints", "The pool has no workers.", remedy="Name each with --endpoint DIALECT+http://HOST:PORT."
        )
    urls = [_worker(endpoint).url for endpoint in endpoints]
    if len(set(urls)) < len(urls):
        raise RefusedError("bad_endpoint", "An endpoint is named twice.", remedy="Name each once.")
    if options.reference_transport not in ("auto", "data-url"):
        raise RefusedError(
            "bad_option",
            f"--reference-transport {options.reference_transport} is for the API: workers get the pictures themselves.",
            remedy="Leave it out.",
        )
    key = os.environ.get("PREFECT_IMAGEGEN_POOL_API_KEY")
    return replace(
        settings,
        endpoints=endpoints,
        endpoint_limit=options.endpoint_limit or settings.endpoint_limit,
        profile=options.profile or settings.profile or DEFAULT_PROFILE,
        weights=options.weights or settings.weights,
        weights_license=options.weights_license
        or settings.weights_license
        or licence_of(options.weights or settings.weights or options.model or settings.model or DEFAULT_MODEL),
        api_key=settings.api_key or (SecretStr(key) if key else None),
        max_in_flight=options.max_in_flight or settings.max_in_flight,
    )


def make_pool(settings: ProviderSettings, deadline: float) -> Pool:
    """The backend of resolved settings: the workers of a pool, or the API as a pool of one."""
    clock = SystemClock()
    if settings.provider != "pool":
        api = make_provider(settings, deadline)
        return Pool([api], PoolPolicy(free=False, deadline=deadline), clock, api)
    workers = [_worker(endpoint) for endpoint in settings.endpoints]
    dialects = [DIALECTS[one.dialect](one.url, one.key or settings.api_key, deadline) for one in workers]
    policy = PoolPolicy(True, deadline, settings.endpoint_limit, PROFILES[settings.profile or DEFAULT_PROFILE])
    return Pool(dialects, policy, clock, limits=[one.limit for one in workers])


@dataclass(frozen=True, slots=True)
class _Worker:
    """What an endpoint string says: `DIALECT+URL[#limit=N&key=env:NAME]`."""

    dialect: str
    url: str
    limit: int | None = None
    key: SecretStr | None = None


def _worker(endpoint: str) -> _Worker:
    """Read an endpoint string. Raises RefusedError (`bad_endpoint`), without repeating what may be a secret."""
    match = _ENDPOINT.match(endpoint)
    own = dict(parse_qsl(match["own"] or "", keep_blank_values=True)) if match else {}
    known = match is not None and match["dialect"] in DIALECTS and _is_web_address(match["url"])
    limit, key = own.pop("limit", None), own.pop("key", None)
    if match is None or not known or own or _BEARING.search(match["url"]) or (limit and not limit.isdecimal()):
        forms = " or ".join(f"{name}+http://HOST:PORT" for name in DIALECTS)
        raise RefusedError(
            "bad_endpoint",
            # All before an @ may be a key, a / in it included: the path of a worker has none.
            f"{redact(re.sub('://.*@', '://', endpoint))} is no endpoint.",
            remedy=f"Write {forms}, with #limit=N or #key=env:NAME behind it for a worker's own limit or key.",
        )
    variable = key.removeprefix("env:") if key and key.startswith("env:") else ""
    if key is not None and not os.environ.get(variable):
        raise RefusedError(
            "bad_endpoint",
            f"The key of {match['dialect']}+{match['url']} is not in the environment.",
            remedy="Export it and write #key=env:NAME.",
        )
    return _Worker(
        match["dialect"],
        match["url"].rstrip("/"),
        int(limit) if limit else None,
        SecretStr(os.environ[variable]) if key else None,
    )


def _is_web_address(url: str) -> bool:
    """Whether it names a host, and no port that there cannot be."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _segmind_worker(url: str, key: SecretStr | None, deadline: float) -> Dialect:
    # A gateway asks for some key always.
    key = key or SecretStr("pool")
    return SegmindProvider(Endpoints.of(url, None), key, api_version="v1", deadline=deadline, tells=False)


def _openai_worker(url: str, key: SecretStr | None, deadline: float) -> Dialect:
    return OpenAIImages(url, key, deadline=deadline)


DIALECTS: Mapping[str, Callable[[str, SecretStr | None, float], Dialect]] = {
    "openai": _openai_worker,
    "segmind": _segmind_worker,
}
"""What a worker may speak, as `DIALECT+URL` names it."""


def make_provider(settings: ProviderSettings, deadline: float) -> SegmindProvider:
    """The API of resolved settings."""
    return SegmindProvider(
        Endpoints.of(settings.base_url, settings.history_url, settings.assets_url),
        settings.api_key,
        api_version=settings.api_version or "v2",
        max_in_flight=settings.max_in_flight or DEFAULT_IN_FLIGHT,
        deadline=deadline,
    )


def store_kind(settings: ProviderSettings, engine: str | None, sandbox_engines: frozenset[str]) -> StoreKind:
    """The kind of store that a backend fills: by the engine that the endpoint names."""
    return "sandbox" if settings.provider == "sandbox" or engine in sandbox_engines else "real"


def account_client(settings: ProviderSettings) -> httpx.AsyncClient:
    """An HTTP client that sends the account's key with every call; for the API's own host only."""
    resolved = resolve_provider(settings, RunOptions())
    client = make_client(max_connections=resolved.max_in_flight or DEFAULT_IN_FLIGHT)
    client.base_url = httpx.URL(resolved.base_url or SEGMIND_URL)
    if resolved.api_key:
        client.headers["x-api-key"] = resolved.api_key.get_secret_value()
    return client
