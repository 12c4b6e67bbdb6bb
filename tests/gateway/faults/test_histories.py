"""Faults of the request history, on a real socket, as our own client sees them."""

import ast
import json

import pytest

from tests.gateway.faults.conftest import drawn, misbehaving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("detail", [False, True], ids=["list", "detail"])
@pytest.mark.parametrize("shape", ["items", "requests", "bare", "error", "empty_body", "cut", "html"])
def test_a_history_in_another_envelope(shape: str, *, detail: bool) -> None:
    """The right rows come with status 200 in another envelope, or in none that can be read."""
    with misbehaving({"fault": "history_shape", "shape": shape, "times": 1}) as (running, client):
        request_id = drawn(running, client)
        path = "/inference-request/request-history" + (f"/{request_id}" if detail else "")
        answer, right = client.get(path), client.get(path).json()["data"]
    rows = [right] if detail else right
    assert [row["request_id"] for row in rows] == [request_id]
    assert answer.status_code == 200
    assert answer.headers["x-imagegen-engine"] == "sandbox"
    if shape in ("empty_body", "cut", "html"):
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert (shape == "empty_body") == (answer.content == b"")
        with pytest.raises(json.JSONDecodeError):
            answer.json()
        return
    expected = {"items": {"data": {"items": rows}}, "requests": {"requests": rows}, "bare": right}
    assert answer.json() == expected.get(shape, {"error": "injected by the fault script"})


@pytest.mark.parametrize("detail", [False, True], ids=["list", "detail"])
@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ("text_numbers", "request_body"),
        ("no_body", "request_body"),
        ("no_url", "generation_url"),
        ("no_time", "model_created"),
        ("no_id", "request_id"),
    ],
)
def test_history_rows_that_lack_something(shape: str, field: str, *, detail: bool) -> None:
    """Rows come with one field changed or missing, and are right in all others."""
    with misbehaving({"fault": "history_shape", "shape": shape, "times": 1}) as (running, client):
        request_id = drawn(running, client, seed=7, go_fast=True, cfg=2.5, negative_prompt="", image_urls=[])
        path = "/inference-request/request-history" + (f"/{request_id}" if detail else "")
        row, right = (client.get(path).json()["data"] for _ in range(2))
    row, right = (row, right) if detail else (row[0], right[0])
    was, value = right.pop(field), row.pop(field, "absent")
    assert row == right
    assert was
    if shape == "text_numbers":
        changed = {"seed": "7", "go_fast": "true", "cfg": "2.5"}
        assert ast.literal_eval(value) == ast.literal_eval(was) | changed
    else:
        assert value == ("absent" if shape in ("no_time", "no_id") else None)


def test_pages_of_a_history_that_have_a_will_of_their_own() -> None:
    """Pages hold fewer rows than asked for, and page numbers beyond the last answer the last page again."""
    faults = [{"fault": "clamp_pages", "per_page": 2, "first": 4}, {"fault": "small_pages", "per_page": 1}]
    with misbehaving(*faults) as (running, client):
        ids = [drawn(running, client, f"p{number}") for number in range(3)][::-1]

        def page(number: int) -> list[str]:
            query = {"page": number, "per_page": 100}
            rows = client.get("/inference-request/request-history", params=query).json()["data"]
            return [row["request_id"] for row in rows]

        assert [page(number) for number in (1, 2, 3, 99)] == [ids[:2], ids[2:], ids[2:], ids[2:]]
        assert [page(number) for number in (1, 3, 4)] == [ids[:1], ids[2:], []]
    with misbehaving({"fault": "clamp_pages"}) as (_, client):
        assert client.get("/inference-request/request-history", params={"page": 5}).json() == {"data": [], "total": 0}
