"""The shapes in which the API answers: every one that its documentation, its SDK or its users show."""

import base64
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prefect_imagegen.core import answers
from prefect_imagegen.core.answers import Output


def picture(kind: str) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((32, 32), 60).convert("RGB").save(sink, kind)
    return sink.getvalue()


PNG, JPEG, WEBP = picture("png"), picture("jpeg"), picture("webp")
TEXT64 = base64.b64encode(PNG).decode()
URL = "https://images.example.com/generations/ab12.png"
OTHER = "https://images.example.com/generations/cd34.png"
ID = "11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP, picture("gif"), picture("bmp"), picture("tiff")])
def test_images_are_known_by_their_first_bytes(data) -> None:
    """An answer is an image if its bytes say so, whatever its headers say."""
    assert answers.looks_like_image(data)
    assert answers.image_of_body(data) == Output(data=data)


@pytest.mark.parametrize("data", [b"", b"<html>", b'{"error": "x"}', b"RIFF1234WAVE", b"\x00" * 40, TEXT64.encode()])
def test_other_bytes_are_no_image(data) -> None:
    """HTML, JSON, nothing and other media are not taken for an image."""
    assert not answers.looks_like_image(data)


@pytest.mark.parametrize(
    "body",
    [
        {"output_url": URL},
        {"image_url": URL},
        {"url": URL},
        {"data": {"url": URL}},
        {"data": [{"url": URL}]},
        {"output": URL},
        {"output": [URL]},
        {"output": {"images": [{"url": URL}]}},
        {"output": {"videos": [{"url": URL}]}},
        {"output": json.dumps({"image": {"url": URL}})},
        {"output": json.dumps([URL, OTHER])},
        {"images": [{"url": URL, "content_type": "image/png", "file_size": "1450316"}]},
        {"images": [URL]},
        {"images": [{"url": URL}, {"url": OTHER}], "output": OTHER},
        {"images": [], "output": URL},
        {"images": None, "output": URL},
        {"images": "none", "output_url": URL},
        {"status_url": OTHER, "response_url": OTHER, "poll_url": OTHER, "result": URL},
        {"prompt": OTHER, "output": URL},
        {"error": None, "output": URL},
        {"error": "", "output": URL},
        [{"url": URL}],
        URL,
    ],
    ids=str,
)
def test_a_url_is_found_wherever_it_is(body) -> None:
    """The image's URL is found in every shape: images first, then output, then any other URL but those of the job."""
    assert answers.output_of(body) == Output(url=URL)
    assert answers.image_of_body(json.dumps(body).encode()) == Output(url=URL)


@pytest.mark.parametrize(
    "body",
    [
        {"output": TEXT64},
        {"image": TEXT64},
        {"output": f"data:image/png;base64,{TEXT64}"},
        {"data": [{"b64_json": TEXT64}]},
        {"images": [TEXT64]},
        {"output": base64.encodebytes(PNG).decode()},
        {"output": base64.urlsafe_b64encode(PNG).decode()},
        TEXT64,
    ],
    ids=lambda body: str(body)[:30],
)
def test_base64_is_decoded(body) -> None:
    """An image as base64, as a data URI, wrapped or URL-safe, is decoded where it stands."""
    assert answers.output_of(body) == Output(data=PNG)


def test_plain_base64_is_a_body() -> None:
    """A body that is plain base64 text is an image too."""
    assert answers.image_of_body(TEXT64.encode()) == Output(data=PNG)
    assert answers.image_of_body(base64.encodebytes(PNG)) == Output(data=PNG)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": "Insufficient credits"}', "Insufficient credits"),
        (b'{"error": {"message": "deep"}}', "deep"),
        (b'{"error": "x", "url": "https://example.com/docs"}', "x"),
        (b"<html><body>Bad Gateway</body></html>", "no image in the answer, which begins '<html>"),
        (b"", "no image in the answer, which begins ''"),
        (b"{}", "the answer names no output"),
        (b"[]", "the answer names no output"),
        (b'"text"', "the answer names no output"),
        (b"7", "no image in the answer, which begins '7'"),
        (b'{"output": "aGVsbG8gd29ybGQ="}', "the answer names no output"),
        (b'{"output": "just words"}', "the answer names no output"),
        (base64.b64encode(b"no picture " * 20), "no image in the answer"),
    ],
)
def test_a_200_without_image_is_an_error(body, text) -> None:
    """An error under status 200, HTML, or an answer without image is told as an error, never as an image."""
    found = answers.image_of_body(body)
    assert (found.data, found.url) == (None, None)
    assert text in found.error


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
    assert answers.error_text(body) == text


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
    job = answers.job_of(RESULT)
    assert (job.state, job.output, job.error) == ("COMPLETED", Output(url=URL), None)
    assert (job.seed, job.cost_usd, job.latency_s) == (7, 0.0402, 15.8)
    assert job.metrics == RESULT["metrics"]


