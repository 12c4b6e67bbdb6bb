"""What the answer to a submit means for money and for the next step."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.policy.outcomes import OUTCOMES
from tests.providers.segmind.conftest import (
    HISTORY,
    KEY,
    REQUEST,
    RESULT,
    STATUS,
    SUBMIT,
    provider,
    server,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((401, {"error": f"bad key {KEY}"}), "auth"),
        ((402, {"error": "pay"}), "credits"),
        ((406, {"error": "Insufficient credits"}), "credits"),
        ((406, {"error": "Invalid content type"}), "invalid_request"),
        ((400, {"detail": "missing field"}), "invalid_request"),
        ((422, {"message": "blocked by content policy"}), "content_policy"),
        ((403, {"error": "no"}), "model_unavailable"),
        ((404, b"nginx"), "model_unavailable"),
        ((410, {"error": "retired"}), "model_unavailable"),
        ((405, b"<html>405</html>"), "protocol"),
        ((302, b"", {"location": "http://127.0.0.1:9/"}), "protocol"),
        ((429, {"error": "rate_limit_exceeded"}), "rate_limited"),
        ((500, b"oops"), "server_error"),
        ((503, b"<html>busy</html>"), "unavailable"),
        ((200, b"<html>who knows</html>"), "unknown"),
        ((200, {"status": "QUEUED"}), "unknown"),
    ],
)
async def test_what_an_answer_to_a_submit_means(answer: Any, kind: str) -> None:
    """Every answer to a POST has its one meaning, and no message holds the key."""
    async with server() as script, provider(script) as client:
        script.on(SUBMIT, answer)
        with pytest.raises(ProviderError) as caught:
            await client.submit(REQUEST, [])
    assert caught.value.kind == kind
    assert KEY not in str(caught.value)
    assert len(script.requests) == 1


async def test_the_reset_time_of_a_429_is_read() -> None:
    """`x-rate-limit-reset-at-utc` and Retry-After say how long to wait."""
    async with server() as script, provider(script) as client:
        script.on(SUBMIT, (429, {}, {"retry-after": "7"}))
        with pytest.raises(ProviderError) as caught:
            await client.submit(REQUEST, [])
    assert caught.value.retry_after == 7.0


async def test_a_sandbox_cannot_answer_a_real_run() -> None:
    """The engine is checked on every answer to a POST."""
    async with server() as script, provider(script) as client:
        client.expect(sandbox=False)
        script.on(SUBMIT, (200, {"request_id": "r1"}, {"x-imagegen-engine": "sandbox"}))
        with pytest.raises(ProviderError) as caught:
            await client.submit(REQUEST, [])
    assert caught.value.kind == "sandbox_mismatch"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    status=st.sampled_from([200, 201, 204, 301, 400, 404, 406, 418, 422, 429, 500, 502, 599]),
    body=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.text() | st.floats(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["status", "request_id", "output", "error", "images", "url"]), x)
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode()),
    headers=st.dictionaries(
        st.sampled_from(
            [
                *("x-request-id", "x-cost", "x-generation-time", "x-seed-value", "x-remaining-credits"),
                *("x-rate-limit-reset-at-utc", "retry-after", "content-type", "location", "x-imagegen-engine"),
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
        | st.sampled_from(["nan", "-inf", "1e999", "0", "-1", "image/png", "9" * 30]),
    ),
    version=st.sampled_from(["v1", "v2"]),
)
def test_no_answer_is_without_a_meaning(status: int, body: bytes, headers: dict[str, str], version: str) -> None:
    """Whatever a server answers ends in bytes or in a ProviderError of a known kind, never in anything else."""

    async def go() -> None:
        async with server() as script:
            for path in (SUBMIT, "/v1/flux-2-klein-9b", STATUS, RESULT):
                script.on(path, (status, body, headers))
            async with provider(script, version, deadline=0.1) as client:
                kinds: list[str] = []
                try:
                    submission = await client.submit(REQUEST, [])
                    script.on(STATUS, (404, b""))
                    await client.collect(submission)
                except ProviderError as error:
                    kinds.append(error.kind)
                assert set(kinds) <= set(OUTCOMES)

    asyncio.run(go())


async def test_a_failure_that_names_a_cost_says_so() -> None:
    """What a failed job cost all the same is told with its failure, from its record and from the history."""
    failed = {"status": "FAILED", "error": "no", "request_id": "r1", "metrics": {"cost": 0.04}}
    recorded = {"request_id": "r1", "model_status": "FAILED", "credits_deduction": 0.04, "error": "no"}
    async with server() as script, provider(script) as client:
        script.on(STATUS, (422, failed), (404, {}))
        script.on(RESULT, (422, failed))
        script.on(f"{HISTORY}/r1", (200, {"data": recorded}))
        for _ in range(2):
            with pytest.raises(ProviderError) as caught:
                await client.fetch("r1")
            assert (caught.value.kind, caught.value.cost_usd) == ("generation_failed", 0.04)


@pytest.mark.parametrize(("figures", "limit"), [({"max_batch": 8}, 16), ({"max_batch": 1}, 2), ({}, None)])
async def test_a_worker_is_kept_full(figures: dict[str, int], limit: int | None) -> None:
    """A worker that tells its batch is given two: one that runs, and a whole one that waits."""
    async with server() as script, provider(script) as client:
        script.on("/health", (200, {"status": "ok", **figures}))
        assert (await client.health()).limit == limit
