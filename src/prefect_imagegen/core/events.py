"""What the ledger records: one event per step of an attempt, and the facts of an image."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

EventType = Literal["claimed", "submitted", "delivered", "failed", "quarantined"]
RANK: dict[EventType, int] = {"claimed": 0, "submitted": 1, "failed": 2, "delivered": 3, "quarantined": 4}
"""Inside one attempt the higher rank wins; never the clock."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the decoded bytes say of an image. `path` is store-relative, sizes are pixels and bytes."""

    path: str
    width: int
    height: int
    format: str
    size_bytes: int
    sha256: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one attempt. `cost_usd` and times are null until known; `image` comes with `delivered` only.

    `key` is the request key (16 bytes); `attempt_id` names the attempt: events of one attempt fold by `RANK`.
    """

    type: EventType
    key: bytes
    attempt_id: str
    run_id: str
    time: datetime
    request_id: str | None = None
    error_kind: str | None = None
    error_message: str | None = None
    http_status: int | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    image: ImageFacts | None = None
    model: str | None = None
    cost_class: str | None = None
    """What the price depends on: see `GenerationRequest.cost_class`."""
    seed: int | None = None
    backend: str | None = None
    endpoint: str | None = None
    applied: str | None = None
    """The parameters as applied, JSON."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The mark made before a paid call. `body` is what is sent, with every reference URL replaced by its SHA-256."""

    run_id: str
    nonce: str
    attempt_id: str
    time: datetime
    body: dict[str, object]


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """A claim as found in the store: its number, who made it, the request_id if it got one, the store's own time."""

    n: int
    claim: Claim
    request_id: str | None
    stored: datetime | None = None
