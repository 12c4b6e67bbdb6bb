"""Open an existing store, or a provider's account, for maintenance commands."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import make_provider, resolve_provider
from prefect_imagegen.app.config.settings import ProviderSettings, StoreSettings
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError, StoreError
from prefect_imagegen.providers.segmind.provider import SegmindProvider
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store


@asynccontextmanager
async def existing_store(settings: StoreSettings) -> AsyncIterator[FsspecObjectStore]:
    """Open a store that has been used before, as a context.

    Raises RefusedError, also in place of a StoreError that is raised within.
    """
    store = open_object_store(settings.url, settings.storage_options)
    try:
        if await store.get(layout.STORE_FILE) is None:
            raise RefusedError(
                "store_not_found",
                f"{store.url} is no image store yet.",
                remedy="Check --store; the first `generate` makes one.",
            )
        yield store
    except StoreError as error:
        raise RefusedError(error.kind, error.message, remedy=error.remedy) from error
    finally:
        store.close()


async def is_without_account(store: FsspecObjectStore, settings: ProviderSettings, options: RunOptions) -> bool:
    """Whether no API keeps the calls of a store: the embedded sandbox filled it, and ended with each run."""
    about = json.loads(await store.get(layout.STORE_FILE) or b"{}")
    resolved = resolve_provider(settings, options)
    return about.get("kind") == "sandbox" and resolved.provider != "pool" and resolved.base_url is None


@asynccontextmanager
async def account(settings: ProviderSettings, options: RunOptions) -> AsyncIterator[SegmindProvider]:
    """Open the provider's account for reading, as a context. Raises RefusedError: `no_account`, `no_key`."""
    resolved = resolve_provider(settings, options)
    if resolved.provider == "pool":
        raise RefusedError("no_account", "GPU workers keep no request history.", remedy="Name the API's --backend.")
    if resolved.api_key is None:
        raise RefusedError("no_key", "There is no API key.", remedy="Set SEGMIND_API_KEY, or use a Segmind block.")
    provider = make_provider(resolved, options.deadline)
    try:
        yield provider
    finally:
        await provider.aclose()
