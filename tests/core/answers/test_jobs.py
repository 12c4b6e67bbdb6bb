"""Jobs in answers: their state, their metrics, and what an error says."""

import json

import pytest

from prefect_imagegen.core.answers.history import detail_rows, parse_inputs
from prefect_imagegen.core.answers.jobs import job_of
from prefect_imagegen.core.answers.json_values import error_text, parse_json, parse_number
from prefect_imagegen.core.answers.outputs import Output
from tests.core.answers.conftest import ID, URL


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": "Request x not found"}', "Request x not found"),
        (b'{"error": {"code": 1, "message": "deep"}}', "deep"),
        (b'{"detail": "Not authenticated"}', "Not authenticated"),
        (b'{"detail": [{"loc": ["body"], "msg": "field required"}, {"msg": "bad"}]}', "field required; bad"),
        (b'{"message": "slow down"}', "slow down"),
        (b'{"error": "  ", "message": "second"}', "second"),
        (b'"plain"', "plain"),
        (b"<html><h1>405 Not Allowed</h1></html>", "405 Not Allowed"),
        (b"Bad Gateway", "Bad Gateway"),
        (b"", "no text"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"[" * 400 + b"]" * 400, "[" * 400 + "]" * 400),
    ],
)
def test_the_error_text_of_every_body(body, text) -> None:
    """The reason is found under error, detail or message, nested or not; text and HTML are shown as they are."""
    assert error_text(body) == text


RESULT = {
    "status": "COMPLETED",
    "output": URL,
    "seed": "7",
    "prompt": "a red cup",
    "error": None,
    "images": [{"url": URL, "content_type": "image/png", "file_name": "ab12.png", "file_size": "1450316"}],
    "timings": {},
    "metrics": {
        "cost": 0.0402,
        "remaining_credits": 12.27,
        "inference_time": 15.4,
        "queue_time": 0.3,
        "total_time": 15.8,
    },
}


def test_a_whole_result_is_read() -> None:
    """A result gives the output, the seed that came as text, the cost and the API's own time."""
    job = job_of(RESULT)
    assert (job.state, job.outputs, job.error) == ("COMPLETED", (Output(url=URL),), None)
    assert (job.seed, job.cost_usd, job.latency_s) == (7, 0.0402, 15.8)
    assert job.metrics == RESULT["metrics"]


@pytest.mark.parametrize("more", [{}, {"output": None}, {"output": []}, {"images": []}, {"output": "soon"}], ids=str)
def test_a_finished_status_has_no_output_yet(more) -> None:
    """A COMPLETED that names no output is no failure: it has none yet; older metrics have the inference time only."""
    job = job_of({"status": "COMPLETED", "request_id": ID, "metrics": {"inference_time": 13.06}, **more})
    assert (job.state, job.outputs, job.latency_s, job.cost_usd) == ("COMPLETED", (), 13.06, None)


@pytest.mark.parametrize("word", ["FAILED", "failed"])
@pytest.mark.parametrize("status", [200, 422])
def test_a_failed_job_gives_its_reason(word, status) -> None:
    """FAILED in the body of a 200 or 422 is a failure, with the API's reason."""
    body = {"status": word, "error": "Prompt is Mandatory and must be string", "metrics": {"inference_time": 0.007}}
    job = job_of(body, status=status)
    assert (job.state, job.error) == ("FAILED", "Prompt is Mandatory and must be string")
    assert job_of({"status": word}).error == "the API gave no reason"


@pytest.mark.parametrize("word", ["QUEUED", "PROCESSING", "queued", "STARTING", "IN_PROGRESS"])
def test_a_job_under_way_is_known(word) -> None:
    """Queued and processing are understood, and waited for."""
    job = job_of({"status": word, "request_id": ID, "metrics": {}})
    assert (job.state, job.is_known) == ("PENDING", True)


@pytest.mark.parametrize("word", ["", "WARMING_UP", "ERROR", "error", "CANCELLED", "CANCELED", "TIMEOUT", "ok"])
def test_an_unknown_state_is_not_terminal(word) -> None:
    """Only FAILED ends a paid job without an image: any other word is waited for, and said not to be understood."""
    job = job_of({"status": word, "request_id": ID, "error": "x"})
    assert (job.state, job.is_known) == ("PENDING", False)


@pytest.mark.parametrize("word", ["SUCCESS", "Succeeded", "completed"])
def test_other_words_for_done(word) -> None:
    """The words for success that users have seen are understood."""
    assert job_of({"status": word, "output": URL}).outputs == (Output(url=URL),)


def test_a_job_counts_with_its_own_statuses_only() -> None:
    """A body that looks like a job's is none under any HTTP status but 200 and 422: a proxy or a limiter wrote it."""
    body = {"status": "FAILED", "message": "upstream"}
    counted = [status for status in range(100, 600) if job_of(body, status=status) is not None]
    assert counted == [200, 422]


def test_a_job_of_another_request_proves_nothing() -> None:
    """A body that names another request is not ours; one that names none may be."""
    body = {"status": "FAILED", "error": "x"}
    assert job_of(body | {"request_id": "other"}, request_id=ID) is None
    assert job_of(body | {"request_id": 7}, request_id=ID) is None
    for ours in ({}, {"request_id": None}, {"request_id": ID}, {"request_id": ID.upper()}):
        assert job_of(body | ours, request_id=ID).state == "FAILED"
    assert job_of(body | {"request_id": 17}, request_id="17").state == "FAILED"
    assert detail_rows({"request_id": "AB-1"}, "ab-1") == [{"request_id": "AB-1"}]


@pytest.mark.parametrize("name", ["image_url", "url", "image", "data", "input_image"])
def test_an_address_beside_the_output_is_none(name: str) -> None:
    """What the answer calls its output is the output, whatever else it echoes."""
    body = {"status": "COMPLETED", name: "https://example.com/sent.png", "output": URL}
    assert job_of(body).outputs == (Output(url=URL),)


@pytest.mark.parametrize("text", ['"half \\ud83d"', '{"a": ["half \\uD83D"]}', '{"half \\udc00": 1}'])
def test_half_a_character_becomes_a_whole_one(text: str) -> None:
    """A text that was cut within a character (a lone surrogate) can be stored all the same; whole ones are kept."""
    assert json.dumps(parse_json(text), ensure_ascii=False).encode()
    assert parse_json('"a cup \\ud83d\\ude00"') == "a cup \U0001f600"
    assert parse_inputs("{'prompt': 'half \\ud83d'}") == {"prompt": "half ?"}


@pytest.mark.parametrize("body", [None, [], "COMPLETED", 7, {}, {"status": 200}, {"status": None}, {"error": "x"}])
def test_another_service_is_no_job(body) -> None:
    """A body without a state in words is no answer about a job."""
    assert job_of(body) is None


@pytest.mark.parametrize("metrics", [None, [], "x", {"cost": "free", "total_time": True}, {"cost": -1}, {"cost": None}])
def test_odd_metrics_are_left_out(metrics) -> None:
    """Metrics that are no numbers are unknown, not zero."""
    job = job_of({**RESULT, "metrics": metrics})
    assert (job.cost_usd, job.latency_s) == (None, None)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.0402, 0.0402),
        ("12.31", 12.31),
        (0, 0.0),
        (-1, None),
        ("nan", None),
        ("inf", None),
        (True, None),
        (None, None),
        ("", None),
        ("x", None),
        ([], None),
        (10**400, None),
    ],
)
def test_numbers_are_finite_and_not_negative(value, number) -> None:
    """A number may come as text; what is negative, infinite or no number is unknown."""
    assert parse_number(value) == number
