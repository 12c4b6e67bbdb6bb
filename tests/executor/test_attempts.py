"""One attempt: claim, POST, result, image; and how often a row is sent."""

from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.policy.outcomes import is_permanent
from prefect_imagegen.ports import Delivery, ObjectStore, Submission
from prefect_imagegen.store.ledger.reading import event_tables, load_ledger
from tests.executor.conftest import HEX, REQUEST, Bench, CountingStore, error
from tests.support.builders.images import png
from tests.support.builders.requests import request_for

pytestmark = pytest.mark.anyio


async def test_everything_is_durable_before_the_next_step(bench: Bench) -> None:
    """The claim lies in the store before the POST, the id before the first poll, the image before the ledger's word."""
    calls: list[tuple[str, bool, bool]] = []

    def look(call: str) -> None:
        claim, id_file = bench.folder / layout.claim(HEX, 1), bench.folder / layout.claim_id(HEX, 1)
        calls.append((call, claim.exists(), id_file.exists()))

    bench.provider.watch = look
    result = await bench.make()
    assert calls == [("submit", True, False), ("collect", True, True)]
    assert (result.status, result.attempts, result.cost_usd) == ("generated", 1, 0.04)
    await bench.ledger.flush()
    view = await load_ledger(bench.store)
    (facts,) = view.facts(view.delivered_keys).values()
    assert (bench.folder / facts["image_path"]).read_bytes()
    assert facts["attempt_id"] == f"{HEX}-1"


async def test_what_an_image_asks_of_the_store(tmp_path: Path) -> None:
    """An image costs three PUTs (claim, id, image) and one HEAD, as docs/guides/scale.md says; nothing is read."""
    store = CountingStore(*fsspec.core.url_to_fs(str(tmp_path)), str(tmp_path))
    store.counts = Counter()
    assert (await Bench(tmp_path, LedgerView.empty(), store=store).make()).status == "generated"
    assert store.counts == {"PUT ledger": 2, "PUT images": 1, "HEAD images": 1}


async def test_each_post_has_a_claim_of_its_own(bench: Bench) -> None:
    """A transient failure is tried again as attempt n+1; a look into the history goes before, and is counted."""
    bench.provider.submits = [error("unavailable", status=503), error("server_error", status=500), "r3"]
    result = await bench.make()
    assert (result.status, result.attempts, result.maybe_paid, result.request_id) == ("generated", 3, 2, "r3")
    assert bench.provider.history == ["submit", "find", "submit", "find", "submit", "collect"]
    claims = await bench.ledger.claims(REQUEST.key)
    assert [(claim.claim_no, claim.request_id) for claim in claims] == [(1, None), (2, None), (3, "r3")]


async def test_each_post_has_an_id_of_its_own(bench: Bench) -> None:
    """What was accepted and failed for a passing reason is sent again, and the id of that POST is made durable too."""
    bench.provider.submits = ["r1", "r2", "r3"]
    bench.provider.collects = [error("generation_error", request_id=f"r{n}") for n in (1, 2)]
    result = await bench.make()
    assert (result.status, result.attempts, result.request_id) == ("generated", 3, "r3")
    claims = await bench.ledger.claims(REQUEST.key)
    assert [(claim.claim_no, claim.request_id) for claim in claims] == [(1, "r1"), (2, "r2"), (3, "r3")]


@pytest.mark.parametrize(
    ("kind", "ends"), [("generation_error", "billed_failure"), ("generation_failed", "generation_failed")]
)
async def test_a_failure_that_was_billed_is_not_sent_again(bench: Bench, kind: str, ends: str) -> None:
    """Where the answer to a failed job names a cost, the row is not paid for again; row, budget and ledger have it."""
    bench.provider.submits = ["r1", "r2"]
    bench.provider.collects = [error(kind, request_id="r1", cost_usd=0.05)]
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts, result.cost_usd) == ("failed", ends, 1, 0.05)
    assert is_permanent(ends)
    assert (result.paid, bench.context.budget.reserved) == (1, 0.0)
    assert bench.context.budget.spent == pytest.approx(result.cost_usd)
    await bench.ledger.flush()
    costs = [event["cost_usd"] for event in await _events(bench.store) if event["type"] in ("failed", "delivered")]
    assert sum(costs) == pytest.approx(result.cost_usd)


async def _events(store: ObjectStore) -> list[dict[str, Any]]:
    return [event async for table in event_tables(store) for event in table.to_pylist()]


@pytest.mark.parametrize(
    ("kind", "posts", "ends"),
    [
        ("unavailable", 5, "failed"),
        ("server_error", 3, "failed"),
        ("invalid_request", 1, "failed"),
    ],
)
async def test_how_often_a_row_is_sent(bench: Bench, kind: str, posts: int, ends: str) -> None:
    """502 to 504 are sent five times, 500 three times, permanent ones once."""
    bench.provider.submits = [error(kind) for _ in range(9)]
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == (ends, kind, posts)


@pytest.mark.parametrize("most", [1, 2])
async def test_the_users_limit_of_attempts(tmp_path: Path, most: int) -> None:
    """A row is sent `max_attempts` times at most, where its failure may be tried more often."""
    bench = Bench(tmp_path, LedgerView.empty(), policy={"max_attempts": most})
    bench.provider.submits = [error("unavailable") for _ in range(9)]
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == ("failed", "unavailable", most)


async def test_free_failures_do_not_count_but_end(bench: Bench) -> None:
    """429 and unsent calls are no attempts; without any progress they stop the run at the deadline."""
    bench.provider.submits = [error("rate_limited", retry_after=5.0) for _ in range(20)] + ["r1"]
    assert (await bench.make()).status == "generated"
    bench.provider.submits = [error("unsent") for _ in range(200)]
    result = await bench.make(request_for("b", 1))
    assert (result.status, bench.control.stop_reason) == ("not_run", "deadline")


async def test_credentials_and_models(bench: Bench) -> None:
    """A refused model fails its own rows only; a refused key ends the run before anything more is sent."""
    bench.provider.submits = [error("model_unavailable")]
    assert (await bench.make()).error_kind == "model_unavailable"
    again = await bench.make(request_for("b", 1))
    assert (again.status, again.attempts) == ("failed", 0)
    bench.provider.submits = [error("auth", status=401)]
    other = request_for("b", 1, model="flux-2-klein-4b")
    assert (await bench.make(other)).status == "not_run"
    assert bench.control.stop_reason == "auth"
    assert (await bench.make(other)).attempts == 0


async def test_several_images_of_one_answer(bench: Bench) -> None:
    """Of an answer with several images the first goes to the key and the others lie beside it: none is lost."""
    first, second = png(), png()

    async def collect(submission: Submission) -> Delivery:
        return Delivery(first, "image/png", request_id=submission.request_id, cost_usd=0.04, more=(second,))

    bench.provider.collect = collect  # type: ignore[method-assign]
    result = await bench.make()
    assert result.image is not None
    assert "more_images" in result.image.flags
    assert await bench.store.get(layout.image(HEX, REQUEST.extension)) == first
    assert await bench.store.get(layout.more_image(HEX, 2, REQUEST.extension)) == second
