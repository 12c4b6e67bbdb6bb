"""References of a row: how they are sent, and those that cannot be."""

from dataclasses import replace
from pathlib import Path

import pytest

from prefect_imagegen.core.errors import ProviderError, StoreError
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.policy.history_lookup import same_call
from prefect_imagegen.core.request.request import GenerationRequest, Reference
from tests.executor.conftest import REQUEST, Bench

pytestmark = pytest.mark.anyio
PHOTO = "https://example.com/a.png"
WITH_PHOTO = GenerationRequest(
    REQUEST.model,
    REQUEST.params,
    (Reference("url", PHOTO, PHOTO, ReferenceFacts("ab", 9, 80, 80, "jpeg", ("turned",))),),
)


@pytest.mark.parametrize("inline", [False, True])
async def test_references_are_sent_by_their_addresses(bench: Bench, inline: bool) -> None:
    """What is sent is the references' addresses, the claim knows them as sent, and what was done to them is told."""
    bench.references.inline = inline
    result = await bench.make(WITH_PHOTO)
    assert result.status == "generated"
    assert bench.provider.sent == [(PHOTO,)]
    (claim,) = await bench.ledger.claims(WITH_PHOTO.key)
    assert same_call(WITH_PHOTO.body([PHOTO]), claim.claim.body)
    assert PHOTO not in str(claim.claim.body)
    assert result.applied["references"] == [{"position": 1, "changes": ["turned"]}]


async def test_what_the_api_cannot_fetch_is_uploaded_once(bench: Bench) -> None:
    """A failure that sounds like fetching is tried again with fresh addresses, once; then it is as it is."""
    failure = ProviderError("generation_failed", "image 1 could not be fetched", status=422, request_id="r1")
    bench.provider.collects = [failure]
    result = await bench.make(WITH_PHOTO)
    assert (result.status, result.attempts, result.maybe_paid) == ("generated", 2, 0)
    assert bench.provider.sent == [(PHOTO,), (f"{PHOTO}?fresh",)]
    other = replace(WITH_PHOTO, params=WITH_PHOTO.params | {"seed": 8})
    for _ in range(2):
        failure = ProviderError("generation_failed", "image 1 could not be fetched", status=422, request_id="r1")
        bench.provider.collects.append(failure)
    result = await bench.make(other)
    assert (result.status, result.error_kind, result.attempts) == ("failed", "generation_failed", 2)


async def test_references_that_cannot_be_sent(bench: Bench, tmp_path: Path) -> None:
    """A reference that cannot be read fails its row before any claim; a key that uploads refuse stops the run."""
    bench.references.steps = [ProviderError("reference_unreadable", "gone"), ProviderError("auth", "no such key")]
    result = await bench.make(WITH_PHOTO)
    assert (result.status, result.error_kind, result.attempts) == ("failed", "reference_unreadable", 0)
    assert not bench.control.stopped
    result = await bench.make(WITH_PHOTO)
    assert (result.status, result.error_kind, result.attempts) == ("not_run", "auth", 0)
    assert bench.control.stop_reason == "auth"
    other = Bench(tmp_path / "other", LedgerView.empty())
    other.references.steps = [StoreError("store_unreachable", "away")]
    result = await other.make(WITH_PHOTO)
    assert (result.status, result.error_kind, other.control.stop_reason) == ("not_run", "store", "store")
    for refused_bench in (bench, other):
        assert await refused_bench.ledger.claims(WITH_PHOTO.key) == []
        assert refused_bench.provider.history == []


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("count", [1, 19])
async def test_an_unexpected_error_about_references_ends_its_row(bench: Bench, inline: bool, count: int) -> None:
    """Whatever goes wrong when references are got ready ends that row before its claim; the run goes on."""
    bench.references.inline = inline
    for seed in range(count):
        bench.references.steps = [ZeroDivisionError("bad transform")]
        result = await bench.make(replace(WITH_PHOTO, params=REQUEST.params | {"seed": 100 + seed}))
        assert (result.status, result.error_kind, result.attempts) == ("failed", "internal", 0)
        assert "bad transform" in (result.error_message or "")
    assert (bench.control.stopped, bench.provider.history) == (False, [])
    assert await bench.ledger.claims(WITH_PHOTO.key) == []
    assert (await bench.make(WITH_PHOTO)).status == "generated"
