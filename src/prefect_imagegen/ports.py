"""What the executor and the app need of the outside world, as Protocols. Adapters live in `io`."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from prefect_imagegen.core.ledger.events import Claim, Event, KnownAttempt
from prefect_imagegen.core.policy.history_lookup import Look, Window
from prefect_imagegen.core.request.request import GenerationRequest


class Clock(Protocol):
    """Time and waiting; tests bring their own."""

    def now(self) -> datetime:
        """The present time, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its root-relative path, size in bytes, and the store's own time of writing, where it tells.

    The content type is told by `head`, where the store has one.
    """

    path: str
    size: int
    modified: datetime | None = None
    content_type: str | None = None


class ObjectStore(Protocol):
    """A root in object storage. Every failure is a `StoreError` that names the path, the store and the remedy."""

    url: str
    """The root as the user wrote it, without credentials."""

    async def get(self, path: str) -> bytes | None:
        """The bytes of an object; None if there is none."""
        ...

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        """Create-only put, atomic and durable: True if written, False if the path exists (and stays as it is)."""
        ...

    async def put(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Write or replace, atomically."""
        ...

    async def delete(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    async def head(self, path: str) -> ObjectInfo | None:
        """Size and time of an object; None if there is none."""
        ...

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        """All objects below a folder, sorted by path; empty if there are none."""
        ...


class Ledger(Protocol):
    """What the store knows of every request key: claims and events (shared by all shards of a process)."""

    async def known(self, key: bytes, *, lost: int = 0) -> Sequence[KnownAttempt]:
        """All that is known of the attempts of a key, by number: claims, ids, events. The one answer to that question.

        `lost`: the number of a claim that is known to exist, whatever a listing says.
        """
        ...

    async def claim(self, key: bytes, n: int, claim: Claim) -> bool:
        """Create claim number n: True if it is ours (an own put re-sent by a client library included)."""
        ...

    async def record_request_id(self, key: bytes, n: int, request_id: str) -> None:
        """Make the request_id of claim n durable. Raises StoreError if one try fails (the caller tries again)."""
        ...

    async def record(self, event: Event) -> None:
        """Take an event in; it is durable after the next flush (every N events or T seconds)."""
        ...

    async def flush(self) -> None:
        """Write all events taken in so far as one immutable segment."""
        ...

    def is_open(self, key: bytes) -> bool:
        """Whether, when the ledger was read, the key had an attempt without an end, and no image."""
        ...

    def is_settled(self, key: bytes) -> bool:
        """Whether, when the ledger was read, the key had its image or had failed for good.

        A run that was planned before does not know.
        """
        ...

    def next_attempt(self, key: bytes) -> int:
        """The number of the claim to try first: numbers are never used twice, whatever became of older claims."""
        ...

    async def known_ids(self, request_ids: Collection[str]) -> frozenset[str]:
        """Those of some request ids that are known to be calls of this store."""
        ...

    async def refresh(self, *, at_once: bool = False) -> None:
        """Read what other runs have written meanwhile; unless `at_once`, cheap if it was done a moment ago."""
        ...


Life = Literal["alive", "stale", "dead"]
"""`live`: shows signs of life. `silent`: none for 90 s, or unclear ones for 24 h.
`gone`: has ended for certain."""


class RunLiveness(Protocol):
    """Other runs on the same store, and the store's clock, which is the one that all runs share."""

    async def life(self, owner: str) -> Life:
        """Whether the owner of a heartbeat (its path) still works."""
        ...

    def since_beat(self) -> float:
        """Seconds since our own last good sign of life was begun; infinite before the first."""
        ...

    def store_now(self) -> datetime:
        """The present time by the store's clock, never later than it really is there."""
        ...


Ownership = Literal["same", "linked", "other"]
"""Whose call an attempt is. `same`: sent with our key. `linked`: with another key of our account. `other`: of another
account, or of one that is not known."""


class Accounts(Protocol):
    """Whose calls the store holds, seen from the key in use."""

    name: str | None
    """Our account; None where calls belong to nobody."""
    fingerprint: str | None
    """The fingerprint of our key."""
    forgets: bool
    """Whether the API's memory ends with a run: an embedded sandbox knows nothing of earlier ones."""

    async def ownership(self, attempt: KnownAttempt) -> Ownership:
        """Whose call an attempt is."""
        ...

    def shows(self, attempt: KnownAttempt, request_ids: Collection[str]) -> bool:
        """Whether some request ids of a listing are known as calls of the attempt's account."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a provider delivered for one request: the bytes as received, and what it said of them.

    `cost_usd` is None where the answer names none; `latency_s` is the provider's own generation time if told.
    `applied` holds parameters as the provider reports them (seed), sizes in pixels come from the bytes later.
    `endpoint` is where it was made, where a provider has several.
    """

    data: bytes
    content_type: str | None = None
    request_id: str | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    http_status: int | None = None
    applied: dict[str, Any] = field(default_factory=dict)
    endpoint: str | None = None
    more: tuple[bytes, ...] = ()
    """Further images of the same answer, where there are several."""


@dataclass(slots=True)
class Submission:
    """An accepted call.

    `open_body` and `taken_by` are provider-private: the answer that is still being read (v1), and who took the call.
    `is_old`: an earlier run sent it, so that nobody waits for a call of which nothing is known.
    """

    request: GenerationRequest
    request_id: str | None
    open_body: Any = None
    taken_by: Any = None
    is_old: bool = False


@dataclass(frozen=True, slots=True)
class Balance:
    """Credits left, in US dollars; None where the provider has no such notion."""

    credits_usd: float | None


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """One own request as the provider's history tells it. `status` is COMPLETED, FAILED or PENDING.

    `body` is the inputs as sent, or None where the history has not got them yet.
    """

    request_id: str
    model: str
    status: str
    cost_usd: float | None = None
    body: dict[str, Any] | None = None
    generation_urls: tuple[str, ...] = ()
    """One for each output."""
    error: str | None = None
    created: datetime | None = None
    zoned: bool = True
    """Whether `created` came with a time zone; one that did not may be hours off."""


@dataclass(frozen=True, slots=True)
class Health:
    """What an endpoint says of itself. `models`, `profile` and `limit` (calls that it wants at once) where it tells."""

    ready: bool
    detail: str = ""
    engine: str | None = None
    profile: str | None = None
    models: frozenset[str] | None = None
    limit: int | None = None


class Dialect(Protocol):
    """One endpoint, and the protocol it speaks. Every failure is a `ProviderError`."""

    endpoint: str
    """The base URL, without credentials."""
    queues: bool
    """As that of `Provider`."""

    async def health(self) -> Health:
        """Whether it can work just now; never raises for want of an answer."""
        ...

    async def check(self) -> Balance:
        """Prove the key by a call that draws nothing, as far as the protocol has one; the balance where it tells."""
        ...

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        """As that of `Provider`."""
        ...

    async def collect(self, submission: Submission) -> Delivery:
        """As that of `Provider`."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class Provider(Protocol):
    """Where images come from. Every failure is a `ProviderError`, whose kind is a row of `core.outcomes`."""

    name: str
    """`segmind`, or `sandbox` for a gateway that draws placeholders."""
    endpoint: str
    """The base URL, without credentials."""
    queues: bool
    """Whether a POST only queues the work (v2), so that an answered 5xx may hide accepted work and a job outlives the
    connection; else the answer is the image, and only a 200 is billed (v1)."""
    free: bool
    """Whether calls cost nothing: they need no claims, and a lost one is repeated at once."""

    @property
    def not_understood(self) -> Counter[str]:
        """Answers that were not understood, by what they were: they proved nothing."""
        ...

    def now(self) -> datetime | None:
        """The present time by the API's clock, as its last answer told it; None until one has."""
        ...

    async def check(self) -> Balance:
        """Reach the endpoint, prove the key and read the balance, before anything is spent."""
        ...

    async def upload(self, data: bytes, media_type: str) -> str:
        """Make a reference known to the provider, for nothing; the address to send for it."""
        ...

    async def has_upload(self, url: str) -> bool:
        """Whether an upload is still there."""
        ...

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        """Send one POST, with the addresses of the references.

        Returns as soon as the call is accepted (v2: answer read; v1: headers of a 200).
        """
        ...

    async def collect(self, submission: Submission) -> Delivery:
        """Wait for the result and fetch its bytes; never submits. Called again, it fetches afresh."""
        ...

    async def find(self, model: str, claimed: Mapping[str, Any], window: Window) -> Look:
        """Look once in the history for a call with the body of a claim that was made in a span of time.

        Raises ProviderError where the look proves nothing.
        """
        ...

    async def record(self, request_id: str) -> HistoryRecord | None:
        """One call as the history tells it; None where it does not (yet) know it."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class References(Protocol):
    """How the references of requests reach the provider."""

    inline: bool
    """Whether addresses are the pictures themselves: too large to be made before a call is about to be sent."""

    async def addresses(self, request: GenerationRequest, *, force_upload: bool) -> Sequence[str]:
        """What to send for each reference, in order; `force_upload`: upload it in this run, since its URL failed.

        Raises ProviderError (`reference_unreadable`, `reference_busy`, `upload_failed`, or what an upload met with),
        or StoreError where references are kept.
        """
        ...


class RateLimiter(Protocol):
    """When the next call may go out: requests per minute, and pauses that everybody shares."""

    async def acquire(self) -> None:
        """Wait until one call may be sent (or until the run stops)."""
        ...

    def pause(self, seconds: float) -> None:
        """Let nobody send for so long: the provider asked for it."""
        ...
