"""What the outcome of a call means: one table decides about retries, stops and money."""

import pytest

from prefect_imagegen.core.policy.classify import classify_answer, classify_failure, classify_refusal, is_fetch_failure
from prefect_imagegen.core.policy.outcomes import HELD_KINDS, OUTCOMES, is_permanent


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "malformed body", "invalid_request"),
        (401, "Unauthorized. API key is invalid or may have expired", "auth"),
        (402, "", "credits"),
        (403, "model not allowed for your team", "model_unavailable"),
        (404, "model not found", "model_unavailable"),
        (405, "<html>", "protocol"),
        (406, "Insufficient credits: balance 0.01, need 0.04", "credits"),
        (406, "Your team's spend limit is reached", "credits"),
        (406, "Invalid content type", "invalid_request"),
        (406, "aspect_ratio: value not allowed", "invalid_request"),
        (408, "", "unavailable"),
        (410, "retired", "model_unavailable"),
        (413, "too large", "invalid_request"),
        (422, "Validation Error", "invalid_request"),
        (422, "prompt violates our content policy", "content_policy"),
        (400, "NSFW content detected", "content_policy"),
        (429, "rate_limit_exceeded", "rate_limited"),
        (500, "internal", "server_error"),
        (502, "Bad Gateway", "unavailable"),
        (503, "", "unavailable"),
        (504, "Timeout", "unavailable"),
        (529, "", "unavailable"),
        (201, "", "protocol"),
        (204, "", "protocol"),
        (302, "", "protocol"),
        (307, "", "protocol"),
    ],
)
def test_every_status_has_its_kind(status, text, kind) -> None:
    """Status and text of an answer give its kind, by Segmind's error table."""
    assert classify_answer(status, text) == kind


def test_no_status_is_without_a_row() -> None:
    """Whatever status comes, its kind is a row of the table."""
    statuses = [status for status in range(100, 1000) if status != 200]
    texts = ["", "content policy", "credit", "internal"]
    assert {classify_answer(status, text) for status in statuses for text in texts} <= set(OUTCOMES)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Prompt is Mandatory and must be string", "generation_failed"),
        ("rejected by safety moderation", "content_policy"),
        ("NSFW", "content_policy"),
        ("CUDA out of memory", "generation_error"),
        ("worker timed out", "generation_error"),
        ("Internal error, please try again", "generation_error"),
        ("no capacity", "generation_error"),
        ("", "generation_failed"),
        ("Content policy violation", "content_policy"),
        ("content_policy_violation", "content_policy"),
        ("The safety system flagged this prompt", "content_policy"),
        ("This prompt may be against our community guidelines", "content_policy"),
        ("explicit content detected by the GPU worker", "content_policy"),
        ("Unable to download content from image_urls[0]: 403", "generation_failed"),
        ("the bucket policy denies access to https://host/a.png", "generation_failed"),
        ("The content moderation service timed out", "generation_error"),
        ("NSFW checker unavailable", "generation_error"),
        ("the safety checker ran out of memory on the gpu", "generation_error"),
    ],
)
def test_a_failed_job_is_told_by_its_text(text, kind) -> None:
    """A FAILED job is a policy matter, infrastructure (tried again) or the row's own fault."""
    assert classify_failure(text) == kind


def test_a_wrong_content_type_is_no_policy() -> None:
    """The word content in 'content type' is about the body, not about what it shows."""
    assert classify_refusal("Invalid Content Type") == "invalid_request"
    assert classify_refusal("content-length does not match the content") == "invalid_request"


def test_a_field_of_that_name_is_no_policy() -> None:
    """A field whose name has to do with safety is a field."""
    assert classify_refusal("safety_tolerance: 9 is not allowed") == "invalid_request"


# kind: accepted, billed, retryable, scope, max_posts, counted, permanent
TABLE = {
    "unsent": ("no", "no", True, "row", 5, False, False),
    "rate_limited": ("no", "no", True, "row", 5, False, False),
    "server_error": ("answered_5xx", "maybe", True, "row", 3, True, False),
    "unavailable": ("answered_5xx", "maybe", True, "row", 5, True, False),
    "generation_failed": ("yes", "no", False, "row", 5, True, True),
    "generation_error": ("yes", "no", True, "row", 5, True, False),
    "billed_failure": ("yes", "yes", False, "row", 5, True, True),
    "reference_unfetched": ("yes", "no", True, "row", 2, True, False),
    "reference_unreadable": ("no", "no", True, "row", 5, True, False),
    "reference_busy": ("no", "no", True, "row", 5, True, False),
    "upload_failed": ("no", "no", True, "row", 5, True, False),
    "content_policy": ("yes", "no", False, "row", 5, True, True),
    "invalid_request": ("no", "no", False, "row", 5, True, True),
    "bad_output": ("yes", "yes", False, "row", 5, True, True),
    "output_lost": ("yes", "yes", False, "row", 5, True, True),
    "image_damaged": ("yes", "no", True, "row", 1, True, False),
    "model_unavailable": ("no", "no", False, "model", 5, True, False),
    "auth": ("no", "no", False, "run", 5, True, False),
    "credits": ("no", "no", False, "run", 5, True, False),
    "protocol": ("no", "no", False, "run", 5, True, False),
    "sandbox_mismatch": ("yes", "maybe", False, "run", 5, True, False),
    "unknown": ("unknown", "maybe", False, "row", 5, True, False),
    "no_history": ("unknown", "maybe", False, "row", 5, True, False),
    "not_accepted": ("no", "no", True, "row", 5, True, False),
    "sent_again": ("unknown", "maybe", True, "row", 5, True, False),
    "retry_asked": ("unknown", "maybe", True, "row", 5, True, False),
    "submitted": ("yes", "yes", False, "row", 5, True, False),
    "outcome_unknown": ("unknown", "maybe", False, "row", 5, True, True),
    "other_account": ("unknown", "maybe", False, "row", 5, True, False),
    "internal": ("no", "no", True, "row", 5, True, False),
    "other_run": ("unknown", "no", False, "row", 5, True, False),
    "worker_lost": ("no", "no", True, "row", 5, True, False),
    "worker_failed": ("no", "no", True, "row", 3, True, False),
    "worker_busy": ("no", "no", True, "row", 5, False, False),
    "no_worker": ("no", "no", False, "run", 5, True, False),
    "store": ("no", "no", False, "run", 5, True, False),
}


