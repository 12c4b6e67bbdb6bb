"""Logging of outages of the Prefect server in a run's log: once when one begins, once when it has ended."""

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
"""Messages that Prefect repeats while its server is away: loggers, and how their messages begin."""
_EVENT_LOST = "Service %r failed to process item"
_AWAY = (502, 503, 504)
_MEANWHILE = (
    "The run goes on: images are made, paid for and stored, and the store gets the report. Until the server is back the"
    " UI shows no progress, and cancelling and waiting for slots do not work."
)
_logger = logging.getLogger(__name__)


class ServerOutage:
    """Whether the Prefect server can be reached, for one flow run; logs when that changes."""

    def __init__(self) -> None:
        self._outage = Outage()
        self._logged: set[str] = set()
        self._repeated: set[tuple[str, str]] = set()
        self.events_lost = 0
        """Events that Prefect could not send during this outage (states of task runs among them)."""

    def failed(self, trouble: str, error: BaseException) -> None:
        """Note a failed call: an outage is logged once, any other error once for each `trouble`."""
        why = redact(f"{type(error).__name__}: {error}".rstrip(": "))
        if not is_outage(error):
            if trouble not in self._logged:
                self._logged.add(trouble)
                _run_logger().warning("%s: %s (said once)", trouble, why)
            return
        lasted = self._outage.failed(time.monotonic())
        if lasted is not None:
            since = since_text(lasted, datetime.now(UTC))
            _run_logger().warning("The Prefect server cannot be reached %s (%s). %s", since, why, _MEANWHILE)

    def worked(self) -> None:
        """Note an answered call; the end of an outage is logged."""
        if not self._outage.is_on:
            return
        seconds = self._outage.worked(time.monotonic())
        if seconds is not None:
            text = "The Prefect server is back, after %.0f s. No image and no cost was lost. %s"
            _run_logger().warning(text, seconds, self._lost_in_the_ui())
        self._repeated.clear()
        self.events_lost = 0

    def end(self) -> None:
        """Log, at the end of the run, an outage that goes on, and lost events."""
        if self._outage.is_on:
            _run_logger().warning("The Prefect server is still away. The store has all of the run, and its report.")
        elif self.events_lost:
            _run_logger().warning(self._lost_in_the_ui())

    def _lost_in_the_ui(self) -> str:
        count = f"{self.events_lost} of Prefect's own events, such as states of task runs, could not be sent: "
        return (count if self.events_lost else "") + "logs and states of that time may be missing in the UI."

    def is_news(self, record: logging.LogRecord) -> bool:
        """Whether to show a log record of Prefect: of messages that an outage repeats, only the first of each kind."""
        text = str(record.msg)
        start = next((prefix for prefix in _LIBRARY.get(record.name, ()) if text.startswith(prefix)), None)
        if start is None:
            return True
        self.events_lost += start == _EVENT_LOST
        kind = (record.name, start)
        is_first = kind not in self._repeated
        self._repeated.add(kind)
        return is_first


_current: ContextVar[ServerOutage | None] = ContextVar("server_outage", default=None)


def server() -> ServerOutage:
    """The outage state of the current flow run."""
    outage = _current.get()
    if outage is None:
        outage = ServerOutage()
        _current.set(outage)
    return outage


@contextmanager
def reporting_outages() -> Iterator[None]:
    """Log outages once in the run's log inside the `with` block, and send our own package's log there too."""
    outage = ServerOutage()
    token = _current.set(outage)
    own, handler = logging.getLogger(_OWN), _RunLog()
    loggers = [logging.getLogger(name) for name in _LIBRARY]
    is_handled = any(isinstance(present, APILogHandler) for present in own.handlers)
    for logger in loggers:
        logger.addFilter(outage.is_news)
    if not is_handled:
        own.addHandler(handler)
    try:
        yield
        outage.end()
    finally:
        own.removeHandler(handler)
        for logger in loggers:
            logger.removeFilter(outage.is_news)
        _current.reset(token)


def is_outage(error: BaseException) -> bool:
    """Whether an error of a call to the Prefect server means that it cannot be reached."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _AWAY
    if isinstance(error, httpx.TransportError | OSError):  # a TimeoutError is one too
        return True
    # Prefect says "Failed to reach API" with an error of its own where it opens a client.
    return error.__cause__ is not None and is_outage(error.__cause__)


class _RunLog(APILogHandler):
    """Sends our own package's log records to the log of the current flow or task run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, if there is a current run."""
        if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
            super().emit(record)


def _run_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    try:
        return get_run_logger()
    except MissingContextError:
        return _logger
