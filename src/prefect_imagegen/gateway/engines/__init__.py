"""What draws inside the gateway; chosen from a dict by name."""

from prefect_imagegen.gateway.engines.base import Drawn, Engine, Picture
from prefect_imagegen.gateway.engines.sandbox import SandboxEngine
from prefect_imagegen.gateway.engines.static import StaticEngine

ENGINES: dict[str, type[Engine]] = {"sandbox": SandboxEngine, "static": StaticEngine}

__all__ = ["ENGINES", "Drawn", "Engine", "Picture", "SandboxEngine", "StaticEngine"]
