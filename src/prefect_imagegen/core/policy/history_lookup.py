"""Looking up a call that got no answer in the request history: when, and what a look proves. Pure.

A call that could be the one looked for is never taken for absent.
Source: the pay-once protocol (docs/design/pay-once.md).
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
"""No lag of the history is published; an old help page speaks of up to two hours."""
_EARLY_LOOKS = (30.0, 120.0)
_CLOCKS_AGREE = timedelta(minutes=10)
_CLOCKS_UNKNOWN = timedelta(days=1)
"""How far the times of a claim and of the history may differ: if the API's clock was known, and if it was not."""
_QUERY_EARLIER = timedelta(days=1)
_ZONES = timedelta(hours=14)
"""How far a time without a zone may be from UTC."""
_LOST = "\ufffd"
_CUT_FROM = 64
"""Characters; a shorter text counts as cut off only if it ends in an ellipsis."""
_EXACT = 2**53
_DOUBLE_DIGITS, _FEW_DIGITS = 1e-15, 1e-6
"""The relative difference up to which two numbers may be one number in another form."""
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_STATUS_ORDER = ("COMPLETED", "PENDING", "FAILED")


def next_look(looked: float | None, lag: float) -> float | None:
    """The age of the call, in seconds, at which the next look is due; None after the last.

    `looked` is its age at the last look. The look at the age `lag` is the last, and the only one that proves absence.
    """
    for due in (*(look for look in _EARLY_LOOKS if look < lag), lag):
        if looked is None or due > looked:
            return due
    return None


@dataclass(frozen=True, slots=True)
class Window:
    """The time span, by the API's clock, in which a call can have been created."""

    first: datetime
    last: datetime

    @property
    def since(self) -> datetime:
        """The time from which on the history is searched: a day earlier."""
        return self.first - _QUERY_EARLIER

    def takes(self, created: datetime | None, *, zoned: bool) -> bool:
        """Whether a call created then can be the one looked for; a call without a time can."""
        margin = timedelta() if zoned else _ZONES
        return created is None or self.first - margin <= created <= self.last + margin


def window_of(claim: Claim, stored: datetime | None, sending_s: float) -> Window:
    """The window in which the call of a claim can have been created.

    Its POST ended at most `sending_s` seconds after the claim. The window spans the times by all clocks that the claim
    knows, since any of them may be wrong.
    """
    times = [moment for moment in (claim.time, claim.store_time, claim.api_time, stored) if moment is not None]
    slack = _CLOCKS_UNKNOWN if claim.api_time is None else _CLOCKS_AGREE
    return Window(min(times) - slack, max(times) + timedelta(seconds=sending_s) + slack)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A call in the history that is or could be the one looked for. `status` is COMPLETED, FAILED or PENDING."""

    request_id: str | None
    verdict: Verdict
    status: str


@dataclass(frozen=True, slots=True)
class Look:
    """The result of one look into the history: the calls that could be the one, and the ids of all calls listed."""

    candidates: tuple[Candidate, ...] = ()
    shown: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look proves: the call was found (`request_id`), cannot be told from others, or is absent.

    `more` is the number of further calls that match; `unclear` names a call that could be the one.
    """

    request_id: str | None = None
    more: int = 0
    unclear: str | None = None

    @property
    def is_absent(self) -> bool:
        """Whether the history, as it is now, does not have the call."""
        return self.request_id is None and self.unclear is None


def finding_of(look: Look, known: Collection[str], unnamed: int) -> Finding:
    """What a look proves. `known` are the ids of other calls; `unnamed` counts earlier calls whose id is not known.

    Of several matches one with an image is taken. As many failed matches as there are `unnamed` calls count as those.
    """
    taken = {request_id.casefold() for request_id in known}
    candidates = [
        call for call in look.candidates if call.request_id is None or call.request_id.casefold() not in taken
    ]
    rows = [call for call in candidates if call.verdict == "same" and call.request_id is not None]
    rows.sort(key=lambda call: _STATUS_ORDER.index(call.status))
    # A call may have several rows: one for each output, or the same row on two pages.
    same = list({call.request_id: call for call in reversed(rows)}.values())[::-1]
    failed = sum(call.status == "FAILED" for call in same)
    if same and (len(same) > failed or failed > unnamed):
        return Finding(same[0].request_id, max(0, len(same) - 1 - failed))
    unclear = [call for call in candidates if call.verdict == "unclear" or call.request_id is None]
    return Finding(unclear=(unclear[0].request_id or "a call without an id") if unclear else None)


