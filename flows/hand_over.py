"""Handing a planned run to a flow that is called in the same process, as the command line does.

What is handed over is no parameter, so Prefect neither shows nor keeps it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from prefect_imagegen.app.planning.prepare import PlannedRun
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.session import Session

T = TypeVar("T")


@dataclass(slots=True)
class HandOver:
    """A planned run for the flow, and its figures from it.

    `runner`: the event loop in which the run was planned, which its connections belong to. `on_open` gets the session
    once it is open. `result`: set by the flow; None if the run was not executed to its end.
    """

    planned_run: PlannedRun
    runner: asyncio.Runner
    on_open: Callable[[Session], None]
    result: RunResult | None = None


_current: ContextVar[HandOver | None] = ContextVar("hand_over", default=None)


@contextmanager
def handing_over(hand_over: HandOver) -> Iterator[None]:
    """Within: the flow `generate_images` executes this planned run, whatever its parameters say."""
    token = _current.set(hand_over)
    try:
        yield
    finally:
        _current.reset(token)


def handed_over() -> HandOver | None:
    """What was handed to the current flow, if anything."""
    return _current.get()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in the event loop that was handed over, or in a new one."""
    hand_over = handed_over()
    if hand_over is None:
        return asyncio.run(work)
    # A runner remembers the context that it was made in, which knows nothing of the flow run.
    return hand_over.runner.run(work, context=copy_context())
