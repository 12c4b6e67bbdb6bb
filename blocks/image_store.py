"""The block `ImageStore`: a place in object storage that holds images, their ledger and their metadata."""

from collections.abc import Awaitable
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, ClassVar

from prefect import get_client
from prefect.blocks.core import Block
from prefect.blocks.fields import SecretDict
from prefect.client.schemas.actions import BlockDocumentUpdate
from pydantic import ConfigDict, Field

if TYPE_CHECKING:  # the app loads only when a block is used, never when Prefect lists block types
    from prefect_imagegen.app.config.settings import StoreSettings

_REPOSITORY = "https://github.com/prefect-imagegen/prefect-imagegen"


class ImageStore(Block):
    """A place in object storage that holds images, their ledger and their metadata.

    Example:
        Load a stored block and use it as the store of a run:

        ```python
        from prefect_imagegen.blocks import ImageStore

        store = ImageStore.load("BLOCK_NAME")
        ```
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # it may hold secrets

    _block_type_name: ClassVar[str | None] = "Image Store"
    _block_type_slug: ClassVar[str | None] = "image-store"
    _logo_url: ClassVar[str | None] = f"{_REPOSITORY}/raw/main/docs/logo.png"  # type: ignore[assignment]
    _documentation_url: ClassVar[str | None] = f"{_REPOSITORY}#readme"  # type: ignore[assignment]

    url: str = Field(
        title="URL", description="Root of the store: s3://bucket/prefix, any other fsspec URL, or a local path."
    )
    storage_options: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        title="Storage options",
        description="Options of the fsspec file system, such as key, secret and endpoint_url, as a JSON object; leave"
        " it blank for none. Once saved, each value shows as ********, which keeps what is saved.",
    )
    public_base_url: str | None = Field(
        default=None,
        title="Public base URL",
        description="Address under which the store's root can be read publicly, if there is one.",
    )

    async def asave(self, name: str | None = None, overwrite: bool = False, client: Any = None) -> Any:
        """Save the block; returns its document's id."""
        return await self._saved_in_loop(super().asave(name, overwrite=overwrite, client=client))

    def save(self, name: str | None = None, overwrite: bool = False, client: Any = None) -> Any:
        """Save the block; returns its document's id (in a running event loop an awaitable of it, as any block does)."""
        saved = super().save(name, overwrite=overwrite, client=client)
        if isawaitable(saved):
            return self._saved_in_loop(saved)
        if self._has_no_options():
            with get_client(sync_client=True) as api:
                api.update_block_document(saved, self._document_without_options())
        return saved

    async def _saved_in_loop(self, saving: Awaitable[Any]) -> Any:
        document_id = await saving
        if self._has_no_options():
            async with get_client() as api:
                await api.update_block_document(document_id, self._document_without_options())
        return document_id

    def _has_no_options(self) -> bool:
        return not self.storage_options.get_secret_value()

    def _document_without_options(self) -> BlockDocumentUpdate:
        """The update that saves the block again without the field for options.

        Prefect's server masks an empty object as the text `********`; the first UI asks for JSON there, and could not
        save the block again.
        """
        fields = type(self).model_fields
        data = {name: getattr(self, name) for name in fields if name != "storage_options"}
        return BlockDocumentUpdate(data=data, merge_existing_data=False)

    def to_settings(self) -> "StoreSettings":
        """The block as plain settings of the app."""
        from prefect_imagegen.app.config.settings import StoreSettings  # noqa: PLC0415 - see TYPE_CHECKING above

        return StoreSettings(self.url, self.storage_options.get_secret_value(), self.public_base_url)
