"""Open an existing store, or a provider's account, for maintenance commands."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prefect_imagegen.app.config.resolve import open_provider
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError, StoreError
from prefect_imagegen.ports import Provider
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings
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


async def is_without_account(store: FsspecObjectStore, resolved: ProviderSettings) -> bool:
    """Whether no API keeps the calls of a store: the embedded sandbox filled it, and ended with each run."""
    is_paid = entry_of(resolved.provider).abilities.claims
    return is_paid and resolved.base_url is None and await kind_of(store) == "sandbox"


async def kind_of(store: FsspecObjectStore) -> str | None:
    """The kind of a store, `sandbox` or `real`, as its own file says."""
    about: dict[str, Any] = json.loads(await store.get(layout.STORE_FILE) or b"{}")
    return about.get("kind")


@asynccontextmanager
async def paid_provider(resolved: ProviderSettings, deadline: float) -> AsyncIterator[Provider]:
    """Open a provider whose calls are paid, for reading, as a context. Raises RefusedError: `no_account`, `no_key`."""
    entry = entry_of(resolved.provider)
    if not entry.abilities.claims:
        raise RefusedError("no_account", "GPU workers keep no request history.", remedy="Name the API's --backend.")
    if resolved.api_key is None:
        raise RefusedError("no_key", "There is no API key.", remedy=entry.key_remedy)
    provider = open_provider(resolved, deadline)
    try:
        yield provider
    finally:
        await provider.aclose()
