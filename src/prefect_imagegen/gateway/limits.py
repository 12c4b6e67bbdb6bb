"""The limits of a gateway, and the gate that keeps its calls within them.

Every limit is one field of `Limits`, with its option of `serve`, its unit, and its help text.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

_KB, _MB = 1 << 10, 1 << 20


def _limit(usual: int, option: str, text: str, unit: int = 1) -> Any:
    return field(default=usual * unit, metadata={"option": option, "unit": unit, "help": text})


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits for callers of a gateway. Sizes in bytes, times in seconds."""

    head_bytes: int = _limit(16, "--max-head-kb", "KB of a request's line and headers.", _KB)
    body_bytes: int = _limit(96, "--max-body-mb", "MB of a body, pictures inside it included.", _MB)
    text_bytes: int = _limit(1024, "--max-text-kb", "KB of a body besides its pictures.", _KB)
    field_chars: int = _limit(100_000, "--max-field-chars", "Characters of a prompt, an address, any text field.")
    json_depth: int = _limit(32, "--max-json-depth", "Lists and objects within each other in a body.")
    json_values: int = _limit(1000, "--max-json-values", "Values in a body, at any depth.")
    receive_s: int = _limit(60, "--receive-seconds", "Seconds for a head, and for a body, to be here; 8 more per MB.")
    references: int = _limit(16, "--max-references", "Pictures of one call, and of one upload.")
    reference_bytes: int = _limit(32, "--max-reference-mb", "MB of one picture.", _MB)
    references_bytes: int = _limit(64, "--max-references-mb", "MB of the pictures of one call.", _MB)
    calls_of_key: int = _limit(1000, "--max-calls-per-key", "Calls at once of one account: 429 beyond.")
    pending_bytes: int = _limit(1024, "--max-pending-mb", "MB of the bodies of all calls at once: 429 beyond.", _MB)

    def describe(self, name: str) -> str:
        """A limit as error texts name it: `--max-body-mb 96`."""
        metadata = next(entry.metadata for entry in fields(self) if entry.name == name)
        return f"{metadata['option']} {getattr(self, name) / metadata['unit']:g}"


class TooBusyError(Exception):
    """No more calls are accepted for now; the message is the API's error text."""


@dataclass(slots=True)
class Seat:
    """The place of one call at the gate, from before its body is read until its work has ended."""

    account: str
    size: int = 0
    """Bytes of its body so far."""
    is_handed_over: bool = False
    """Whether the job, not the request handler, gives it back."""


class Gate:
    """Counts the calls that are read, wait or run, by account and bytes, and refuses those beyond the limits.

    `most` is the number of calls at once. One event loop uses it.
    """

    def __init__(self, limits: Limits, most: int) -> None:
        self._limits = limits
        self._most = most
        # A body that is allowed by itself must fit in some time.
        self._most_bytes = max(limits.pending_bytes, limits.body_bytes)
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    @contextmanager
    def seat(self, account: str) -> Iterator[Seat]:
        """Take a place for a call, given back at the end unless it `is_handed_over` then. Raises TooBusyError."""
        if self.calls.total() >= self._most:
            raise TooBusyError("the queue is full (--queue)")
        if self.calls[account] >= self._limits.calls_of_key:
            raise TooBusyError(f"the account has too many calls at once ({self._limits.describe('calls_of_key')})")
        self.calls[account] += 1
        seat = Seat(account)
        try:
            yield seat
        finally:
            if not seat.is_handed_over:
                self.leave(seat)

    def leave(self, seat: Seat) -> None:
        """Give the place of a call back."""
        self.calls[seat.account] -= 1
        if not self.calls[seat.account]:
            del self.calls[seat.account]
        self.bytes -= seat.size

    def check_room(self, size: int) -> None:
        """Raise TooBusyError if so many bytes more do not fit."""
        if self.bytes + size > self._most_bytes:
            raise TooBusyError(f"too many bytes are under way ({self._limits.describe('pending_bytes')})")

    def grow(self, seat: Seat, size: int) -> None:
        """Count so many more bytes of a call's body. Raises TooBusyError."""
        self.check_room(size)
        seat.size += size
        self.bytes += size
