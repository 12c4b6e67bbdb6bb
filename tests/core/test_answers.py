"""The shapes in which the API answers: every one that its documentation, its SDK or its users show."""

import base64
import io
import json
import tracemalloc
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prefect_imagegen.core.answers.history import detail_rows, listed_rows, parse_inputs
from prefect_imagegen.core.answers.jobs import job_of
from prefect_imagegen.core.answers.json_values import error_text, parse_json, parse_number, parse_time, shape_of
from prefect_imagegen.core.answers.outputs import Output, images_of_body, looks_like_image, outputs_of


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
    assert looks_like_image(data)
    assert images_of_body(data) == (Output(data=data),)


@pytest.mark.parametrize("data", [b"", b"<html>", b'{"error": "x"}', b"RIFF1234WAVE", b"\x00" * 40, TEXT64.encode()])
def test_other_bytes_are_no_image(data) -> None:
    """HTML, JSON, nothing and other media are not taken for an image."""
    assert not looks_like_image(data)


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
        {"output": json.dumps([URL])},
        {"output": [URL, URL]},
        {"images": [{"url": URL, "content_type": "image/png", "file_size": "1450316"}]},
        {"images": [URL]},
        {"images": [{"url": URL}, {"url": URL}], "output": OTHER},
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
    assert outputs_of(body) == (Output(url=URL),)
    assert images_of_body(json.dumps(body).encode()) == (Output(url=URL),)


@pytest.mark.parametrize(
    "body",
    [
        {"images": [{"url": URL}, {"url": OTHER}], "output": URL},
        {"images": [URL, OTHER]},
        {"output": [URL, OTHER]},
        {"output": json.dumps([URL, OTHER])},
        {"output": {"images": [{"url": URL}, {"url": OTHER}]}},
        {"data": [{"url": URL}, {"url": OTHER}]},
        [{"url": URL}, {"image": OTHER}],
        [URL, OTHER, URL],
    ],
    ids=str,
)
def test_several_images_are_all_found(body) -> None:
    """Where an answer gives several images all of them were paid: each is told, in order and once."""
    assert outputs_of(body) == (Output(url=URL), Output(url=OTHER))


def test_several_images_in_their_own_bytes() -> None:
    """Several images as base64 are all decoded."""
    body = {"data": [{"b64_json": TEXT64}, {"b64_json": base64.b64encode(JPEG).decode()}]}
    assert images_of_body(json.dumps(body).encode()) == (Output(data=PNG), Output(data=JPEG))


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
    assert outputs_of(body) == (Output(data=PNG),)


def test_plain_base64_is_a_body() -> None:
    """A body that is plain base64 text is an image too."""
    assert images_of_body(TEXT64.encode()) == (Output(data=PNG),)
    assert images_of_body(base64.encodebytes(PNG)) == (Output(data=PNG),)


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
    (output,) = images_of_body(body)
    assert (output.data, output.url) == (None, None)
    assert text in output.error


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
    "text",
    [
        {"prompt": "fox", "seed": 7},
        '{"prompt": "fox", "seed": 7}',
        "{'prompt': 'fox', 'seed': 7}",
    ],
)
def test_history_inputs_come_in_three_forms(text) -> None:
    """The inputs of a history row are an object, JSON text or the repr of a Python dict."""
    assert parse_inputs(text) == {"prompt": "fox", "seed": 7}


