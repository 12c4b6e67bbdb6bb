"""The ports: what the executor and the app need from the outside world, as Protocols, and the values they exchange.

The implementations are in `store` and `providers`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal, Protocol

from prefect_imagegen.core.ledger.events import Claim, DeliveryFacts, Event, KnownAttempt
from prefect_imagegen.core.policy.abilities import Abilities
from prefect_imagegen.core.policy.history_lookup import Look, Window
from prefect_imagegen.core.request.request import GenerationRequest


class Clock(Protocol):
    """Time and waiting; tests replace it."""

    def now(self) -> datetime:
        """The present time, in UTC."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its root-relative path, its size in bytes, and when it was written, by the store's clock.

    `modified` is None where the store does not say. Only `head` gives a content type, where the store has one.
    """

    path: str
    size: int
    modified: datetime | None = None
    content_type: str | None = None


class ObjectStore(Protocol):
    """A root in object storage. Every failure is a `StoreError` that names the path, the store and the remedy."""

    url: str
    """The root as the user gave it, without credentials."""

    async def get(self, path: str) -> bytes | None:
        """The bytes of an object; None if there is none."""

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        """Write an object that must not exist yet, atomically and durably.

        False if the path exists already; the object there stays as it is.
        """

    async def put(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Write or replace an object, atomically."""

    async def delete(self, path: str) -> None:
        """Remove an object; a missing one is no error."""

    async def head(self, path: str) -> ObjectInfo | None:
        """Size and time of an object; None if there is none."""

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        """All objects below a folder, sorted by path; empty if there are none."""


class Ledger(Protocol):
    """What the store knows of every request key, from claims and events. Shared by all shards of a process."""

    async def known(self, key: bytes, *, lost: int = 0) -> Sequence[KnownAttempt]:
        """All that is known of the attempts of a key, from claims, ids and events; in the order of their numbers.

        `lost`: the number of a claim that exists, though a listing may not show it yet.
        """

    async def claim(self, key: bytes, claim_no: int, claim: Claim) -> bool:
        """Create a claim: True if it is ours, also where a client library has sent the put twice."""

    async def record_request_id(self, key: bytes, claim_no: int, request_id: str) -> None:
        """Make the request_id of a claim durable. Raises StoreError."""

    async def record(self, event: Event) -> None:
        """Take an event; it is durable after the next flush (every N events or T seconds)."""

    async def flush(self) -> None:
        """Write all events taken so far as one immutable segment."""

    def is_open(self, key: bytes) -> bool:
        """Whether, when the ledger was read, the key had no image and an attempt without an end."""

    def is_finished(self, key: bytes) -> bool:
        """Whether, when the ledger was read, the key had its image or had failed for good.

        The plan may be older than that reading, and list the key as new.
        """

    def next_attempt(self, key: bytes) -> int:
        """The number of the claim to try first. No number is used twice, even after its claim was removed."""

    async def known_ids(self, request_ids: Collection[str]) -> frozenset[str]:
        """Those of some request ids that belong to calls of this store."""

    async def refresh(self, *, at_once: bool = False) -> None:
        """Read what other runs have written since; without `at_once` a reading of a moment ago is enough."""


Liveness = Literal["alive", "stale", "dead"]
"""The state of another run. `alive`: its heartbeat is young. `stale`: no heartbeat for 90 s, or only unreadable ones
for 24 h. `dead`: it has certainly ended."""


class RunLiveness(Protocol):
    """Whether other runs on the same store are alive, and the store's clock, which all runs share."""

    async def liveness_of(self, owner: str) -> Liveness:
        """The state of the run that writes a heartbeat; `owner` is the path of the heartbeat."""

    def since_beat(self) -> float:
        """Seconds since our own last successful heartbeat was begun; infinite before the first."""

    def store_now(self) -> datetime:
        """The present time by the store's clock: an estimate that is never later than the true time there."""


Ownership = Literal["same", "linked", "other"]
"""Whose call an attempt is. `same`: sent with our API key. `linked`: with another key of our account. `other`: by
another account, or by an unknown one."""


class Accounts(Protocol):
    """The accounts whose calls are in the store, seen from the API key in use."""

    name: str | None
    """Our account; None where the provider has no accounts."""
    fingerprint: str | None
    """The fingerprint of our API key."""
    forgets: bool
    """Whether the API's history ends with the run, as that of an embedded sandbox does."""

    async def ownership(self, attempt: KnownAttempt) -> Ownership:
        """Whose call an attempt is."""

    def shows(self, attempt: KnownAttempt, request_ids: Collection[str]) -> bool:
        """Whether any of these request ids is known as a call of the attempt's account."""


@dataclass(slots=True)
class Delivery(DeliveryFacts):
    """The answer to one request: the bytes of its image as received, and what the provider said about it.

    `cost_usd` is None where the answer names no cost. `latency_s` is the provider's own generation time in seconds.
    `applied` holds parameters as the provider reports them (the seed). `endpoint` is the worker that made the image,
    where a provider has several.
    """

    data: bytes
    content_type: str | None = None
    more: tuple[bytes, ...] = ()
    """The bytes of further images of the same answer."""


