"""The block `ImageStore`: a place in object storage that holds images, their ledger and their metadata."""

from typing import TYPE_CHECKING, ClassVar

from prefect.blocks.core import Block
from prefect.blocks.fields import SecretDict
from pydantic import Field

if TYPE_CHECKING:  # the app loads only when a block is used, never when Prefect lists block types
    from prefect_imagegen.app.settings import StoreSettings

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
        description="Options of the fsspec file system, such as key, secret and endpoint_url.",
    )
    public_base_url: str | None = Field(
        default=None,
        title="Public base URL",
        description="Address under which the store's root can be read publicly, if there is one.",
    )

    def to_settings(self) -> "StoreSettings":
        """The plain settings that the app works with."""
        from prefect_imagegen.app.settings import StoreSettings  # noqa: PLC0415 - see TYPE_CHECKING above

        return StoreSettings(self.url, self.storage_options.get_secret_value(), self.public_base_url)
