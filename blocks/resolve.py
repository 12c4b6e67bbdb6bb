"""Resolves what a user writes (`segmind/prod`, `gpu-worker-pool/lab`, `sandbox`, `s3://...`) to plain settings.

A provider that another distribution adds may come with a block too: any block type with a `to_settings` that returns
`ProviderSettings`, registered with Prefect by the distribution's entry point in `prefect.collections`.
"""

import re
from collections.abc import Mapping
from typing import Any

from prefect.blocks.core import Block, UnknownBlockType

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.blocks.gpu_worker_pool import GpuWorkerPool
from prefect_imagegen.blocks.image_store import ImageStore
from prefect_imagegen.blocks.segmind import Segmind
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.providers.settings import ProviderSettings

_STORE = re.compile(r"^image-store/(?P<name>[A-Za-z0-9-]+)$")
_PROVIDER = re.compile(r"^(?P<type>[a-z0-9-]+)/(?P<name>[A-Za-z0-9-]+)$")
_PROVIDER_BLOCKS: Mapping[str, type[Block]] = {"segmind": Segmind, "gpu-worker-pool": GpuWorkerPool}


async def resolve_store(store: str, storage_options: Mapping[str, Any] | None = None) -> StoreSettings:
    """The settings of `image-store/NAME`, or of a URL or path. Raises RefusedError (`block_not_found`)."""
    match = _STORE.match(store)
    if match is None:
        return StoreSettings(store, storage_options or {})
    block = await _load(ImageStore, store, match["name"])
    settings: StoreSettings = block.to_settings()
    return StoreSettings(
        settings.url, {**settings.storage_options, **(storage_options or {})}, settings.public_base_url
    )


async def resolve_provider(backend: str) -> ProviderSettings:
    """The settings of a provider from its block, or from its name.

    Raises RefusedError: `block_not_found`, `block_outdated`, or `bad_block` for one that is no provider's.
    """
    match = _PROVIDER.match(backend)
    if match is None:
        return ProviderSettings(backend)
    block_type = _PROVIDER_BLOCKS.get(match["type"])
    block = await (_load(Block, backend, backend) if block_type is None else _load(block_type, backend, match["name"]))
    settings = block.to_settings() if hasattr(block, "to_settings") else None
    if not isinstance(settings, ProviderSettings):
        raise RefusedError("bad_block", f"{backend} is no block of a provider.", remedy="Give another --backend.")
    return settings


async def _load(block_type: type[Block], reference: str, name: str) -> Any:
    """A block by its name; by TYPE/NAME for a type that is not ours, whose class Prefect knows if it is installed."""
    own = block_type is not Block
    try:
        return await block_type.aload(name)
    except ValueError as error:
        remedy = (
            f"Create it in the UI or with {block_type.__name__}(...).save({name!r}); register the types once"
            " with: prefect block register -m prefect_imagegen.blocks"
            if own
            else "Create it in the UI, or give the name of a provider as --backend."
        )
        raise RefusedError(
            "block_not_found", f"There is no block {reference!r} on this Prefect server.", remedy=remedy
        ) from error
    except RuntimeError as error:
        raise RefusedError(
            "block_outdated",
            f"The block {reference!r} was saved by another version, with other fields.",
            remedy="Save it again.",
        ) from error
    except UnknownBlockType as error:
        raise RefusedError(
            "bad_block",
            f"The type of the block {reference!r} is not installed here.",
            remedy="Install the distribution that adds it, where the run is executed too.",
        ) from error
