"""Envelopes and records of the request history that are not understood: none of them proves a call absent."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.history_lookup import Finding, claim_form, finding_of
from prefect_imagegen.providers.segmind.history import SegmindHistory
from tests.providers.segmind_history.conftest import MODEL, NOW, Listing, around, call

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "maintenance"},
        {"data": {"items": [call(1, NOW)]}},
        {"requests": [call(1, NOW)]},
        [call(1, NOW)],
        {},
        "down",
        {"data": [], "error": "index is rebuilt"},
        {"data": [], "success": False},
    ],
    ids=lambda value: json.dumps(value)[:40],
)
@pytest.mark.parametrize("page", [1, 2])
async def test_another_envelope_proves_nothing(answer: Any, page: int) -> None:
    """A listing in a form that nobody knows is an error of kind `unknown`, and counted in words without content."""
    odd: Counter[str] = Counter()

    async def get_json(_: str, params: dict[str, str]) -> Any:
        return answer if int(params["page"]) == page else {"data": [call(7, NOW)]}

    history = SegmindHistory("http://history", get_json, lambda oddity: odd.update([oddity]))
    with pytest.raises(ProviderError) as caught:
        await history.find(MODEL, {"seed": 1}, around(NOW))
    assert caught.value.kind == "unknown"
    (words,) = odd
    assert words.startswith("the request history: ")
    assert "a cup" not in words
    with pytest.raises(ProviderError):
        await history.records(MODEL, NOW.date(), NOW.date())


@pytest.mark.parametrize(
    "row",
    [
        None,
        "r1",
        7,
        [],
        {},
        call(1, NOW) | {"request_id": None},
        call(1, NOW, body="[truncated"),
        call(1, NOW) | {"request_body": None},
        call(1, NOW) | {"model_name": None},
        call(1, NOW) | {"model_name": "Klein (9B)"},
        call(1, NOW, body={"inputs": {"prompt": "a cup", "seed": 1}}),
    ],
    ids=str,
)
async def test_a_row_that_cannot_be_read_could_be_the_call(row: Any) -> None:
    """A row that is no object, or lacks id, model or body, leaves the call unclear: never absent, never found."""
    listing = Listing([call(5, NOW), row, call(6, NOW)])
    history = SegmindHistory("http://history", listing.get_json)
    look = await history.find(MODEL, claim_form({"prompt": "a cup", "seed": 1}), around(NOW))
    finding = finding_of(look, [], 0)
    assert (finding.request_id, finding.is_absent) == (None, False)
    assert look.shown >= {"r5", "r6"}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (MODEL, {"prompt": "a cup", "seed": "1"}),
        (MODEL, {"prompt": "a cup", "seed": 1.0, "webhook": None}),
        ("FLUX.2 Klein 9B", {"prompt": "a cup", "seed": 1}),
        (MODEL, "{'prompt': 'a cup', 'seed': 1}"),
        (MODEL, '{"prompt": "a cup", "seed": "1"}'),
    ],
)
async def test_a_call_in_other_words_is_found(model: str, body: Any) -> None:
    """Names of models and fields are compared leniently: numbers as text, JSON, repr, additions of the API."""
    listing = Listing([call(1, NOW, body=body) | {"model_name": model}])
    look = await SegmindHistory("http://history", listing.get_json).find(
        MODEL, claim_form({"prompt": "a cup", "seed": 1}), around(NOW)
    )
    assert finding_of(look, [], 0) == Finding("r1")


async def test_no_model_is_asked_for_where_absence_is_to_be_proven() -> None:
    """The search asks for all models of the days from one before the window, as they may be named otherwise."""
    queries: list[dict[str, str]] = []

    async def get_json(_: str, params: dict[str, str]) -> Any:
        queries.append(params)
        return {"data": []}

    await SegmindHistory("http://history", get_json).find(MODEL, {"seed": 1}, around(NOW))
    (params,) = queries
    assert "model_name" not in params
    assert params["from_date"] <= "2026-11-22"
    assert params["to_date"] >= "2026-11-24"


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows}])
async def test_a_record_with_several_outputs_is_one(wrap: Callable[[Any], Any]) -> None:
    """A request with a row for each output has all its addresses, and its cost once."""
    rows = [call(1, NOW) | {"generation_url": f"http://h/{n}", "credits_deduction": 0.04} for n in (1, 2, 2)]

    async def get_json(_: str) -> Any:
        return wrap(rows)

    record = await SegmindHistory("http://history", get_json).detail("r1")
    assert record is not None
    assert (record.generation_urls, record.cost_usd, record.created) == (("http://h/1", "http://h/2"), 0.04, NOW)


async def test_a_record_is_unknown_by_a_404_alone() -> None:
    """Only a 404 says that a request is not known; other refusals are passed on, other answers not understood."""
    answers: list[Any] = [
        ProviderError("model_unavailable", "404", status=404),
        ProviderError("unavailable", "503", status=503),
        {"data": []},
        {"data": [call(2, NOW)]},
        {"message": "ok"},
        [],
    ]

    async def get_json(_: str) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, ProviderError):
            raise answer
        return answer

    odd: Counter[str] = Counter()
    history = SegmindHistory("http://history", get_json, lambda oddity: odd.update([oddity]))
    assert await history.detail("r1") is None
    kinds = []
    while answers:
        with pytest.raises(ProviderError) as caught:
            await history.detail("r1")
        kinds.append(caught.value.kind)
    assert kinds == ["unavailable", *["unknown"] * 4]
    assert sum(odd.values()) == 4
