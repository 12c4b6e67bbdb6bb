"""What a run says of the Prefect server when that is away: once that it began, once that it has ended."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

import httpx
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler

from prefect_imagegen.core.policy.outages import Outage, since_text
from prefect_imagegen.core.redact import redact

_OWN = "prefect_imagegen"
_LIBRARY = {
    "prefect.events.clients": ("Unable to connect to",),
    "prefect._internal.concurrency": ("Service %r failed to process item",),
    "EventsWorker": ("Still processing items",),
    "APILogWorker": ("Still processing items",),
}
"""What Prefect says again and again while its server is away: loggers, and how their messages begin."""
_EVENT_LOST = "Service %r failed to process item"
_GONE = (502, 503, 504)
_MEANWHILE = (
    "The run goes on: images are made, paid for and stored, and the store gets the report. Until the server is back the"
    " UI shows no progress, and cancelling and waiting for slots do not work."
)
_logger = logging.getLogger(__name__)


class ServerOutage:
    """Whether the Prefect server can be reached, for one flow run; told in the run's log."""

    def __init__(self) -> None:
        self._outage = Outage()
        self._said: set[str] = set()
        self._let_through: set[tuple[str, str]] = set()
        self.events_lost = 0
        """Events, states of task runs among them, that Prefect could not send during this outage."""

    def failed(self, what: str, error: BaseException) -> None:
        """A call failed: an outage is said once, and so is any other trouble, by what it was about."""
        why = redact(f"{type(error).__name__}: {error}".rstrip(": "))
        if not is_outage(error):
            if what not in self._said:
                self._said.add(what)
                _run_logger().warning("%s: %s (said once)", what, why)
            return
        lasted = self._outage.failed(time.monotonic())
        if lasted is not None:
            since = since_text(lasted, datetime.now(UTC))
            _run_logger().warning("The Prefect server cannot be reached %s (%s). %s", since, why, _MEANWHILE)

    def worked(self) -> None:
        """A call was answered."""
        if not self._outage.is_on:
            return
        seconds = self._outage.worked(time.monotonic())
        if seconds is not None:
            text = "The Prefect server is back, after %.0f s. No image and no cost was lost. %s"
            _run_logger().warning(text, seconds, self._lost_in_the_ui())
        self._let_through.clear()
        self.events_lost = 0

    def end(self) -> None:
        """The run is over: say what it has not said yet."""
        if self._outage.is_on:
            _run_logger().warning("The Prefect server is still away. The store has all of the run, and its report.")
        elif self.events_lost:
            _run_logger().warning(self._lost_in_the_ui())

    def _lost_in_the_ui(self) -> str:
        count = f"{self.events_lost} of Prefect's own events, such as states of task runs, could not be sent: "
        return (count if self.events_lost else "") + "logs and states of that time may be missing in the UI."

    def lets_through(self, record: logging.LogRecord) -> bool:
        """Whether a message of Prefect's own is to be seen: of those that an outage repeats, the first of each kind."""
        text = str(record.msg)
        start = next((one for one in _LIBRARY.get(record.name, ()) if text.startswith(one)), None)
        if start is None:
            return True
        self.events_lost += start == _EVENT_LOST
        seen = (record.name, start)
        is_first = seen not in self._let_through
        self._let_through.add(seen)
        return is_first


_present: ContextVar[ServerOutage | None] = ContextVar("server_outage", default=None)


def server() -> ServerOutage:
    """What the present flow run knows of the server."""
    outage = _present.get()
    if outage is None:
        outage = ServerOutage()
        _present.set(outage)
    return outage


@contextmanager
def telling_once() -> Iterator[None]:
    """Within: outages are told once in the run's log, those that our own parts tell of included."""
    outage = ServerOutage()
    token = _present.set(outage)
    own, handler = logging.getLogger(_OWN), _RunLog()
    loggers = [logging.getLogger(name) for name in _LIBRARY]
    is_heard = any(isinstance(one, APILogHandler) for one in own.handlers)
    for logger in loggers:
        logger.addFilter(outage.lets_through)
    if not is_heard:
        own.addHandler(handler)
    try:
        yield
        outage.end()
    finally:
        own.removeHandler(handler)
        for logger in loggers:
            logger.removeFilter(outage.lets_through)
        _present.reset(token)


def is_outage(error: BaseException) -> bool:
    """Whether an error of a call to the Prefect server means that it is away."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _GONE
    if isinstance(error, httpx.TransportError | OSError):  # a TimeoutError is one too
        return True
    # Prefect says "Failed to reach API" with an error of its own where it opens a client.
    return error.__cause__ is not None and is_outage(error.__cause__)


class _RunLog(APILogHandler):
    """Hands what our own parts say to the log of the flow run in which it comes up."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, if it belongs to a run."""
        if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
            super().emit(record)


def _run_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    try:
        return get_run_logger()
    except MissingContextError:
        return _logger
