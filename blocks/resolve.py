"""Resolves what a user writes (`segmind/prod`, `gpu-worker-pool/lab`, `sandbox`, `s3://...`) to plain settings."""

import re
from collections.abc import Mapping
from typing import Any

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.blocks.gpu_worker_pool import GpuWorkerPool
from prefect_imagegen.blocks.image_store import ImageStore
from prefect_imagegen.blocks.segmind import Segmind
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.providers.settings import ProviderSettings

_REFERENCE = re.compile(r"^(?P<type>segmind|gpu-worker-pool|image-store)/(?P<name>[A-Za-z0-9-]+)$")

_PROVIDER_BLOCKS: Mapping[str, Any] = {"segmind": Segmind, "gpu-worker-pool": GpuWorkerPool}


async def resolve_store(store: str, storage_options: Mapping[str, Any] | None = None) -> StoreSettings:
    """The settings of `image-store/NAME`, or of a URL or path. Raises RefusedError (`block_not_found`)."""
    match = _REFERENCE.match(store)
    if match is None or match["type"] != "image-store":
        return StoreSettings(store, storage_options or {})
    block = await _load(ImageStore, store, match["name"])
    settings: StoreSettings = block.to_settings()
    return StoreSettings(
        settings.url, {**settings.storage_options, **(storage_options or {})}, settings.public_base_url
    )


async def resolve_provider(backend: str) -> ProviderSettings:
    """The settings of a provider from its block, or from its name. Raises RefusedError (`block_not_found`)."""
    match = _REFERENCE.match(backend)
    if match is None or match["type"] not in _PROVIDER_BLOCKS:
        return ProviderSettings(backend)
    settings: ProviderSettings = (await _load(_PROVIDER_BLOCKS[match["type"]], backend, match["name"])).to_settings()
    return settings


def is_block(text: str) -> bool:
    """Whether the text names a block, so that resolving it asks the Prefect API."""
    return _REFERENCE.match(text) is not None


async def _load(block_type: Any, reference: str, name: str) -> Any:
    try:
        return await block_type.aload(name)
    except ValueError as error:
        raise RefusedError(
            "block_not_found",
            f"There is no block {reference!r} on this Prefect server.",
            remedy=f"Create it in the UI or with {block_type.__name__}(...).save({name!r}); register the types once"
            " with: prefect block register -m prefect_imagegen.blocks",
        ) from error
