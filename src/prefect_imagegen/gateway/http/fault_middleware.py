"""The outermost ASGI layer: adds the engine's header to every answer, and gives faults access to the connection."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENGINE_HEADER = "x-imagegen-engine"
_TRANSPORT = "imagegen.transport"


class FaultMiddleware:
    """Adds the engine's header to every answer, and puts the connection's transport into the scope."""

    def __init__(self, app: ASGIApp, engine: str) -> None:
        self._app = app
        self._header = (ENGINE_HEADER.encode(), engine.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # uvicorn's `send` is a method of its request cycle, which has the transport: the only way to reach it.
        scope[_TRANSPORT] = getattr(getattr(send, "__self__", None), "transport", None)

        async def send_with_engine(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), self._header]
            await send(message)

        await self._app(scope, receive, send_with_engine)


class DroppedConnection(Response):
    """No answer: the connection is aborted."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the ASGI signature
        """Abort the connection, and wait for the server to notice."""
        transport: asyncio.Transport | None = scope.get(_TRANSPORT)
        if transport is not None:
            transport.abort()
        await receive()


class TruncatedResponse(Response):
    """An answer whose content-length announces more bytes than are sent before the connection closes."""

    def __init__(self, data: bytes, media_type: str, headers: Mapping[str, str], announced: int) -> None:
        super().__init__(data, media_type=media_type, headers={**headers, "content-length": str(announced)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the bytes, then close the connection."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        transport: asyncio.Transport | None = scope.get(_TRANSPORT)
        if transport is not None:
            transport.close()
        await receive()


class SlowResponse(Response):
    """An answer whose body is sent in ten pieces over `seconds`."""

    def __init__(self, data: bytes, media_type: str, headers: Mapping[str, str], seconds: float) -> None:
        super().__init__(data, media_type=media_type, headers=headers)
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the ASGI signature
        """Send the pieces."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        data: Any = bytes(self.body)
        step = len(data) // 10 + 1
        for start in range(0, len(data), step):
            await asyncio.sleep(self._seconds / 10)
            await send({"type": "http.response.body", "body": data[start : start + step], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
