"""Turn a table of prompts and reference images into images and metadata in object storage."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_imagegen.app.api import agenerate, generate
    from prefect_imagegen.app.running.result import RunResult

__version__ = version("prefect-imagegen")
__all__ = ["RunResult", "__version__", "agenerate", "generate"]


def __getattr__(name: str) -> Any:
    """Load the public names on first use: Prefect imports this package at every start, for its blocks alone."""
    if name in ("agenerate", "generate"):
        from prefect_imagegen.app import api  # noqa: PLC0415 - the point of this function

        return getattr(api, name)
    if name == "RunResult":
        from prefect_imagegen.app.running.result import RunResult  # noqa: PLC0415 - the same

        return RunResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
