"""The records of the ledger: events of attempts, claims, and the facts of deliveries and images."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Annotated, Any, Literal

import pyarrow as pa

from prefect_imagegen.core.columns import Column

EventType = Literal["claimed", "submitted", "delivered", "failed", "quarantined"]
RETRY_ASKED = "retry_asked"
"""The error kind of the `failed` event by which `resend` frees a key for a new attempt."""
RANK: dict[EventType, int] = {"claimed": 0, "submitted": 1, "failed": 2, "delivered": 4, "quarantined": 5}
"""The event of the highest rank decides about an attempt; times never do."""
RETRY_ASKED_RANK = 3
"""A `failed` event of the kind `RETRY_ASKED` outranks the failure that it answers."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The facts of a stored image, from its decoded bytes. `path` is store-relative, width and height are pixels."""

    path: Annotated[str, Column(pa.string(), "path of the image, relative to the store", name="image_path")]
    width: Annotated[int, Column(pa.int32(), "pixels, from the decoded bytes")]
    height: Annotated[int, Column(pa.int32(), "pixels, from the decoded bytes")]
    format: Annotated[str, Column(pa.string(), "png, jpeg or webp, from the bytes")]
    size_bytes: Annotated[int, Column(pa.int64(), "bytes")]
    sha256: Annotated[str, Column(pa.string(), "of the bytes as received, hex")]
    flags: Annotated[
        tuple[str, ...],
        Column(
            pa.list_(pa.string()),
            "remarks: `blank`, `other_format` (than was asked for), `more_images`, `late`",
        ),
    ] = ()


@dataclass(slots=True, kw_only=True)
class DeliveryFacts:
    """What is known of one call's answer: its image, cost and times. `Delivery`, `Event` and `RequestResult` have it.

    Fields are None where unknown. Every field is a column of events, results and (if explained) metadata: a new one
    is declared here, and set by the provider that knows it. New columns are null for what was recorded before.
    """

    image: ImageFacts | None = None
    """Once its bytes are decoded and stored."""
    endpoint: Annotated[str | None, Column(pa.string(), "where the image was made")] = None
    account: Annotated[str | None, Column(pa.string())] = None
    """The account that the call belongs to: see `Claim.account`."""
    applied: Annotated[
        dict[str, Any], Column(pa.string(), "what the backend really used, where it tells, JSON", is_json=True)
    ] = field(default_factory=dict)
    cost_usd: Annotated[
        float | None, Column(pa.float64(), "what this run paid for the row; 0 if reused, null if unknown")
    ] = None
    latency_s: Annotated[float | None, Column(pa.float64(), "seconds, as the backend tells, else as measured")] = None
    queue_s: Annotated[
        float | None, Column(pa.float64(), "seconds in the backend's queue, as it tells; null where it does not")
    ] = None
    request_id: Annotated[str | None, Column(pa.string(), "the backend's name of the call")] = None
    http_status: Annotated[int | None, Column(pa.int32(), "of the last answer")] = None

    def facts(self) -> dict[str, Any]:
        """These fields by name, as arguments for another record of the same delivery."""
        return {fact.name: getattr(self, fact.name) for fact in fields(DeliveryFacts)}


@dataclass(slots=True)
class Event(DeliveryFacts):
    """One step of one attempt. Fields are None where unknown; only a `delivered` event has an `image`.

    `key` is the request key (16 bytes). `attempt_id` names the attempt; of its events the highest `RANK` counts.
    """

    type: EventType
    key: bytes
    attempt_id: str
    run_id: str
    time: datetime
    error_kind: str | None = None
    error_message: str | None = None
    model: str | None = None
    cost_class: str | None = None
    """The group of requests with one price: see `GenerationRequest.cost_class`."""
    seed: int | None = None
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The mark made before a paid call. `body` is the body sent, with every reference URL replaced by its SHA-256.

    The fields after `body` are None in claims of older stores, which did not have them.
    """

    run_id: str
    nonce: str
    attempt_id: str
    time: datetime
    """When it was made, by the clock of the machine that made it."""
    body: dict[str, object]
    account: str | None = None
    """The account that the call belongs to: the sender whose calls an API key can look up."""
    fingerprint: str | None = None
    """The fingerprint of the API key that sends the call."""
    endpoint: str | None = None
    owner: str | None = None
    """The path of the heartbeat of the run that made the claim."""
    store_time: datetime | None = None
    """When it was made, by the store's clock."""
    api_time: datetime | None = None
    """When it was made, by the API's clock, as its last answer gave the time."""


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """A claim read from the store: its number, its request_id if it has one, and when the store wrote it."""

    claim_no: int
    claim: Claim
    request_id: str | None
    stored: datetime | None = None


@dataclass(frozen=True, slots=True)
class KnownAttempt:
    """All that is known of one attempt of a key: its claim, its request_id and its course in the ledger.

    `rank` is -1 where the ledger has no event of it. This is the only source for what became of an attempt.
    """

    claim_no: int
    rank: int = -1
    record: ClaimRecord | None = None
    request_id: str | None = None
    error_kind: str | None = None
    """Why it failed, where it did."""
    error_message: str | None = None
    is_asked: bool = False
    """Whether `resend` has freed the key after it."""
    account: str | None = None
    endpoint: str | None = None
    run_id: str | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the attempt has ended, with an image or without."""
        return self.rank >= RANK["failed"]

    @property
    def is_delivered(self) -> bool:
        """Whether the attempt led to an image that is not quarantined."""
        return self.rank == RANK["delivered"]
