"""Rows of the request history: inputs, times, and envelopes that are not understood."""

import json
from datetime import UTC, datetime

import pytest

from prefect_imagegen.core.answers.history import detail_rows, listed_rows, parse_inputs
from prefect_imagegen.core.answers.json_values import parse_time, shape_of


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


@pytest.mark.parametrize("unit", ["(),", "'' ", "0<", "0or ", "a.", "-"])
def test_inputs_of_millions_of_values_are_none(unit: str) -> None:
    """A Python dict that would take gigabytes to read is not read; one with large pictures in it is."""
    assert parse_inputs("{'a': [" + unit * 1_000_000 + "0]}") is None
    body = {"prompt": "a, b" * 16_000, "image_urls": ["data:image/png;base64," + "iVBORw0KGgo" * 1_000_000] * 3}
    assert parse_inputs(repr(body)) == body
    assert parse_inputs(json.dumps(body)) == body
