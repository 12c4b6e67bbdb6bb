"""What a run asks of its endpoint, in order: a gateway that writes down every request before it answers it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from prefect_imagegen.gateway import server
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings


@contextmanager
def recording_gateway(log: list[str], settings: GatewaySettings | None = None) -> Iterator[EmbeddedGateway]:
    """Within: a gateway that adds `METHOD /path` of every request to a log."""
    create_app = server.create_app

    def recording(*arguments: object) -> ASGIApp:
        app = create_app(*arguments)

        async def record(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                log.append(f"{scope['method']} {scope['path']}")
            await app(scope, receive, send)

        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "create_app", recording)
        gateway = EmbeddedGateway(settings)
        gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()
