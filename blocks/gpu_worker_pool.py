"""The block `GpuWorkerPool`: your own GPU workers as one backend."""

from typing import TYPE_CHECKING, ClassVar, Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field

from prefect_imagegen.blocks.fields import OptionalKey

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

    endpoints: list[str] = Field(
        title="Endpoints",
        description="One for each worker: openai+http://HOST:PORT (vLLM-Omni, SGLang) or segmind+http://HOST:PORT"
        " (prefect-imagegen serve).",
    )
    api_key: OptionalKey = Field(
        default=None,
        title="API key",
        description="Sent to every worker; without one, PREFECT_IMAGEGEN_POOL_API_KEY of the Prefect worker is used.",
    )
    endpoint_limit: int | None = Field(
        default=None,
        ge=1,
        title="Endpoint limit",
        description="Calls at once for each worker; empty means one batch and one more where it tells, else 2.",
    )
    profile: Literal["klein-distilled", "klein-base"] = Field(
        default="klein-distilled",
        title="Profile",
        description="Distilled: 4 steps, no guidance, no negative prompt. Base: steps and guidance as asked.",
    )
    model: str | None = Field(
        default=None, title="Model", description="Slug of the model for manifest rows that name none."
    )
    weights: str | None = Field(
        default=None, title="Weights", description="Label of the weights; part of the request key."
    )
    weights_license: str | None = Field(
        default=None,
        title="Licence of the weights",
        description="Recorded with every image; empty means what is published for the model.",
    )

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
