"""The entries of the Segmind API, and of the sandbox: a gateway of ours that speaks it and draws placeholders."""

import os
from dataclasses import replace

import httpx

from prefect_imagegen.net.client import make_client
from prefect_imagegen.providers.entry import DEFAULT_IN_FLIGHT, ProviderEntry
from prefect_imagegen.providers.segmind.provider import ABILITIES, SEGMIND_URL, Endpoints, SegmindProvider
from prefect_imagegen.providers.settings import ProviderSettings

REQUESTS_PER_MINUTE = 50.0
"""The default rate at Segmind, which publishes 5 to 1000 a minute, depending on page and plan; 50 suits paid plans."""


def _open(settings: ProviderSettings, deadline: float) -> SegmindProvider:
    return SegmindProvider(
        Endpoints.of(settings.base_url, settings.history_url, settings.assets_url),
        settings.api_key,
        api_version=settings.api_version or "v2",
        max_in_flight=settings.max_in_flight or DEFAULT_IN_FLIGHT,
        deadline=deadline,
    )


SEGMIND = ProviderEntry(
    name="segmind",
    abilities=ABILITIES,
    open=_open,
    default_url=SEGMIND_URL,
    default_rate=REQUESTS_PER_MINUTE,
    variables={
        "api_key": "SEGMIND_API_KEY",
        "base_url": "SEGMIND_BASE_URL",
        "history_url": "SEGMIND_HISTORY_URL",
        "assets_url": "SEGMIND_ASSETS_URL",
    },
    key_remedy="Set SEGMIND_API_KEY, or use a Segmind block.",
    may_be_gateway=True,
)


SANDBOX = replace(
    SEGMIND,
    name="sandbox",
    default_url=None,
    default_rate=None,
    variables={},
    needs_key=False,
    key_remedy="Use a Segmind block with the gateway's key.",
    embeds_gateway=True,
    draws_placeholders=True,
)


def account_client(settings: ProviderSettings) -> httpx.AsyncClient:
    """An HTTP client that sends the account's key with every call; use it for the API's own host only."""
    resolved = SEGMIND.resolve(settings, os.environ)
    client = make_client(max_connections=resolved.max_in_flight or DEFAULT_IN_FLIGHT)
    client.base_url = httpx.URL(SEGMIND.url(resolved))
    if resolved.api_key:
        client.headers["x-api-key"] = resolved.api_key.get_secret_value()
    return client