def test_a_finished_status_has_no_output_yet() -> None:
    """A status answer that says COMPLETED names no output, and its older metrics have the inference time only."""
    job = answers.job_of({"status": "COMPLETED", "request_id": ID, "metrics": {"inference_time": 13.06}})
    assert (job.state, job.output, job.latency_s, job.cost_usd) == ("COMPLETED", None, 13.06, None)


@pytest.mark.parametrize("word", ["FAILED", "failed", "ERROR", "CANCELLED", "CANCELED"])
def test_a_failed_job_gives_its_reason(word) -> None:
    """A terminal failure in the body is a failure whatever the HTTP status, with the API's reason."""
    body = {"status": word, "error": "Prompt is Mandatory and must be string", "metrics": {"inference_time": 0.007}}
    job = answers.job_of(body)
    assert (job.state, job.error) == ("FAILED", "Prompt is Mandatory and must be string")
    assert answers.job_of({"status": word}).error == "the API gave no reason"


@pytest.mark.parametrize("word", ["QUEUED", "PROCESSING", "queued", "STARTING", "", "WARMING_UP"])
def test_an_unknown_state_is_not_terminal(word) -> None:
    """Queued, processing and unheard-of states are waited for."""
    assert answers.job_of({"status": word, "request_id": ID, "metrics": {}}).state == "PENDING"


@pytest.mark.parametrize("word", ["SUCCESS", "Succeeded", "completed"])
def test_other_words_for_done(word) -> None:
    """The words for success that users have seen are understood."""
    assert answers.job_of({"status": word, "output": URL}).output == Output(url=URL)


@pytest.mark.parametrize("body", [None, [], "COMPLETED", 7, {}, {"status": 200}, {"status": None}, {"error": "x"}])
def test_another_service_is_no_job(body) -> None:
    """A body without a state in words is no answer about a job."""
    assert answers.job_of(body) is None


@pytest.mark.parametrize("metrics", [None, [], "x", {"cost": "free", "total_time": True}, {"cost": -1}, {"cost": None}])
def test_odd_metrics_are_left_out(metrics) -> None:
    """Metrics that are no numbers are unknown, not zero."""
    job = answers.job_of({**RESULT, "metrics": metrics})
    assert (job.cost_usd, job.latency_s) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        {"prompt": "fox", "seed": 7},
        '{"prompt": "fox", "seed": 7}',
        "{'prompt': 'fox', 'seed': 7}",
    ],
)
def test_history_inputs_come_in_three_forms(text) -> None:
    """The inputs of a history row are an object, JSON text or the repr of a Python dict."""
    assert answers.parse_inputs(text) == {"prompt": "fox", "seed": 7}


@pytest.mark.parametrize(
    "text", [None, 7, [], "", "fox", "[1]", "{", "{[1]: 2}", "{'a': open('x')}", "\ud800", "{'\ud800", "\0"]
)
def test_other_history_inputs_are_unknown(text) -> None:
    """Inputs in no known form are unknown; nothing in them is ever executed."""
    assert answers.parse_inputs(text) is None


@pytest.mark.parametrize(
    ("value", "found"),
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
def test_numbers_are_finite_and_not_negative(value, found) -> None:
    """A number may come as text; what is negative, infinite or no number is unknown."""
    assert answers.number(value) == found


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from([URL, TEXT64, "{\ud800", "data:image/png;base64,!!", "FAILED", "COMPLETED"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["status", "error", "output", "images", "url", "data", "metrics", "cost", "seed", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises(data) -> None:
    """Whatever bytes come, each reader gives an answer; an output is an image, a URL or an error."""
    assert answers.error_text(data)
    found = answers.image_of_body(data)
    assert [found.data, found.url, found.error].count(None) == 2


@given(json_values)
def test_no_json_raises(value) -> None:
    """Whatever JSON comes, each reader gives an answer."""
    found = answers.output_of(value)
    assert [found.data, found.url, found.error].count(None) == 2
    job = answers.job_of(value)
    assert job is None or job.state in {"COMPLETED", "FAILED", "PENDING"}
    answers.number(value)
    answers.parse_inputs(value)


@given(st.text() | st.text("{}[]()'\":, 01aNone", max_size=40))
def test_no_inputs_raise(text) -> None:
    """Whatever text a history row holds as inputs, it is a dict or unknown."""
    assert isinstance(answers.parse_inputs(text), dict | None)


@pytest.mark.parametrize("opening", ['{"error":', "[", '{"detail":[', '{"output":', '{"images":['])
@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_deep_nesting_is_understood(opening, depth) -> None:
    """A body nested without end costs no stack."""
    closing = {"{": "}", "[": "]"}
    end = "".join(closing[one] for one in reversed(opening) if one in closing)
    data = (opening * depth + '"x"' + end * depth).encode()
    assert answers.error_text(data)
    assert answers.image_of_body(data).data is None
    job = answers.job_of({"status": "FAILED", "error": answers.parse_json(data)})
    assert job is not None
    assert (job.state, bool(job.error)) == ("FAILED", True)