@pytest.mark.parametrize(
    "text", [None, 7, [], "", "fox", "[1]", "{", "{[1]: 2}", "{'a': open('x')}", "\ud800", "{'\ud800", "\0"]
)
def test_other_history_inputs_are_unknown(text) -> None:
    """Inputs in no known form are unknown; nothing in them is ever executed."""
    assert parse_inputs(text) is None


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
            st.sampled_from(
                ["status", "error", "output", "images", "url", "data", "metrics", "cost", "seed", "request_id"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises(data) -> None:
    """Whatever bytes come, each reader gives an answer; an output is an image, a URL or an error."""
    assert error_text(data)
    check_outputs(images_of_body(data))


def check_outputs(outputs) -> None:
    assert outputs
    assert all([output.data, output.url, output.error].count(None) == 2 for output in outputs)
    assert len(outputs) == 1 or all(output.error is None for output in outputs)
    assert len(set(outputs)) == len(outputs)


@given(json_values, st.sampled_from([200, 422, 500]))
def test_no_json_raises(value, status) -> None:
    """Whatever JSON comes, each reader gives an answer."""
    check_outputs(outputs_of(value))
    job = job_of(value, status=status, request_id=ID)
    assert job is None or job.state in {"COMPLETED", "FAILED", "PENDING"}
    assert job is None or all(output.error is None for output in job.outputs)
    assert listed_rows(value) is None or isinstance(value["data"], list)
    assert detail_rows(value, ID) is None or detail_rows(value, ID)
    assert len(shape_of(value)) < 1000
    parse_time(value)
    parse_number(value)
    parse_inputs(value)


@given(st.text() | st.text("{}[]()'\":, 01aNone", max_size=40))
def test_no_inputs_raise(text) -> None:
    """Whatever text a history row holds as inputs, it is a dict or unknown."""
    assert isinstance(parse_inputs(text), dict | None)


@pytest.mark.parametrize("opening", ['{"error":', "[", '{"detail":[', '{"output":', '{"images":['])
@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_deep_nesting_is_understood(opening, depth) -> None:
    """A body nested without end costs no stack."""
    closing = {"{": "}", "[": "]"}
    end = "".join(closing[character] for character in reversed(opening) if character in closing)
    data = (opening * depth + '"x"' + end * depth).encode()
    assert error_text(data)
    assert images_of_body(data)[0].data is None
    job = job_of({"status": "FAILED", "error": parse_json(data)})
    assert job is not None
    assert (job.state, bool(job.error)) == ("FAILED", True)


ROWS = [{"request_id": "a"}, None, "x"]


@pytest.mark.parametrize(
    "value", [{"data": ROWS}, {"data": ROWS, "total": 3, "page": 1}, {"data": ROWS, "status": "success", "error": None}]
)
def test_a_listing_is_a_list_of_rows(value) -> None:
    """A page of the history is an object with its rows under `data`, whatever the rows are."""
    assert listed_rows(value) == ROWS
    assert listed_rows({"data": []}) == []


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], [{"request_id": "a"}], "x", 7, {}),
        {"data": None},
        {"data": {}},
        {"data": {"items": [{}]}},
        {"requests": [{}]},
        {"items": []},
        {"data": [], "error": "maintenance"},
        {"data": [], "errors": [{"message": "maintenance"}]},
        {"data": [], "success": False},
        {"data": [], "ok": False},
        {"data": [], "status": "error"},
        {"data": [], "status": "FAILED"},
        {"data": [], "status": 503},
    ],
    ids=str,
)
def test_another_envelope_proves_nothing(value) -> None:
    """A page in any other form, or one that says it failed, is not understood: it is never an empty list."""
    assert listed_rows(value) is None


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ({"request_id": "a", "x": 1}, [{"request_id": "a", "x": 1}]),
        ({"data": {"request_id": "a"}}, [{"request_id": "a"}]),
        ({"data": [{"request_id": "a"}, {"request_id": "b"}, None]}, [{"request_id": "a"}]),
        ([{"request_id": "a", "n": 1}, {"request_id": "a", "n": 2}], [{"request_id": "a", "n": n} for n in (1, 2)]),
        ({"request_id": "b"}, None),
        ({"data": []}, None),
        ({"error": "not found"}, None),
        ({}, None),
        (None, None),
        ("a", None),
    ],
    ids=str,
)
def test_a_detail_has_to_name_its_request(value, rows) -> None:
    """A record counts if it names the request that was asked for; an answer without it is none of that request."""
    assert detail_rows(value, "a") == rows


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "no JSON"),
        ([1, 2], "a list of 2"),
        ("secret", "a str"),
        (7, "a int"),
        ({}, "an empty object"),
        ({"b": "secret", "a": "secret"}, "an object with a, b"),
        ({"data": {"items": ["secret"]}}, "an object whose data is an object with items"),
    ],
)
def test_a_shape_in_words_tells_no_content(value, words) -> None:
    """What was not understood is told by its form: by names, never by what it holds."""
    assert shape_of(value) == words


