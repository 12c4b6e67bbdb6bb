"""Answers of any content: none raises, and none costs more than its length."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.answers.history import detail_rows, listed_rows, parse_inputs
from prefect_imagegen.core.answers.jobs import job_of
from prefect_imagegen.core.answers.json_values import error_text, parse_json, parse_number, parse_time, shape_of
from prefect_imagegen.core.answers.outputs import images_of_body, outputs_of
from tests.core.answers.conftest import ID, TEXT64, URL

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