_NAMED = re.compile(r"sha256:[0-9a-f]{64}")


def claim_form(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body as claims hold it: the address of every reference, which may be signed, is replaced by its SHA-256."""
    form = dict(body)
    if isinstance(form.get("image_urls"), list):
        form["image_urls"] = [_named(str(url)) for url in form["image_urls"]]
    return form


def _named(url: str) -> str:
    """The form of an address in a claim; histories that keep no images show addresses in that form already."""
    return url if _NAMED.fullmatch(url) else f"sha256:{hashlib.sha256(url.encode()).hexdigest()}"


def compare_calls(shown: Mapping[str, Any] | None, claimed: Mapping[str, Any]) -> Verdict:
    """Compare a body that the history shows with that of a claim, in every field that was sent.

    `differs` needs one field that certainly differs; fields that are missing, cut off or written in another form are
    `unclear`.
    """
    if not isinstance(shown, Mapping):
        return "unclear"
    form = claim_form(shown)
    verdicts = {_compare(name, form.get(name), value) for name, value in claimed.items()}
    return "differs" if "differs" in verdicts else "unclear" if "unclear" in verdicts or not verdicts else "same"


def compare_models(shown: str, model: str) -> Verdict:
    """Compare a model's name in the history with a slug; a name that is no known slug is `unclear`."""
    plain = _letters(shown)
    if plain == _letters(model):
        return "same"
    return "differs" if plain in {_letters(slug) for slug in MODELS} else "unclear"


def same_call(shown: Mapping[str, Any], claimed: Mapping[str, Any]) -> bool:
    """Whether a body that the history shows is certainly that of a claim."""
    return compare_calls(shown, claimed) == "same"


def ages_of(moments: Sequence[tuple[datetime | None, datetime | None]], seconds: Sequence[float]) -> float:
    """The smallest age in seconds by any clock: from pairs of (then, now), and from ages measured otherwise.

    A clock by which the claim was made in the future is wrong, and does not count.
    """
    ages = [(now - then).total_seconds() for then, now in moments if then is not None and now is not None]
    return min((age for age in (*ages, *seconds) if age >= 0), default=0.0)


def _compare(name: str, shown: Any, sent: Any) -> Verdict:
    if name == "image_urls":
        return _compare_lists(shown, sent)
    if isinstance(sent, bool):
        value = shown if isinstance(shown, bool) else _BOOLEANS.get(str(shown).strip().lower())
        return "unclear" if value is None else "same" if value == sent else "differs"
    if isinstance(sent, int | float):
        return _compare_numbers(_number(shown), plain_number(sent))
    if isinstance(sent, str):
        return _compare_texts(shown, sent)
    return "same" if shown == sent else "unclear"


def _compare_numbers(shown: float | None, sent: float) -> Verdict:
    if shown is None or not math.isfinite(shown):
        return "unclear"
    if shown == sent:
        return "same"
    # Passed through a number with fewer digits: a long seed through a double, a fraction through 32 bits.
    is_rounded = isinstance(shown, float) or isinstance(sent, float) or abs(sent) > _EXACT
    closeness = _FEW_DIGITS if isinstance(sent, float) else _DOUBLE_DIGITS
    return "unclear" if is_rounded and math.isclose(shown, sent, rel_tol=closeness) else "differs"


def _compare_lists(shown: Any, sent: Any) -> Verdict:
    if shown in (None, "", []) and sent in (None, []):
        return "same"
    if not isinstance(shown, list) or not isinstance(sent, list) or not shown:
        return "unclear"
    if len(shown) != len(sent):
        return "differs"
    # An address may be shown in another form than it was sent in.
    return "same" if shown == sent else "unclear"


def _compare_texts(shown: Any, sent: str) -> Verdict:
    if shown == sent:
        return "same"
    if shown in (None, "") and sent == "":
        return "same"
    if not isinstance(shown, str) or not shown.strip():
        return "unclear"
    # Trimmed, cut off, or in other letters of Unicode.
    shown_text, whole = _folded(shown), _folded(sent)
    is_cut = shown_text.endswith(("...", "…")) or len(shown_text) >= _CUT_FROM
    if shown_text == whole or (is_cut and whole.startswith(shown_text.rstrip(".…"))):
        return "unclear"
    # Escaped, stripped of signs, or with letters that could not be stored.
    bare = _letters(shown_text)
    return "unclear" if not bare or _LOST in shown_text or bare == _letters(whole) else "differs"


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
