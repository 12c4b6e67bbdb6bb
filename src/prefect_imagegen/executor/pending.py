"""One request on its way, and the steps that lead on from one try to the next."""

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
    """One request on its way."""

    request: GenerationRequest
    key: bytes
    claim_no: int
    """The number of the present claim."""
    state: State = State.NEW
    posts: int = 0
    """POSTs sent in this run."""
    counted_posts: int = 0
    """Those that count against the limits of trying again."""
    failures: int = 0
    maybe_paid: int = 0
    paid: int = 0
    """Images that this run had to pay for."""
    by_kind: Counter[str] = field(default_factory=Counter)
    claim: Claim | None = None
    """The open claim of the present attempt, ours or one that was taken over."""
    claimed: float | None = None
    """When we made the claim, by our monotonic clock; None for one that was taken over."""
    stored_at: datetime | None = None
    """When the claim was made, by the store's clock."""
    claimant_gone: bool = True
    """Whether nobody else can still be about to send under this claim."""
    ownership: Ownership = "same"
    """Whose call it is, seen from our key."""
    sending_s: float | None = None
    """How long after the claim its POST had ended; None where nobody knows."""
    is_posting: bool = False
    """A POST of it is out, and not answered yet."""
    sent_at: float | None = None
    """When the last POST went out, by our monotonic clock."""
    addresses: Sequence[str] = ()
    """What is sent for the request's references."""
    force_upload: bool = False
    """The API could not fetch a reference: it is uploaded anew."""
    accepted: Submission | None = None
    """A call known to be accepted, whose result is still to be fetched."""
    request_id: str | None = None
    """The request_id of the present attempt, once it is known."""
    stored_request_id: str | None = None
    """The request_id of the present claim, once the store has it."""
    waits: bool = False
    """It only waits for the next look for what an earlier run left: the run need not stay open for it."""
    late: bool = False
    found_under: ClaimRecord | None = None
    """The earlier claim under which the call was sent that showed late; else it is the row's own."""
    """Its result is that of an attempt that had been given up."""
    breaker_notified: bool = False
    """Whether the circuit breaker has heard of it already."""
    reservation: Reservation | None = None
    in_use: bool = False
    """It is just being looked for, or worked on: not the moment to give it up."""

    @property
    def attempt_id(self) -> str:
        """The name of the present attempt."""
        return f"{self.key.hex()}-{self.claim_no}"

    @property
    def is_left_behind(self) -> bool:
        """Whether all that was ever sent for it was sent by earlier runs."""
        return self.posts == 0

    @property
    def may_be_out(self) -> bool:
        """Whether a call of its present attempt may have been sent."""
        return self.sent_at is not None or self.request_id is not None or self.accepted is not None

    def enter(self, state: State) -> None:
        """Note what is being done for the request from now on."""
        self.state = state

    def begin(self) -> None:
        """Leave the present attempt behind: nothing of it counts for the next one."""
        self.claim_no += 1
        self.claim = self.stored_at = self.claimed = self.sending_s = self.sent_at = None
        self.request_id = self.stored_request_id = None
        self.ownership, self.late, self.found_under = "same", False, None

    @property
    def claim_body(self) -> dict[str, Any]:
        """The body as the claim holds it."""
        return claim_form(self.request.body(self.addresses))

    def held(self, error: ProviderError) -> RequestResult:
        """Sent, or claimed by somebody, and not known to have ended."""
        return RequestResult(
            self.key, "held", error.kind, error.message, request_id=error.request_id, http_status=error.status
        )

    def failed(self, error: ProviderError) -> RequestResult:
        """Ended without an image."""
        return RequestResult(
            self.key, "failed", error.kind, error.message, request_id=error.request_id, http_status=error.status
        )


@dataclass(frozen=True, slots=True)
class Retry:
    """The row needs a slot again, after so many seconds."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Defer:
    """The row waits for something other than a slot: `wait` leads on; `held` is what it ends as if it is given up."""

    wait: Callable[[], Coroutine[Any, Any, "NextStep"]]
    held: RequestResult
    work: "asyncio.Task[Any] | None" = None
    """What goes on meanwhile, to be cancelled if the row is given up."""

    def drop(self) -> RequestResult:
        """Give the row up."""
        if self.work is not None:
            self.work.cancel()
        return self.held


NextStep = RequestResult | Retry | Defer
