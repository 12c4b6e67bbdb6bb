"""The block `GpuWorkerPool`: your own GPU workers as one backend."""

from typing import TYPE_CHECKING, ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field

from prefect_imagegen.app.config.option_table import OPTIONS
from prefect_imagegen.blocks.fields import OptionalKey, block_option
from prefect_imagegen.core.request.profiles import DEFAULT_PROFILE

if TYPE_CHECKING:  # the app loads only when a block is used, never when Prefect lists block types
    from prefect_imagegen.providers.settings import ProviderSettings

_REPOSITORY = "https://github.com/prefect-imagegen/prefect-imagegen"


class GpuWorkerPool(Block):
    """GPU workers of your own that draw the images: vLLM-Omni, SGLang, or `prefect-imagegen serve`.

    Example:
        Load a stored block and use it as the backend of a run:

        ```python
        from prefect_imagegen.blocks import GpuWorkerPool

        pool = GpuWorkerPool.load("BLOCK_NAME")
        ```
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # it may hold secrets

    _block_type_name: ClassVar[str | None] = "GPU Worker Pool"
    _block_type_slug: ClassVar[str | None] = "gpu-worker-pool"
    _logo_url: ClassVar[str | None] = f"{_REPOSITORY}/raw/main/docs/logo.png"  # type: ignore[assignment]
    _documentation_url: ClassVar[str | None] = f"{_REPOSITORY}#readme"  # type: ignore[assignment]

    endpoints: list[str] = Field(title=OPTIONS["endpoints"].option.title, description=OPTIONS["endpoints"].option.help)
    api_key: OptionalKey = Field(
        default=None,
        title="API key",
        description="Sent to every worker; without one, PREFECT_IMAGEGEN_POOL_API_KEY of the Prefect worker is used.",
    )
    endpoint_limit: int | None = block_option("endpoint_limit")
    profile: Literal["klein-distilled", "klein-base"] = block_option("profile", default=DEFAULT_PROFILE)
    model: str | None = block_option("model")
    weights: str | None = block_option("weights")
    weights_license: str | None = block_option("weights_license")

    def to_settings(self) -> "ProviderSettings":
        """The block as plain settings of the app."""
        from prefect_imagegen.providers.settings import ProviderSettings  # noqa: PLC0415 - see TYPE_CHECKING above

        return ProviderSettings(
            provider="pool",
            endpoints=tuple(self.endpoints),
            api_key=self.api_key,
            endpoint_limit=self.endpoint_limit,
            profile=self.profile,
            model=self.model,
            weights=self.weights,
            weights_license=self.weights_license,
        )
