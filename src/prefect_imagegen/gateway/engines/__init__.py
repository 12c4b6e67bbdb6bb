"""What draws inside the gateway; chosen from a dict by name."""

from prefect_imagegen.gateway.engines.base import Drawn, Engine, Picture, UndrawableError
from prefect_imagegen.gateway.engines.diffusers import DiffusersEngine
from prefect_imagegen.gateway.engines.sandbox import SandboxEngine
from prefect_imagegen.gateway.engines.static import StaticEngine

ENGINES: dict[str, type[Engine]] = {"sandbox": SandboxEngine, "static": StaticEngine, "diffusers": DiffusersEngine}

__all__ = [
    "ENGINES",
    "DiffusersEngine",
    "Drawn",
    "Engine",
    "Picture",
    "SandboxEngine",
    "StaticEngine",
    "UndrawableError",
]
