"""What a provider can do, as it declares it. Everything that depends on the provider asks this, never its name."""

from dataclasses import dataclass
from datetime import timedelta

COSTS_UNNAMED = "answers name no costs, so a cap is held against published or assumed prices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a provider can do. What it cannot is a state of its own: without a history no lost call is looked up."""

    claims: bool = True
    """Whether calls cost money: each has a claim then, and a lost one is never repeated on a guess."""
    queue: bool = False
    """Whether a POST only queues the work: it may be accepted despite a 5xx, and the job outlives the connection.
    Otherwise the answer is the image, and only a 200 is billed."""
    history: bool = False
    """Whether calls can be looked up afterwards, by their body and by their id (`PaidAccount.find` and the rest)."""
    balance: bool = False
    """Whether a free call proves the key and tells the balance (`PaidAccount.check`)."""
    uploads: bool = False
    """Whether references can be uploaded (`PaidAccount.upload`)."""
    reference_urls: bool = True
    """Whether references may be sent as addresses; otherwise they always travel inside the call."""
    cost_in_answer: bool = False
    """Whether the answers name what they cost; otherwise `doctor` and plans with a cap say `COSTS_UNNAMED`."""
    idempotency_key: bool = False
    """Whether two POSTs with the same idempotency key, sent within a minute, are one call."""
    outputs_live: timedelta | None = None
    """The time after which the outputs of a call are surely gone; None if they are never given up."""
    key_scope: str | None = None
    """Enters the request key as `provider`, so that two sellers of one slug never share images. None adds nothing."""


FREE = Abilities(claims=False, reference_urls=False, cost_in_answer=True)
"""The abilities of GPU workers: calls cost nothing, so nothing has to be looked up."""
