"""Simulated time: an event loop whose clock jumps to the next timer, and the clocks of machines."""

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta, tzinfo
from heapq import heappop
from typing import Any
from unittest.mock import patch

import aiohttp.connector

EPOCH = datetime(2026, 12, 1, 9, 30, tzinfo=UTC)
"""The true time at which every world begins."""
MOST_TURNS = 100_000
"""A run that needs more turns of its loop than this goes round in circles."""


class DeadlockError(RuntimeError):
    """Nothing is scheduled any more, and the run has not ended."""


class LivelockError(RuntimeError):
    """The run goes on and on without end."""


class Time:
    """The one true time of a world, in seconds since its beginning."""

    def __init__(self) -> None:
        self.now = 0.0

    @property
    def moment(self) -> datetime:
        """The true time as a date."""
        return EPOCH + timedelta(seconds=self.now)


class MachineClock:
    """A `ports.Clock` of one machine, whose date is wrong by `offset` seconds."""

    def __init__(self, true: Time, offset: float = 0.0) -> None:
        self._true = true
        self._offset = timedelta(seconds=offset)

    def now(self) -> datetime:
        return self._true.moment + self._offset

    def monotonic(self) -> float:
        return self._true.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without sockets and threads, in the time of a world. Halting it is a `kill -9` of the process."""

    def __init__(self, true: Time) -> None:
        super().__init__()
        self.halted = False
        self.faults: list[str] = []
        self._true = true
        self._turns = 0
        self.set_exception_handler(lambda _, context: self.faults.append(_told(context)))

    def time(self) -> float:
        return self._true.now

    def halt(self) -> None:
        """Run nothing more, not even what is ready."""
        self.halted = True
        self.stop()

    def drive(self, call: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine to its end, or to where the loop is halted."""
        task = self.create_task(call)
        task.add_done_callback(lambda _: self.stop())
        self.run_forever()
        return task

    def bury(self) -> None:
        """Cancel the tasks that a halted process left, and close the loop, so that nothing of it runs later."""
        now = self._true.now
        self.halted, self._turns = False, 0
        for _ in range(50):
            left = [task for task in asyncio.all_tasks(self) if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            self.call_soon(self.stop)
            self.run_forever()
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False
        self.faults.clear()
        self._true.now = now
        self.close()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> "asyncio.Future[Any]":
        """Call it here and now: no thread, and no real time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future

    def _run_once(self) -> None:
        self._turns += 1
        if self._turns > MOST_TURNS:
            raise LivelockError(f"{MOST_TURNS} turns of the loop, and no end")
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise DeadlockError("nothing is scheduled any more")
            self._true.now = max(self._true.now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._true.now:
            handle = heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            if self.halted:
                return
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _write_to_self(self) -> None:
        """Nobody waits in a system call that would have to be interrupted."""


def _told(context: dict[str, Any]) -> str:
    return f"{context.get('message')}: {context.get('exception')!r}"


_MACHINE: ContextVar[MachineClock] = ContextVar("machine")
"""The clock that `time.monotonic` and `datetime.now` show: that of the machine that is running now."""


class _AnyDatetime(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, datetime)


class SimulatedDatetime(datetime, metaclass=_AnyDatetime):
    """`datetime` whose `now` is that of the machine that runs."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        machine = _MACHINE.get(None)
        return datetime.now(tz) if machine is None else machine.now().astimezone(tz)


def run_on(machine: MachineClock) -> None:
    """From here on the product's own clocks are those of this machine."""
    _MACHINE.set(machine)


@contextmanager
def simulated_clocks() -> Iterator[None]:
    """Within: `time.monotonic`, and `datetime.now` in the product's modules, tell the time of the machine that runs."""

    real = time.monotonic

    def monotonic() -> float:
        machine = _MACHINE.get(None)
        return real() if machine is None else machine.monotonic()  # other threads of this process live on

    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("prefect_imagegen")]
    with patch.object(time, "monotonic", monotonic), patch.object(aiohttp.connector, "monotonic", monotonic):
        changed = [module for module in modules if getattr(module, "datetime", None) is datetime]
        for module in changed:
            module.datetime = SimulatedDatetime
        try:
            yield
        finally:
            for module in changed:
                module.datetime = datetime
