"""Turn a table of prompts and reference images into images and metadata in object storage."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_imagegen.app.api import agenerate, aplan, generate, plan
    from prefect_imagegen.app.config.options import RunOptions
    from prefect_imagegen.app.config.settings import StoreSettings
    from prefect_imagegen.app.planning.prepare import RowsRefusedError
    from prefect_imagegen.app.running.result import RunResult
    from prefect_imagegen.blocks import GpuWorkerPool, ImageStore, Segmind
    from prefect_imagegen.core.errors import ImagegenError, ProviderError, RefusedError, StoreError
    from prefect_imagegen.core.plan import PlanSummary
    from prefect_imagegen.providers.settings import ProviderSettings

    __version__: str

__all__ = [
    "GpuWorkerPool",
    "ImageStore",
    "ImagegenError",
    "PlanSummary",
    "ProviderError",
    "ProviderSettings",
    "RefusedError",
    "RowsRefusedError",
    "RunOptions",
    "RunResult",
    "Segmind",
    "StoreError",
    "StoreSettings",
    "__version__",
    "agenerate",
    "aplan",
    "generate",
    "plan",
]

_NAMES_OF_MODULES = {
    "prefect_imagegen.app.api": ("agenerate", "aplan", "generate", "plan"),
    "prefect_imagegen.app.config.options": ("RunOptions",),
    "prefect_imagegen.app.config.settings": ("StoreSettings",),
    "prefect_imagegen.app.planning.prepare": ("RowsRefusedError",),
    "prefect_imagegen.app.running.result": ("RunResult",),
    "prefect_imagegen.blocks": ("GpuWorkerPool", "ImageStore", "Segmind"),  # the only one that loads Prefect
    "prefect_imagegen.core.errors": ("ImagegenError", "ProviderError", "RefusedError", "StoreError"),
    "prefect_imagegen.core.plan": ("PlanSummary",),
    "prefect_imagegen.providers.settings": ("ProviderSettings",),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name on first use: Prefect imports this package at every start, for its blocks alone."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - takes longer to load than all the rest here

        value: Any = version("prefect-imagegen")
    elif name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, those not yet loaded included."""
    return sorted({*globals(), *__all__})
