"""Which kind of failure an answer of the API is, by its HTTP status and its error text.

Source: the API's error documentation, and error texts of its public users.
"""

import re

_POLICY = re.compile(
    r"nsfw|content[ _-]?(polic|filter|guideline|moderat|violation)|(inappropriate|explicit|unsafe|harmful|prohibited|"
    r"sensitive|sexual|adult) (content|image|material|prompt)",
    re.IGNORECASE,
)
"""Words that mean a content policy by themselves. 'content' alone does not: content is also downloaded, or typed."""
_POLICY_PLACE = re.compile(
    r"safety(?!_tolerance)|moderat|(usage|use|community|our|platform) (polic|guideline)|terms of (use|service)",
    re.IGNORECASE,
)
"""Words that mean a content policy only together with a verdict."""
_VERDICT = re.compile(
    r"violat|block|flag|reject|refus|detect|not allowed|disallow|prohibit|against|den(y|ied)|declin", re.IGNORECASE
)
_INFRASTRUCTURE = re.compile(
    r"time.?out|timed out|unavailable|internal|out of memory|cuda|oom|gpu|worker|overload|try again|capacity",
    re.IGNORECASE,
)
_FETCH = re.compile(
    r"fetch|download|retriev|load|access|reach|forbidden|redirect|public|status [45]\d\d|\b40[34]\b", re.IGNORECASE
)
_PICTURE = re.compile(r"image|url|reference|input|https?://", re.IGNORECASE)
_CREDITS = re.compile(r"credit|balance|spend|limit|billing|payment", re.IGNORECASE)
_ANSWERED = {402: "credits", 403: "model_unavailable", 404: "model_unavailable", 410: "model_unavailable"}
_ANSWERED |= {401: "auth", 429: "rate_limited", 405: "protocol", 408: "unavailable"}


def classify_answer(status: int, text: str) -> str:
    """The error kind of an answer to a submit, from its HTTP status (any but 200) and its error text."""
    if status in _ANSWERED:
        return _ANSWERED[status]
    if status == 406 and _CREDITS.search(text):
        return "credits"
    if status == 500:
        return "server_error"
    if status > 500:
        return "unavailable"
    if status >= 400:
        return classify_refusal(text)
    return "protocol"


def classify_refusal(text: str) -> str:
    """The error kind of a 4xx about the request's content: `content_policy` or `invalid_request`."""
    return "content_policy" if _is_policy(text) else "invalid_request"


def is_fetch_failure(kind: str, text: str) -> bool:
    """Whether the error of a refused or failed call says that the API could not fetch a reference from its address."""
    plain = kind in ("generation_failed", "generation_error", "invalid_request")
    return plain and bool(_FETCH.search(text) and _PICTURE.search(text))


def classify_failure(text: str) -> str:
    """The error kind of a job that the API reports as FAILED, from its error text."""
    if _is_policy(text):
        return "content_policy"
    if _INFRASTRUCTURE.search(text):
        return "generation_error"
    return "generation_failed"


def _is_policy(text: str) -> bool:
    """Whether a text says that a content policy refused something, not that the policy's checker failed."""
    has_verdict = _VERDICT.search(text) is not None
    if _POLICY.search(text):
        return has_verdict or not _INFRASTRUCTURE.search(text)
    return has_verdict and _POLICY_PLACE.search(text) is not None