def test_the_table_is_this_one() -> None:
    """Each kind's money and retry rules are exactly these: a change of the table is a change of policy."""
    rules = {
        kind: (
            row.accepted,
            row.billed,
            row.retryable,
            row.scope,
            row.max_posts,
            row.counts_as_attempt,
            is_permanent(kind),
        )
        for kind, row in OUTCOMES.items()
    }
    assert rules == TABLE


def test_every_row_speaks_to_people() -> None:
    """Each row has a meaning and a remedy in words, and stands under its own kind."""
    for kind, row in OUTCOMES.items():
        assert row.kind == kind
        assert row.meaning
        assert row.remedy.endswith(".")


def test_only_429_slows_everybody() -> None:
    """A 429 alone pauses all calls; other failures concern their own row."""
    assert [kind for kind, row in OUTCOMES.items() if row.slows] == ["rate_limited"]


def test_what_may_be_paid_is_never_asked_again_by_guess() -> None:
    """What may have been taken is asked again only after an answered 5xx, a failure, or on the user's own decision."""
    retried = {kind for kind, row in OUTCOMES.items() if row.retryable and row.accepted != "no"}
    told_failures = {"server_error", "unavailable", "generation_error", "reference_unfetched"}
    # A damaged image is no call: the next run looks at the store again.
    assert retried == told_failures | {"sent_again", "retry_asked", "image_damaged"}
    assert not any(OUTCOMES[kind].retryable for kind in HELD_KINDS)


def test_held_kinds_are_rows() -> None:
    """Every kind that holds a row is in the table, and none of them is permanent."""
    assert {"unknown", "no_history", "submitted", "other_run", "other_account"} == HELD_KINDS
    assert set(OUTCOMES) >= HELD_KINDS
    assert not any(map(is_permanent, HELD_KINDS))


def test_an_unheard_of_kind_is_not_permanent() -> None:
    """A kind that a newer version wrote is tried again rather than given up."""
    assert not is_permanent("something_new")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image 1 of image_urls could not be fetched", True),
        ("Failed to download image from URL", True),
        ("Cannot access input: 403 Forbidden", True),
        ("https://host/a.png answered with status 404.", True),
        ("http://127.0.0.1:8000/a.png: 127.0.0.1 is not a public address.", True),
        ("Unable to download content from image_urls[0]: 403", True),
        ("the bucket policy denies access to https://host/a.png", True),
        ("CUDA out of memory", False),
        ("Prompt is Mandatory and must be string", False),
        ("seed must be an integer", False),
    ],
)
def test_failures_that_are_about_fetching(text: str, expected: bool) -> None:
    """A failure to fetch a reference is told by its words, and only where the API had accepted or refused a call."""
    assert is_fetch_failure(classify_failure(text), text) is expected
    assert not is_fetch_failure("content_policy", text)
    assert not is_fetch_failure("unknown", text)


def test_what_may_have_been_paid_says_so() -> None:
    """No kind of an attempt that the API may have taken, and that has no certain end, is told to be free."""
    no_end = {kind for kind, row in OUTCOMES.items() if row.accepted == "unknown"} - {"other_run"}
    assert all(OUTCOMES[kind].billed == "maybe" for kind in no_end)
    assert {kind for kind, row in OUTCOMES.items() if row.billed == "yes"} == {
        *("bad_output", "output_lost", "submitted", "billed_failure")
    }


def test_an_unknown_outcome_is_never_sent_again_by_itself() -> None:
    """After a month an outcome that nobody can tell is closed for good: permanent, and never retried."""
    assert is_permanent("outcome_unknown")
    assert not OUTCOMES["outcome_unknown"].retryable
    assert all("resend" in OUTCOMES[kind].remedy for kind in ("outcome_unknown", "other_account", "output_lost"))