@dataclass(slots=True)
class Submission:
    """An accepted call, whose result `Provider.collect` fetches.

    `open_body` (an answer that is still being read, v1) and `taken_by` (the worker that took the call) are private to
    the provider. `is_old`: an earlier run sent it, so that a call unknown to the API is not waited for.
    """

    request: GenerationRequest
    request_id: str | None
    open_body: Any = None
    taken_by: Any = None
    is_old: bool = False


@dataclass(frozen=True, slots=True)
class Balance:
    """The credits left, in US dollars; None where the provider has no balance."""

    credits_usd: float | None


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """One of our calls in the provider's history. `status` is COMPLETED, FAILED or PENDING.

    `body` is the body as sent; None where the history does not have it (yet).
    """

    request_id: str
    model: str
    status: str
    cost_usd: float | None = None
    body: dict[str, Any] | None = None
    generation_urls: tuple[str, ...] = ()
    """The URLs of the outputs."""
    error: str | None = None
    created: datetime | None = None
    zoned: bool = True
    """Whether `created` came with a time zone; without one it may be hours off."""


@dataclass(frozen=True, slots=True)
class Health:
    """The health of an endpoint, as it reports it; `limit` is the number of calls that it takes at once."""

    ready: bool
    detail: str = ""
    engine: str | None = None
    profile: str | None = None
    models: frozenset[str] | None = None
    limit: int | None = None


class PaidAccount(Protocol):
    """The account behind an API key. Each part is there only if `Provider.abilities` declares it."""

    async def check(self) -> Balance:
        """Reach the endpoint, verify the API key and read the balance, before anything is spent (`balance`)."""

    async def upload(self, data: bytes, media_type: str) -> str:
        """Upload a reference, free of charge; the address to send for it (`uploads`)."""

    async def has_upload(self, url: str) -> bool:
        """Whether an upload is still there (`uploads`)."""

    async def find(self, model: str, claimed: Mapping[str, Any], window: Window) -> Look:
        """Look once for a call with the body of a claim, created within a window of time (`history`).

        Raises ProviderError where the look proves nothing.
        """

    async def record(self, request_id: str) -> HistoryRecord | None:
        """The record of one call (`history`); None where the history does not have it (yet)."""

    async def records(self, start: date, end: date) -> Sequence[HistoryRecord]:
        """All own calls between two days, inclusive, at most 31 apart (`history`)."""


class Provider(Protocol):
    """Who makes images. Every failure is a `ProviderError` whose kind is a row of `core.policy.outcomes`."""

    name: str
    """As the metadata records it: that of the entry, or `sandbox` for a gateway that draws placeholders."""
    endpoint: str
    """The base URL, without credentials."""
    abilities: Abilities
    on_capacity: Callable[[int], None]
    """Called with the capacity whenever that may have changed."""

    @property
    def account(self) -> PaidAccount | None:
        """The account of the API key; None for a provider without any of its parts."""

    @property
    def capacity(self) -> int | None:
        """How many calls it takes at once, where it tells; None for as many as the settings say."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Parts of it that are not used any more, by address, with the reason."""

    @property
    def not_understood(self) -> Counter[str]:
        """The number of answers that were not understood, by description. Such an answer proves nothing."""

    def now(self) -> datetime | None:
        """The present time by the API's clock, from its last answer; None where it is not known."""

    async def open(self) -> None:
        """Wait until it can take calls. Raises ProviderError if it cannot, RefusedError if it never will."""

    async def engine(self) -> str | None:
        """The engine that a gateway names; None for any other service. Raises ProviderError if it is out of reach."""

    async def examine(self) -> Sequence[tuple[str, str]]:
        """Its parts by address, each with the reason why it cannot be used now; empty if it is one service."""

    def expect(self, *, sandbox: bool) -> None:
        """From now on require that every answer comes from a sandbox, or that none does (`sandbox_mismatch`)."""

    async def submit(
        self, request: GenerationRequest, image_urls: Sequence[str], *, idempotency_key: str | None = None
    ) -> Submission:
        """Send one POST, with the addresses of the references.

        Returns as soon as the call is accepted: the answer that names its id is read, or the headers of a 200 are.
        `idempotency_key` is given only to providers that declare to honour it.
        """

    async def collect(self, submission: Submission) -> Delivery:
        """Wait for the result and fetch its bytes; never submits. It may be called again, and fetches again."""

    async def aclose(self) -> None:
        """Close the connections."""


class References(Protocol):
    """Makes the addresses under which a provider can fetch the references of requests."""

    inline: bool
    """Whether the addresses are data URLs, which hold the images: they are made just before the call, being large."""

    async def addresses(self, request: GenerationRequest, *, force_upload: bool) -> Sequence[str]:
        """The address to send for each reference, in order.

        `force_upload`: upload each in this run, since the API could not fetch one from its address. Raises
        ProviderError (`reference_unreadable`, `reference_busy`, `upload_failed`, or the error of the upload), and
        StoreError where the store keeps references.
        """


class RateLimiter(Protocol):
    """Limits the calls per minute, and holds the pauses that all senders of the run share."""

    async def acquire(self) -> None:
        """Wait until one call may be sent (or until the run stops)."""

    def pause(self, seconds: float) -> None:
        """Let no call be sent for so many seconds, since the provider asked for it."""
