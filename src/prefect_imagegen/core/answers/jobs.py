"""Answers about a v2 job: its state, its images, and what the API measured."""

from dataclasses import dataclass, field
from typing import Any

from prefect_imagegen.core.answers.json_values import error_of, is_same_id, parse_integer, parse_number
from prefect_imagegen.core.answers.outputs import Output, outputs_of

_DONE = frozenset({"COMPLETED", "SUCCESS", "SUCCEEDED"})
_UNDER_WAY = frozenset({"QUEUED", "PROCESSING", "PENDING", "IN_QUEUE", "IN_PROGRESS", "STARTING", "RUNNING"})
_JOB_STATUSES = (200, 422)
"""The HTTP statuses of an answer about a job: 422 comes with FAILED."""
_LONGEST_QUEUE_S = 86_400.0
"""Longer times in a queue are no times: the API forgets a job after an hour."""
_OUTPUT_NAMES = ("output", "images", "image_url", "output_url", "data")


@dataclass(frozen=True, slots=True)
class JobAnswer:
    """An answer about a v2 job: its state (COMPLETED, FAILED or PENDING), images, cost and measurements.

    `latency_s` is the API's own generation time in seconds, `queue_s` the seconds that the job waited before it;
    `metrics` holds everything it measured.
    """

    state: str
    error: str | None = None
    outputs: tuple[Output, ...] = ()
    """One for each image; empty as long as the answer names none."""
    is_known: bool = True
    """Whether the API's word for the state is a known one; an unknown word counts as PENDING."""
    seed: int | None = None
    cost_usd: float | None = None
    latency_s: float | None = None
    queue_s: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


def job_of(value: Any, *, status: int = 200, request_id: str | None = None) -> JobAnswer | None:
    """The job that a v2 status or result body describes; None if the body does not describe it, and proves nothing.

    A body counts only with HTTP status 200 or 422, and if it names our `request_id` or no id. Only FAILED and the
    words for 'done' are final states.
    """
    if status not in _JOB_STATUSES or not isinstance(value, dict) or not isinstance(value.get("status"), str):
        return None
    named = value.get("request_id")
    if request_id is not None and named is not None and not is_same_id(named, request_id):
        return None
    state = value["status"].upper()
    metrics = value.get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    facts: dict[str, Any] = {
        "seed": parse_integer(value.get("seed")),
        "cost_usd": parse_number(metrics.get("cost")),
        "latency_s": parse_number(metrics.get("total_time")) or parse_number(metrics.get("inference_time")),
        "queue_s": _queue_seconds(metrics.get("queue_time")),
        "metrics": metrics,
    }
    if state == "FAILED":
        return JobAnswer("FAILED", error=error_of(value) or "the API gave no reason", **facts)
    if state in _DONE:
        outputs = outputs_of(value) if any(value.get(name) for name in _OUTPUT_NAMES) else ()
        return JobAnswer("COMPLETED", outputs=tuple(output for output in outputs if output.error is None), **facts)
    return JobAnswer("PENDING", is_known=state in _UNDER_WAY, **facts)


def _queue_seconds(value: Any) -> float | None:
    """A time in a queue in seconds; None for anything that cannot be one."""
    seconds = parse_number(value)
    return seconds if seconds is not None and seconds <= _LONGEST_QUEUE_S else None
