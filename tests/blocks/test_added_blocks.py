"""Blocks that other distributions add for their providers: docs/extend/provider.md, "A block for its key"."""

from typing import Any

import pytest
from prefect import get_client
from prefect.blocks.core import Block
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.utilities.dispatch import get_registry_for_type
from pydantic import SecretStr

from prefect_imagegen.blocks import ImageStore
from prefect_imagegen.blocks.resolve import resolve_provider
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.queue_provider.added import block

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("prefect_server")]


NAMES: dict[str, Any] = {}
exec(block("py"), NAMES)
QueueImagesKey: type[Block] = NAMES["QueueImagesKey"]


async def test_a_block_of_an_added_provider() -> None:
    """TYPE/NAME of any block type that makes provider settings is a backend, with its key."""
    await QueueImagesKey(api_key=SecretStr("Q_1")).save("prod", overwrite=True)
    settings = await resolve_provider("queue-images-key/prod")
    assert settings == ProviderSettings("queue-images", api_key=SecretStr("Q_1"))


async def test_a_block_that_is_no_providers() -> None:
    """A block of a store, or of Prefect itself, is no backend: the refusal names it, not what it holds."""
    await ImageStore(url="memory://planted", storage_options={"secret": "PLANTED"}).save("spring", overwrite=True)
    with pytest.raises(RefusedError, match="image-store/spring is no block of a provider") as refusal:
        await resolve_provider("image-store/spring")
    assert refusal.value.kind == "bad_block"
    assert "PLANTED" not in f"{refusal.value} {refusal.value.remedy}".upper()


async def test_a_block_that_is_not_there() -> None:
    """A name that only looks like a block is refused, whether its type is known or not."""
    for name in ("queue-images-key/nobody", "nothing/nobody"):
        with pytest.raises(RefusedError, match=f"no block '{name}'") as refusal:
            await resolve_provider(name)
        assert refusal.value.kind == "block_not_found"


async def test_a_block_whose_type_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved block whose distribution is missing here says so."""
    await QueueImagesKey(api_key=SecretStr("Q_1")).save("elsewhere", overwrite=True)
    registry = get_registry_for_type(Block)
    assert registry is not None
    for key in [key for key, known in registry.items() if known is QueueImagesKey]:
        monkeypatch.delitem(registry, key)
    with pytest.raises(RefusedError, match="is not installed here") as refusal:
        await resolve_provider("queue-images-key/elsewhere")
    assert refusal.value.kind == "bad_block"


async def test_a_block_of_an_older_version() -> None:
    """A saved block that lacks a field of today's type is refused with what to do, and keeps its secrets."""
    await QueueImagesKey(api_key=SecretStr("Q_1")).save("old", overwrite=True)
    async with get_client() as client:
        document = await client.read_block_document_by_name("old", "queue-images-key")
        other = BlockDocumentUpdate(data={"other": "PLANTED"}, merge_existing_data=False)
        await client.update_block_document(document.id, other)
    with pytest.raises(RefusedError, match="other fields") as refusal:
        await resolve_provider("queue-images-key/old")
    assert refusal.value.kind == "block_outdated"
    assert "PLANTED" not in f"{refusal.value} {refusal.value.remedy}"
