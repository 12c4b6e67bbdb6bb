"""The block `Segmind`: an account of the API, or a gateway that speaks it."""

from typing import TYPE_CHECKING, ClassVar, Literal

from prefect.blocks.abstract import CredentialsBlock
from pydantic import ConfigDict, Field

from prefect_imagegen.blocks.fields import OptionalKey, block_option

if TYPE_CHECKING:  # httpx and the app load only when a block is used, never when Prefect lists block types
    import httpx

    from prefect_imagegen.providers.settings import ProviderSettings

_REPOSITORY = "https://github.com/prefect-imagegen/prefect-imagegen"


class Segmind(CredentialsBlock):
    """An account of the Segmind API, or a self-hosted gateway that speaks it.

    Example:
        Load a stored block and use it as the backend of a run:

        ```python
        from prefect_imagegen.blocks import Segmind

        segmind = Segmind.load("BLOCK_NAME")
        ```
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # it may hold secrets

    _block_type_name: ClassVar[str | None] = "Segmind"
    _block_type_slug: ClassVar[str | None] = "segmind"
    _logo_url: ClassVar[str | None] = f"{_REPOSITORY}/raw/main/docs/logo.png"  # type: ignore[assignment]
    _documentation_url: ClassVar[str | None] = f"{_REPOSITORY}#readme"  # type: ignore[assignment]

    api_key: OptionalKey = Field(
        default=None,
        title="API key",
        description="Key of the account; without one, SEGMIND_API_KEY of the worker is used.",
    )
    base_url: str | None = Field(
        default=None, title="Base URL", description="Base URL of the API or gateway; empty means Segmind's own."
    )
    history_url: str | None = Field(
        default=None,
        title="History URL",
        description="Base URL of the request history; empty means Segmind's own, or that of a gateway.",
    )
    assets_url: str | None = Field(
        default=None,
        title="Assets URL",
        description="Base URL for uploading reference images; empty means Segmind's own, or that of a gateway.",
    )
    api_version: Literal["v2", "v1"] = block_option("api_version", default="v2")
    model: str | None = block_option("model")
    requests_per_minute: float | None = block_option("requests_per_minute")
    max_in_flight: int | None = block_option("max_in_flight")

    def get_client(self) -> "httpx.AsyncClient":
        """An async HTTP client that sends the key, for your own calls to the API's host."""
        from prefect_imagegen.providers.segmind.entry import account_client  # noqa: PLC0415 - see TYPE_CHECKING above

        return account_client(self.to_settings())

    def to_settings(self) -> "ProviderSettings":
        """The block as plain settings of the app."""
        from prefect_imagegen.providers.settings import ProviderSettings  # noqa: PLC0415 - see TYPE_CHECKING above

        return ProviderSettings(
            provider="segmind",
            base_url=self.base_url,
            history_url=self.history_url,
            assets_url=self.assets_url,
            api_key=self.api_key,
            api_version=self.api_version,
            model=self.model,
            requests_per_minute=self.requests_per_minute,
            max_in_flight=self.max_in_flight,
        )
