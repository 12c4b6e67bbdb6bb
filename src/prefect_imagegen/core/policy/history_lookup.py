"""When to look into the request history for a call that got no answer, and what it proves. Pure.

Source: the pay-once protocol (docs/design/pay-once.md). What cannot be told from the call looked for is never absent.
"""

import hashlib
import html
import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from prefect_imagegen.core.ledger.events import Claim
from prefect_imagegen.core.request.models import MODELS
from prefect_imagegen.core.request.request import plain_number

OnUnknown = Literal["reconcile", "retry-once", "hold"]
Verdict = Literal["same", "differs", "unclear"]
DEFAULT_LAG_S = 7200.0
"""Segmind publishes no lag of its history; an old help page speaks of up to two hours."""
_EARLY_LOOKS = (30.0, 120.0)
_CLOCKS_AGREE = timedelta(minutes=10)
_CLOCKS_UNKNOWN = timedelta(days=1)
"""How far the times of a claim and of the history may lie apart, where the API's clock was known, and where not."""
_QUERY_EARLIER = timedelta(days=1)
_ZONES = timedelta(hours=14)
"""How far a time without a zone may be from UTC."""
_LOST = "\ufffd"
_CUT_FROM = 64
"""A shorter text is not taken for the beginning of a longer one, unless it says so."""
_EXACT = 2**53
_DOUBLE_DIGITS, _FEW_DIGITS = 1e-15, 1e-6
"""How close numbers lie that are one, in another form."""
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_STATUS_ORDER = ("COMPLETED", "PENDING", "FAILED")


def next_look(looked: float | None, lag: float) -> float | None:
    """The age at which the next look is due, the last one having been made at the age `looked`; None: no more.

    Looks later than the lag fall away; the one at the lag is the last, and the only one that proves absence.
    """
    for due in (*(look for look in _EARLY_LOOKS if look < lag), lag):
        if looked is None or due > looked:
            return due
    return None


@dataclass(frozen=True, slots=True)
class Window:
    """When a call can have been made, by the API's clock, and the day and more before it from which on to search."""

    first: datetime
    last: datetime

    @property
    def since(self) -> datetime:
        """From when on the history is searched."""
        return self.first - _QUERY_EARLIER

    def takes(self, created: datetime | None, *, zoned: bool) -> bool:
        """Whether a call that was created then can be the one; one without a time can."""
        margin = timedelta() if zoned else _ZONES
        return created is None or self.first - margin <= created <= self.last + margin


def window_of(claim: Claim, stored: datetime | None, sending_s: float) -> Window:
    """When the call of a claim can have been created; its POST ended at most `sending_s` seconds after the claim.

    All clocks that the claim knows count, since any of them may be wrong.
    """
    times = [moment for moment in (claim.time, claim.store_time, claim.api_time, stored) if moment is not None]
    slack = _CLOCKS_UNKNOWN if claim.api_time is None else _CLOCKS_AGREE
    return Window(min(times) - slack, max(times) + timedelta(seconds=sending_s) + slack)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A call of the history that is, or could be, the one looked for. `status` is COMPLETED, FAILED or PENDING."""

    request_id: str | None
    verdict: Verdict
    status: str


@dataclass(frozen=True, slots=True)
class Look:
    """What one look into the history showed: the calls that could be the one, and the ids of all that were listed."""

    candidates: tuple[Candidate, ...] = ()
    shown: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look proves: the call was found (`request_id`, and how many more match), cannot be told, or is absent."""

    request_id: str | None = None
    more: int = 0
    unclear: str | None = None

    @property
    def is_absent(self) -> bool:
        """Whether the history, as it is now, does not know the call."""
        return self.request_id is None and self.unclear is None


def finding_of(look: Look, known: Collection[str], unnamed: int) -> Finding:
    """What a look proves, other calls being `known`.

    Of several matches one that led to an image is taken. So many failed ones as there were earlier calls that were
    answered without a name (`unnamed`) are theirs.
    """
    taken = {request_id.casefold() for request_id in known}
    open_ones = [one for one in look.candidates if one.request_id is None or one.request_id.casefold() not in taken]
    rows = [one for one in open_ones if one.verdict == "same" and one.request_id is not None]
    rows.sort(key=lambda one: _STATUS_ORDER.index(one.status))
    # A call may have several rows: one for each output, or one on each of two pages.
    same = list({one.request_id: one for one in reversed(rows)}.values())[::-1]
    failed = sum(one.status == "FAILED" for one in same)
    if same and (len(same) > failed or failed > unnamed):
        return Finding(same[0].request_id, max(0, len(same) - 1 - failed))
    unclear = [one for one in open_ones if one.verdict == "unclear" or one.request_id is None]
    return Finding(unclear=(unclear[0].request_id or "a call without an id") if unclear else None)


