"""An existing store, and the account behind a backend, opened for commands that look after them."""

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
    """Within: a store that was written before. Raises RefusedError; trouble with the store within becomes one too."""
    store = open_object_store(settings.url, settings.storage_options)
    try:
        if await store.get(layout.STORE_FILE) is None:
            raise RefusedError("store_not_found", f"{store.url} is no image store yet.", remedy="Check --store.")
        yield store
    except StoreError as error:
        raise RefusedError(error.kind, error.message, remedy=error.remedy) from error
    finally:
        store.close()


@asynccontextmanager
async def account(settings: ProviderSettings, options: RunOptions) -> AsyncIterator[SegmindProvider]:
    """Within: the backend, to read with; nothing is submitted. Raises RefusedError (`no_key`)."""
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
