"""What the ledger records: one event per step of an attempt, and the facts of an image."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

EventType = Literal["claimed", "submitted", "delivered", "failed", "quarantined"]
RETRY_ASKED = "retry_asked"
"""The error kind of the `failed` event with which a person gives a key free."""
RANK: dict[EventType, int] = {"claimed": 0, "submitted": 1, "failed": 2, "delivered": 4, "quarantined": 5}
"""Inside one attempt the higher rank wins; never the clock."""
RETRY_ASKED_RANK = 3
"""A person's word outranks the failure that it answers."""


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
    account: str | None = None
    """Whose call it is: see `Claim.account`."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The mark made before a paid call. `body` is what is sent, with every reference URL replaced by its SHA-256.

    What follows `body` is null in claims of stores that were written before it was known.
    """

    run_id: str
    nonce: str
    attempt_id: str
    time: datetime
    """By the clock of the machine that made it."""
    body: dict[str, object]
    account: str | None = None
    """The account that the call belongs to: the sender whose calls a key can look up."""
    fingerprint: str | None = None
    """The fingerprint of the key that sends it."""
    endpoint: str | None = None
    owner: str | None = None
    """The path of the heartbeat that vouches for the claim."""
    store_time: datetime | None = None
    """By the store's clock."""
    api_time: datetime | None = None
    """By the API's clock, as its last answer told it."""


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """A claim as found in the store: its number, who made it, the request_id if it got one, the store's own time."""

    n: int
    claim: Claim
    request_id: str | None
    stored: datetime | None = None


@dataclass(frozen=True, slots=True)
class KnownAttempt:
    """All that is known of one attempt of a key: its claim, its id, and what the ledger says of its course.

    `rank` is -1 where the ledger says nothing. Who asks what became of an attempt asks this, and nothing else.
    """

    n: int
    rank: int = -1
    record: ClaimRecord | None = None
    request_id: str | None = None
    error_kind: str | None = None
    """Why it was closed as failed."""
    error_message: str | None = None
    is_asked: bool = False
    """Whether a person has given it free."""
    account: str | None = None
    endpoint: str | None = None
    run_id: str | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, with an image or without."""
        return self.rank >= RANK["failed"]

    @property
    def is_delivered(self) -> bool:
        """Whether it led to an image that still counts."""
        return self.rank == RANK["delivered"]
