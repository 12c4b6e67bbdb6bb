"""When to look into the request history for a call that got no answer, and how to tell it there. Pure.

Source: the pay-once protocol (docs/pay-once.md). Ages are in seconds of the store's clock since the claim was put.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from prefect_imagegen.core.request import plain_number

OnUnknown = Literal["reconcile", "retry-once", "hold"]
DEFAULT_LAG_S = 7200.0
"""Segmind publishes no lag of its history; an old help page speaks of up to two hours."""
_EARLY_LOOKS = (30.0, 120.0)


def next_look(looked: float | None, lag: float) -> float | None:
    """The age at which the next look is due, the last one having been made at the age `looked`; None: no more.

    Looks later than the lag fall away; the one at the lag is the last, and the only one that proves absence.
    """
    for due in (*(look for look in _EARLY_LOOKS if look < lag), lag):
        if looked is None or due > looked:
            return due
    return None


def claim_form(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body as claims hold it: with every reference's address replaced by its SHA-256 (addresses may be signed)."""
    form = dict(body)
    if isinstance(form.get("image_urls"), list):
        form["image_urls"] = [f"sha256:{hashlib.sha256(str(url).encode()).hexdigest()}" for url in form["image_urls"]]
    return form


def same_call(seen: Mapping[str, Any], claimed: Mapping[str, Any]) -> bool:
    """Whether a body that the history shows is the one of a claim: equal in every field that was sent."""
    form = claim_form(seen)
    return all(_equal(form.get(name), value) for name, value in claimed.items())


def _equal(seen: Any, sent: Any) -> bool:
    return bool(plain_number(seen) == plain_number(sent)) or (sent in ([], None) and seen in ([], None, ""))
