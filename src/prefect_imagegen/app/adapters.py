"""From plain settings to the adapters behind the ports."""

import os
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from prefect_imagegen.app.options import GenerateOptions
from prefect_imagegen.app.settings import BackendSettings
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.redact import redact
from prefect_imagegen.io.segmind import SEGMIND_URL, Endpoints, SegmindBackend
from prefect_imagegen.io.store_kind import StoreKind
from prefect_imagegen.net.client import make_client
from prefect_imagegen.ports import RateLimiter

DEFAULT_IN_FLIGHT = 16
SEGMIND_REQUESTS_PER_MINUTE = 50.0
"""Segmind publishes 5 to 1000 a minute, depending on page and plan; 50 is safe for paid ones."""
BACKENDS = ("segmind", "sandbox")


def resolve_backend(settings: BackendSettings, options: GenerateOptions) -> BackendSettings:
    """The settings with options, environment and defaults filled in, in this order.

    Raises RefusedError: `backend_unknown`, `bad_url`.
    """
    if settings.kind not in BACKENDS:
        raise RefusedError(
            "backend_unknown",
            f"There is no backend {settings.kind!r}.",
            remedy=f"Use --backend {' or '.join(BACKENDS)}, or a block such as segmind/NAME.",
        )
    environment = os.environ if settings.kind == "segmind" else {}
    key = settings.api_key or (
        SecretStr(environment["SEGMIND_API_KEY"]) if environment.get("SEGMIND_API_KEY") else None
    )
    base_url = options.base_url or settings.base_url or environment.get("SEGMIND_BASE_URL") or None
    own = {"--base-url": base_url, "the history URL": settings.history_url, "the assets URL": settings.assets_url}
    for name, url in own.items():
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise RefusedError("bad_url", f"{name} {redact(url)} is no http(s) URL.", remedy="Correct it.")
    rate = options.requests_per_minute if options.requests_per_minute is not None else settings.requests_per_minute
    if rate is None and settings.kind == "segmind" and (base_url or SEGMIND_URL).rstrip("/") == SEGMIND_URL:
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


def make_backend(settings: BackendSettings, limiter: RateLimiter, deadline: float) -> SegmindBackend:
    """The backend of resolved settings."""
    return SegmindBackend(
        Endpoints.of(settings.base_url, settings.history_url, settings.assets_url),
        settings.api_key,
        limiter=limiter,
        api_version=settings.api_version or "v2",
        max_in_flight=settings.max_in_flight or DEFAULT_IN_FLIGHT,
        deadline=deadline,
    )


def store_kind(settings: BackendSettings, engine: str | None, sandbox_engines: frozenset[str]) -> StoreKind:
    """The kind of store that a backend fills: by the engine that the endpoint names."""
    return "sandbox" if settings.kind == "sandbox" or engine in sandbox_engines else "real"


def account_client(settings: BackendSettings) -> httpx.AsyncClient:
    """An HTTP client that sends the account's key with every call; for the API's own host only."""
    resolved = resolve_backend(settings, GenerateOptions())
    client = make_client(max_connections=resolved.max_in_flight or DEFAULT_IN_FLIGHT)
    client.base_url = httpx.URL(resolved.base_url or SEGMIND_URL)
    if resolved.api_key:
        client.headers["x-api-key"] = resolved.api_key.get_secret_value()
    return client
