"""Slots for calls: at most as many calls are under way as the adaptive limit allows."""

import asyncio

from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit


class Slots:
    """Counts the calls under way against the limit. Only one task may wait in `acquire` at a time.

    The executor's lock (`Executor._turn`) sees to that.
    """

    def __init__(self, limit: AdaptiveLimit) -> None:
        self.used = 0
        self.limit = limit
        self._changed = asyncio.Event()

    async def acquire(self) -> None:
        """Wait for a slot."""
        while self.used >= self.limit.now:
            self._changed.clear()
            await self._changed.wait()
        self.used += 1

    def release(self) -> None:
        """Give a slot back."""
        self.used -= 1
        self._changed.set()