MOMENT = datetime(2026, 11, 23, 20, 5, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-23T20:05:06Z",
        "2026-11-23T21:05:06+01:00",
        "2026-11-23 20:05:06.000+00:00",
        "Mon, 23 Nov 2026 20:05:06 GMT",
        MOMENT.timestamp(),
        int(MOMENT.timestamp() * 1000),
        str(int(MOMENT.timestamp())),
    ],
)
def test_a_time_in_any_form(value) -> None:
    """ISO and mail forms, seconds and milliseconds are one moment."""
    assert parse_time(value) == MOMENT


def test_a_time_without_a_zone_has_none() -> None:
    """Where no zone is told none is made up."""
    assert parse_time("2026-11-23T20:05:06") == MOMENT.replace(tzinfo=None)
    assert parse_time("Mon Nov 23 20:05:06 2026") == MOMENT.replace(tzinfo=None)


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", True, [], {}, "yesterday", "nan", float("inf"), 10**400, -5, 0, "0"),
        # A day without an hour, placeholders for no time, and am and pm, which are not parsed.
        *("2026-11-23", "20261123", 20261123, "2026-W48", "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
        *("Nov 23, 2026 8:00 PM", "23 Nov 2026 08:05:06 p.m.", 1.7e18),
    ],
    ids=str,
)
def test_what_is_no_certain_time_is_none(value) -> None:
    """A time that is missing, a placeholder or half told is no time: by it no call would be out of the window."""
    assert parse_time(value) is None


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{TEXT64}",
        f"DATA:image/png;charset=x;BASE64, {TEXT64}",
        "\n".join(TEXT64[start : start + 64] for start in range(0, len(TEXT64), 64)),
        TEXT64.translate(str.maketrans("+/", "-_")).rstrip("="),
        f"  {TEXT64}  ",
    ],
    ids=["data URL", "data URL with more", "lines", "URL alphabet", "blanks around"],
)
def test_base64_however_it_is_written(text: str) -> None:
    """An image in text is found in every way in which servers write base64, bare or within JSON."""
    assert images_of_body(text.encode()) == (Output(data=PNG),)
    assert images_of_body(json.dumps({"image": text}).encode()) == (Output(data=PNG),)


@pytest.mark.parametrize("text", ["A" * 64 + " " * 2_000_000 + "!", " " * 2_000_000, "data:" + ";base64" * 300_000])
def test_hostile_text_costs_no_more_than_its_length(text: str) -> None:
    """Text that is made to be tried again and again at every blank is read once."""
    (output,) = images_of_body(text.encode())
    assert output.data is None


@pytest.mark.parametrize("unit", ["{},", "[[]],", "0,", '{"a":1},', '"",'])
def test_an_answer_of_millions_of_values_is_none(unit: str) -> None:
    """JSON that would take gigabytes proves nothing, and costs next to no memory."""
    text = f"[{unit * 6_000_000}0]"
    tracemalloc.start()
    assert parse_json(text.encode()) is None
    assert parse_json(text) is None
    assert parse_inputs(f"{{'a': {text}}}") is None
    assert tracemalloc.get_traced_memory()[1] < 8 * len(text)
    tracemalloc.stop()


@pytest.mark.parametrize("unit", ["(),", "'' ", "0<", "0or ", "a.", "-"])
def test_inputs_of_millions_of_values_are_none(unit: str) -> None:
    """A Python dict that would take gigabytes to read is not read; one with large pictures in it is."""
    assert parse_inputs("{'a': [" + unit * 1_000_000 + "0]}") is None
    body = {"prompt": "a, b" * 16_000, "image_urls": ["data:image/png;base64," + "iVBORw0KGgo" * 1_000_000] * 3}
    assert parse_inputs(repr(body)) == body
    assert parse_inputs(json.dumps(body)) == body
