"""The table of outcomes: what each kind of failure means for retries, for the run and for money.

Sources: the error documentation of the APIs, and the pay-once protocol (docs/design/pay-once.md).
"""

from dataclasses import dataclass
from typing import Literal

Accepted = Literal["no", "answered_5xx", "unknown", "yes"]
Billed = Literal["no", "maybe", "yes"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One kind of failure, and what follows from it.

    `accepted`: whether the provider may have taken the work. `billed`: whether the attempt costs money.
    `retryable`: whether the same row may be sent again. `scope`: what the failure ends. `max_posts`: the number of
    POSTs of one row in one run that may end like this. `counts_as_attempt`: whether the POST counts against
    `max_posts` and --max-attempts. `slows`: whether all senders of the run pause.
    """

    kind: str
    accepted: Accepted
    meaning: str
    remedy: str
    billed: Billed = "no"
    retryable: bool = False
    scope: Literal["row", "model", "run"] = "row"
    max_posts: int = 5
    counts_as_attempt: bool = True
    slows: bool = False


_ROWS = (
    Outcome(
        "unsent",
        "no",
        "no connection: DNS, refused, TLS or connect time-out; nothing was sent",
        "Check the base URL and the network; the run tries again until --deadline passes without progress.",
        retryable=True,
        counts_as_attempt=False,
    ),
    Outcome(
        "rate_limited",
        "no",
        "429: too many requests per minute",
        "Lower --requests-per-minute to your plan's limit; the run waits and goes on by itself.",
        retryable=True,
        counts_as_attempt=False,
        slows=True,
    ),
    Outcome(
        "server_error",
        "answered_5xx",
        "500: an internal error, also the usual face of a bad parameter",
        "Tried at most 3 times; the next run tries once more. Look at the row's parameters.",
        retryable=True,
        max_posts=3,
        billed="maybe",
    ),
    Outcome(
        "unavailable",
        "answered_5xx",
        "502, 503 or 504: the API is temporarily unavailable",
        "Run the same command again later.",
        retryable=True,
        billed="maybe",
    ),
    Outcome(
        "generation_failed",
        "yes",
        "the API accepted the request and reported that the generation failed (not billed)",
        "Look at the message and change the row; an infrastructure failure is tried again.",
    ),
    Outcome(
        "generation_error",
        "yes",
        "the generation failed for a reason that looks like infrastructure (not billed)",
        "Tried again by itself; run the same command again later.",
        retryable=True,
    ),
    Outcome(
        "billed_failure",
        "yes",
        "the generation failed for a reason that may pass, but the answer names a cost: it was billed all the same",
        "Ask the API's support with the request_id. `resend` buys it again.",
        billed="yes",
    ),
    Outcome(
        "reference_unfetched",
        "yes",
        "the API could not fetch a reference from its address (not billed)",
        "Uploaded and tried again by itself, once.",
        retryable=True,
        max_posts=2,
    ),
    Outcome(
        "reference_unreadable",
        "no",
        "a reference could not be read, or has changed since the run was planned; nothing was called",
        "Look at the message, then run the same command again.",
        retryable=True,
    ),
    Outcome(
        "reference_busy",
        "no",
        "the host of a reference was busy or out of reach; nothing is known to be wrong, and nothing was called",
        "Run the same command again later.",
        retryable=True,
    ),
    Outcome(
        "upload_failed",
        "no",
        "a reference could not be uploaded; nothing was called",
        "Run the same command again, or use --reference-transport presign or data-url.",
        retryable=True,
    ),
    Outcome(
        "content_policy",
        "yes",
        "the prompt or a reference was rejected by a content policy",
        "Change the prompt or the reference.",
    ),
    Outcome(
        "invalid_request",
        "no",
        "400, 406 or 422: the API refuses the request's content",
        "Change the row as the message says.",
    ),
    Outcome(
        "bad_output",
        "yes",
        "what was delivered is empty, truncated or no image, until outputs are deleted",
        "The call was paid; ask the API's support with the request_id. `resend` buys it again.",
        billed="yes",
    ),
    Outcome(
        "output_lost",
        "yes",
        "the record and the history no longer give the result: its outputs are deleted by now",
        "The call was paid; ask the API's support with the request_id. `resend` buys it again.",
        billed="yes",
    ),
    Outcome(
        "image_damaged",
        "yes",
        "the store's image of this request is damaged or was quarantined",
        "Run `prefect-imagegen verify --repair`, then the same command again.",
        retryable=True,
        max_posts=1,
    ),
    Outcome(
        "model_unavailable",
        "no",
        "403, 404 or 410: this model is unknown, retired or not allowed for the account",
        "Check --model and the account; further rows of the model fail without a call.",
        scope="model",
    ),
    Outcome(
        "auth",
        "no",
        "401: the API key is missing, wrong or expired",
        "Set the API key (the provider's environment variable, or the block's api_key) and run the same command again.",
        scope="run",
    ),
    Outcome(
        "credits",
        "no",
        "402 or 406: the balance does not cover the call, or a spending limit is reached",
        "Top up or raise the limit, then run the same command again.",
        scope="run",
    ),
    Outcome(
        "protocol",
        "no",
        "the endpoint does not speak the API: a redirect, a wrong method, or an answer of another service",
        "Check --base-url.",
        scope="run",
    ),
    Outcome(
        "sandbox_mismatch",
        "yes",
        "a sandbox answered in a real run, or a real endpoint in a sandbox run",
        "Check --base-url and --store: sandbox images never enter a real store.",
        scope="run",
        billed="maybe",
    ),
    Outcome(
        "unknown",
        "unknown",
        "the call was sent and no answer came; the API may have taken it",
        "Run the same command again: it asks the request history; after --history-lag it knows.",
        billed="maybe",
    ),
    Outcome(
        "no_history",
        "unknown",
        "the call was sent, its end is not known, and the provider keeps no request history to look it up in",
        "Look on the provider's own pages whether it was billed; `prefect-imagegen resend` sends it again, at the risk "
        "of paying twice.",
        billed="maybe",
    ),
    Outcome(
        "not_accepted",
        "no",
        "no answer came, and after its lag the request history does not know the call: it was not accepted",
        "Sent again by itself.",
        retryable=True,
    ),
    Outcome(
        "sent_again",
        "unknown",
        "no answer came, and --on-unknown retry-once had the call sent again",
        "It may have been paid twice: `prefect-imagegen reconcile` tells.",
        billed="maybe",
        retryable=True,
    ),
    Outcome(
        "retry_asked",
        "unknown",
        "`prefect-imagegen resend` gave the row free again",
        "Run the same command again.",
        billed="maybe",
        retryable=True,
    ),
    Outcome(
        "submitted",
        "yes",
        "the call was accepted and its result was not fetched yet",
        "Run the same command again: it fetches the result without paying again.",
        billed="yes",
    ),
    Outcome(
        "outcome_unknown",
        "unknown",
        "no answer came, and a month later the request history still does not tell whether the call was accepted",
        "Look at the request_id in the message; `prefect-imagegen resend` sends it again, at the risk of paying twice.",
        billed="maybe",
    ),
    Outcome(
        "other_account",
        "unknown",
        "the call was sent with the key of another account, or of one that is not known: only that key can look it up",
        "Run with the old key, or `prefect-imagegen resend`, at the risk of paying twice.",
        billed="maybe",
    ),
    Outcome(
        "internal",
        "no",
        "an unexpected error of this program about one row, before its call was sent",
        "Report it with its traceback from the log; the next run tries again.",
        retryable=True,
    ),
    Outcome(
        "other_run",
        "unknown",
        "another run has claimed the request and has not finished it",
        "Run the same command again when that run has ended.",
    ),
    Outcome(
        "worker_lost",
        "no",
        "a GPU worker died, hung up, was not ready, or did not answer in time; another one is asked at once",
        "Look at the worker; run the same command again.",
        retryable=True,
    ),
    Outcome(
        "worker_failed",
        "no",
        "a GPU worker answered with an internal error, or with something other than the image asked for",
        "Look at the worker's log; run the same command again.",
        retryable=True,
        max_posts=3,
    ),
    Outcome(
        "worker_busy",
        "no",
        "a GPU worker's queue is full; another one is asked",
        "Lower --endpoint-limit.",
        retryable=True,
        counts_as_attempt=False,
    ),
    Outcome(
        "no_worker",
        "no",
        "no GPU worker of the pool was healthy for --deadline seconds",
        "Start the workers, then run the same command again.",
        scope="run",
    ),
    Outcome(
        "store",
        "no",
        "the store could not be written",
        "Check the store, then run the same command again.",
        scope="run",
    ),
)
OUTCOMES: dict[str, Outcome] = {row.kind: row for row in _ROWS}
HELD_KINDS = frozenset({"unknown", "no_history", "submitted", "other_run", "other_account"})
"""Kinds that end a row as `held`: it was sent, or another run has claimed it, and its end is not known yet."""


def is_permanent(kind: str) -> bool:
    """Whether a row that failed like this stays failed, without a call, until it is edited or resent by hand."""
    outcome = OUTCOMES.get(kind)
    return outcome is not None and not outcome.retryable and outcome.scope == "row" and kind not in HELD_KINDS
