"""The engines that make images inside the gateway, by name."""

from prefect_imagegen.gateway.engines.base import Engine, ImageJob, ImageOutput, UndrawableError
from prefect_imagegen.gateway.engines.diffusers import DiffusersEngine
from prefect_imagegen.gateway.engines.sandbox import SandboxEngine
from prefect_imagegen.gateway.engines.static import StaticEngine

ENGINES: dict[str, type[Engine]] = {"sandbox": SandboxEngine, "static": StaticEngine, "diffusers": DiffusersEngine}

__all__ = [
    "ENGINES",
    "DiffusersEngine",
    "Engine",
    "ImageJob",
    "ImageOutput",
    "SandboxEngine",
    "StaticEngine",
    "UndrawableError",
]
