"""The outermost layer: every answer names the engine, and faults of the wire itself happen here."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENGINE_HEADER = "x-imagegen-engine"
_TRANSPORT = "imagegen.transport"


class FaultMiddleware:
    """Wraps the app: adds the engine's header to every answer, and hands the connection to the faults."""

    def __init__(self, app: ASGIApp, engine: str) -> None:
        self._app = app
        self._header = (ENGINE_HEADER.encode(), engine.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # uvicorn's `send` is a method of its request cycle, which holds the connection: the one way to drop it.
        scope[_TRANSPORT] = getattr(getattr(send, "__self__", None), "transport", None)

        async def send_with_engine(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), self._header]
            await send(message)

        await self._app(scope, receive, send_with_engine)


class DroppedConnection(Response):
    """No answer at all: the connection is cut."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the ASGI signature
        """Cut it, and wait for the server to notice."""
        transport: asyncio.Transport | None = scope.get(_TRANSPORT)
        if transport is not None:
            transport.abort()
        await receive()


class TruncatedResponse(Response):
    """A head that announces more bytes than come before the end of the connection."""

    def __init__(self, data: bytes, media_type: str, headers: Mapping[str, str], announced: int) -> None:
        super().__init__(data, media_type=media_type, headers={**headers, "content-length": str(announced)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what there is, then cut."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        transport: asyncio.Transport | None = scope.get(_TRANSPORT)
        if transport is not None:
            transport.close()
        await receive()


class Slow(Response):
    """The whole body, in ten pieces over so many seconds."""

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
