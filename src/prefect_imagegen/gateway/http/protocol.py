"""HTTP/1.1 for the gateway: uvicorn's protocol with a limit for the size of heads and the time of requests."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefect_imagegen.gateway.http.fault_middleware import ENGINE_HEADER
from prefect_imagegen.gateway.limits import Limits

_INCOMPLETE = (h11.IDLE, h11.SEND_BODY)


def protocol_with(limits: Limits, engine: str) -> type[H11Protocol]:
    """The protocol class of one gateway, for uvicorn's setting `http`."""

    class Protocol(GatewayProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.limits, self.engine = limits, engine

    return Protocol


class GatewayProtocol(H11Protocol):
    """One connection with a deadline: uvicorn waits without end for the rest of a head, or after an answer."""

    limits: Limits
    engine: str
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Start the deadline of the first head."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in; the deadline runs from the first bytes of a request until it is complete."""
        super().data_received(data)
        if self.conn.their_state not in _INCOMPLETE:
            self._unwatch()
        elif not self.transport.is_closing():
            self._watch()

    def on_response_complete(self) -> None:
        """Stop the deadline after an answer, unless a part of this or the next request is still to come."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._watch()
        else:
            self._unwatch()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request in the form of our errors: 431 for a head too large, else 400."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # an answer has begun: a second one would be read as part of it
        elif len(self.conn.trailing_data[0]) > self.limits.head_bytes:
            self._end(431, f"the head of the request is too large ({self.limits.describe('head_bytes')})")
        else:
            self._end(400, msg)

    def _watch(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.receive_s, self._on_deadline)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            self._end(408, f"the request did not come in time ({self.limits.describe('receive_s')})")
        elif self.cycle is not None and self.cycle.response_complete:
            self.transport.close()
        else:
            self._watch()  # a body that is being read has its own deadline

    def _end(self, status: int, text: str) -> None:
        headers: Mapping[str, str] = {
            "content-type": "application/json",
            "connection": "close",
            ENGINE_HEADER: self.engine,
        }
        events = (
            h11.Response(status_code=status, headers=list(headers.items())),
            h11.Data(data=json.dumps({"error": text}).encode()),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