_NAMED = re.compile(r"sha256:[0-9a-f]{64}")


def claim_form(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body as claims hold it: with every reference's address replaced by its SHA-256 (addresses may be signed)."""
    form = dict(body)
    if isinstance(form.get("image_urls"), list):
        form["image_urls"] = [_named(str(url)) for url in form["image_urls"]]
    return form


def _named(url: str) -> str:
    """What stands for an address; a history that keeps no pictures shows it so already."""
    return url if _NAMED.fullmatch(url) else f"sha256:{hashlib.sha256(url.encode()).hexdigest()}"


def compare_calls(seen: Mapping[str, Any] | None, claimed: Mapping[str, Any]) -> Verdict:
    """Whether a body that the history shows is the one of a claim, in every field that was sent.

    One field that certainly differs settles it; a field that is missing, cut off or written in another way does not.
    """
    if not isinstance(seen, Mapping):
        return "unclear"
    form = claim_form(seen)
    verdicts = {_compare(name, form.get(name), value) for name, value in claimed.items()}
    return "differs" if "differs" in verdicts else "unclear" if "unclear" in verdicts or not verdicts else "same"


def compare_models(seen: str, model: str) -> Verdict:
    """Whether a model's name in the history is a slug; a name that is no slug we know may be a way to say it."""
    plain = _letters(seen)
    if plain == _letters(model):
        return "same"
    return "differs" if plain in {_letters(slug) for slug in MODELS} else "unclear"


def same_call(seen: Mapping[str, Any], claimed: Mapping[str, Any]) -> bool:
    """Whether a body that the history shows is for certain the one of a claim."""
    return compare_calls(seen, claimed) == "same"


def ages_of(moments: Sequence[tuple[datetime | None, datetime | None]], seconds: Sequence[float]) -> float:
    """The smallest age in seconds by any clock: pairs of (then, now), and ages measured otherwise.

    A clock by which the claim lies in the future is wrong, and does not count.
    """
    ages = [(now - then).total_seconds() for then, now in moments if then is not None and now is not None]
    return min((age for age in (*ages, *seconds) if age >= 0), default=0.0)


def _compare(name: str, seen: Any, sent: Any) -> Verdict:
    if name == "image_urls":
        return _compare_lists(seen, sent)
    if isinstance(sent, bool):
        value = seen if isinstance(seen, bool) else _BOOLEANS.get(str(seen).strip().lower())
        return "unclear" if value is None else "same" if value == sent else "differs"
    if isinstance(sent, int | float):
        return _compare_numbers(_number(seen), plain_number(sent))
    if isinstance(sent, str):
        return _compare_texts(seen, sent)
    return "same" if seen == sent else "unclear"


def _compare_numbers(seen: float | None, sent: float) -> Verdict:
    if seen is None or not math.isfinite(seen):
        return "unclear"
    if seen == sent:
        return "same"
    # Passed through a number with fewer digits: a long seed through a double, a fraction through 32 bits.
    is_rounded = isinstance(seen, float) or isinstance(sent, float) or abs(sent) > _EXACT
    closeness = _FEW_DIGITS if isinstance(sent, float) else _DOUBLE_DIGITS
    return "unclear" if is_rounded and math.isclose(seen, sent, rel_tol=closeness) else "differs"


def _compare_lists(seen: Any, sent: Any) -> Verdict:
    if seen in (None, "", []) and sent in (None, []):
        return "same"
    if not isinstance(seen, list) or not isinstance(sent, list) or not seen:
        return "unclear"
    if len(seen) != len(sent):
        return "differs"
    # An address may be shown in another form than it was sent in.
    return "same" if seen == sent else "unclear"


def _compare_texts(seen: Any, sent: str) -> Verdict:
    if seen == sent:
        return "same"
    if seen in (None, "") and sent == "":
        return "same"
    if not isinstance(seen, str) or not seen.strip():
        return "unclear"
    # Trimmed, cut off, or in other letters of Unicode.
    shown, whole = _folded(seen), _folded(sent)
    is_cut = shown.endswith(("...", "…")) or len(shown) >= _CUT_FROM
    if shown == whole or (is_cut and whole.startswith(shown.rstrip(".…"))):
        return "unclear"
    # Escaped, stripped of signs, or with letters that could not be stored.
    bare = _letters(shown)
    return "unclear" if not bare or _LOST in shown or bare == _letters(whole) else "differs"


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    for read in (int, float):
        try:
            # An integer that came as text is not read as a float: seeds have more digits than one holds.
            return plain_number(value if not isinstance(value, str) else read(value))  # type: ignore[no-any-return]
        except (ValueError, OverflowError):
            continue
    return None


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", html.unescape(text)).casefold().split())


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
