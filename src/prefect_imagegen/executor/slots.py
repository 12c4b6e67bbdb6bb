"""Slots: how many calls are out at once, under a limit that adapts."""

import asyncio

from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit


class Slots:
    """Slots for calls. One waiter at a time: whoever acquires one holds the executor's turn."""

    def __init__(self, limit: AdaptiveLimit) -> None:
        self.used = 0
        self.limit = limit
        self._moved = asyncio.Event()

    async def acquire(self) -> None:
        """Wait for a slot."""
        while self.used >= self.limit.now:
            self._moved.clear()
            await self._moved.wait()
        self.used += 1

    def release(self) -> None:
        """Give a slot back."""
        self.used -= 1
        self._moved.set()
