"""A request that the executor works on, and the steps that lead from one try to the next."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.ledger.events import Claim, ClaimRecord
from prefect_imagegen.core.policy.budget import Reservation
from prefect_imagegen.core.policy.history_lookup import claim_form
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor.states import State
from prefect_imagegen.ports import Ownership, Submission


@dataclass(slots=True)
class PendingRequest:
    """One request that the executor works on: its claim, its calls, its money and how often it failed."""

    request: GenerationRequest
    key: bytes
    claim_no: int
    """The number of the present claim and attempt, from 1."""
    state: State = State.NEW
    posts: int = 0
    """POSTs sent in this run."""
    counted_posts: int = 0
    """Those of them that count against --max-attempts."""
    repeats: int = 0
    """POSTs of the present attempt that followed its first one, with the same idempotency key."""
    failures: int = 0
    """Attempts of this run that failed, of any kind."""
    maybe_paid: int = 0
    """Calls that were sent again although the earlier one may have been billed."""
    paid: int = 0
    """Calls that this run was billed for."""
    by_kind: Counter[str] = field(default_factory=Counter)
    """Failed attempts of this run, by error kind."""
    claim: Claim | None = None
    """The open claim of the present attempt: ours, or that of an earlier run that was taken over."""
    claimed_at: float | None = None
    """When we made the claim (monotonic clock); None for a claim that was taken over."""
    stored_at: datetime | None = None
    """When the claim was made, by the store's clock."""
    claimant_gone: bool = True
    """Whether no other run can still be about to send under this claim."""
    ownership: Ownership = "same"
    """Whose call it is, seen from our API key."""
    sending_s: float | None = None
    """Seconds from the claim to the end of its POST; None if unknown."""
    is_posting: bool = False
    """Whether a POST was sent and is not answered yet."""
    sent_at: float | None = None
    """When the last POST was sent (monotonic clock)."""
    addresses: Sequence[str] = ()
    """The addresses that are sent for the request's references, in order."""
    force_upload: bool = False
    """Whether references are uploaded anew, since the API could not fetch one from its address."""
    accepted: Submission | None = None
    """An accepted call whose result is still to be fetched."""
    request_id: str | None = None
    """The request_id of the present attempt, once known."""
    stored_request_id: str | None = None
    """The request_id that the store holds for the present claim."""
    is_waiting: bool = False
    """Whether it only waits for the next lookup of an earlier run's call: this run need not stay open for it."""
    is_late: bool = False
    """Whether its result is that of an earlier attempt, which had been given up."""
    late_claim: ClaimRecord | None = None
    """The claim of that earlier attempt, where the history showed its call only now."""
    breaker_notified: bool = False
    """Whether the circuit breaker knows of its failure already."""
    reservation: Reservation | None = None
    """The money set aside for its present call."""
    in_use: bool = False
    """Whether it is being looked up or worked on just now, and must not be given up."""

    @property
    def attempt_id(self) -> str:
        """The name of the present attempt: `<key in hex>-<claim_no>`."""
        return f"{self.key.hex()}-{self.claim_no}"

    @property
    def is_left_behind(self) -> bool:
        """Whether this run has sent nothing for it: whatever was sent, earlier runs sent."""
        return self.posts == 0

    @property
    def may_be_out(self) -> bool:
        """Whether a call of the present attempt may have been sent."""
        return self.sent_at is not None or self.request_id is not None or self.accepted is not None

    def enter(self, state: State) -> None:
        """Note what is being done for the request from now on."""
        self.state = state

    def begin(self) -> None:
        """Begin the next attempt: nothing of the present one counts for it."""
        self.claim_no += 1
        self.repeats = 0
        self.claim = self.stored_at = self.claimed_at = self.sending_s = self.sent_at = None
        self.request_id = self.stored_request_id = None
        self.ownership, self.is_late, self.late_claim = "same", False, None

    @property
    def claim_body(self) -> dict[str, Any]:
        """The body of the call as the claim holds it."""
        return claim_form(self.request.body(self.addresses))

    def held(self, error: ProviderError) -> RequestResult:
        """The result `held`: sent, or claimed by another run, and not known to have ended."""
        return RequestResult(
            self.key, "held", error.kind, error.message, request_id=error.request_id, http_status=error.status
        )

    def failed(self, error: ProviderError) -> RequestResult:
        """The result `failed`: ended without an image."""
        return RequestResult(
            self.key, "failed", error.kind, error.message, request_id=error.request_id, http_status=error.status
        )


@dataclass(frozen=True, slots=True)
class Retry:
    """Next step: the request needs a slot again, after so many seconds."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Defer:
    """Next step: the request waits for something other than a slot.

    `wait` returns the step after that; `held` is the result if the request is given up while it waits.
    """

    wait: Callable[[], Coroutine[Any, Any, "NextStep"]]
    held: RequestResult
    work: "asyncio.Task[Any] | None" = None
    """The task that goes on meanwhile; it is cancelled if the request is given up."""

    def drop(self) -> RequestResult:
        """Give the request up: cancel the task, return the held result."""
        if self.work is not None:
            self.work.cancel()
        return self.held


NextStep = RequestResult | Retry | Defer
