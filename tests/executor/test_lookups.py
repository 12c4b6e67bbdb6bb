"""Calls of unknown fate: looked for in the request history, and sent again only if they are absent."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_imagegen.core.ledger.events import RANK
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.policy.history_lookup import Candidate, Look
from prefect_imagegen.core.request.request import GenerationRequest, Reference
from prefect_imagegen.store.ledger.reading import load_ledger
from prefect_imagegen.store.object_store import open_object_store
from tests.executor.conftest import HEX, REQUEST, Bench, claim_of, error

pytestmark = pytest.mark.anyio


async def test_a_lost_answer_is_not_taken_for_an_earlier_call(bench: Bench) -> None:
    """A call of unknown fate is not found in that of an earlier attempt of the same row, whose id is known."""
    bench.provider.submits = ["r1", error("unknown"), "r3"]
    bench.provider.collects = [error("generation_error", request_id="r1")]
    bench.provider.listed_id = "r1"
    result = await bench.make()
    assert (result.status, result.attempts, result.request_id) == ("generated", 3, "r3")
    claims = await bench.ledger.claims(REQUEST.key)
    assert [(claim.claim_no, claim.request_id) for claim in claims] == [(1, "r1"), (2, None), (3, "r3")]


async def test_work_hidden_behind_a_5xx_is_taken_over(bench: Bench) -> None:
    """An answered 5xx whose call is in the history is fetched, not sent again."""
    bench.provider.submits = [error("unavailable", status=503)]
    bench.provider.listed_id = "hidden"
    result = await bench.make()
    assert (result.status, result.attempts, result.maybe_paid, result.request_id) == ("generated", 1, 0, "hidden")


async def test_looks_and_their_times(bench: Bench) -> None:
    """An unknown outcome is looked up at 30 s, 2 min and at the lag; only then it is sent again, as attempt 2."""
    bench.provider.submits = [error("unknown"), "r2"]
    looks: list[float] = []
    start = bench.clock.time
    bench.provider.watch = lambda call: looks.append((bench.clock.time - start).total_seconds())
    result = await bench.make()
    assert (result.status, result.attempts, result.maybe_paid, result.request_id) == ("generated", 2, 0, "r2")
    assert bench.provider.history == ["submit", "find", "find", "find", "submit", "collect"]
    assert looks[:4] == [0.0, 30.0, 120.0, 7200.0]
    await bench.ledger.flush()
    view = await load_ledger(bench.store)
    assert view.rank_of(f"{HEX}-1") >= RANK["failed"]


async def test_an_unknown_outcome_found_is_fetched(bench: Bench) -> None:
    """A call that the history knows is fetched, not sent again; the whole body is compared, addresses hashed."""
    request = GenerationRequest(
        "flux-2-klein-9b", {"prompt": "a cup", "seed": 7}, (Reference("url", "http://a/b", "http://a/b?sig=x"),)
    )
    bench.provider.submits = [error("unknown")]
    bench.provider.listed_id = "hidden"
    result = await bench.make(request)
    assert (result.status, result.attempts, result.request_id) == ("generated", 1, "hidden")
    (claimed,) = bench.provider.claimed
    assert claimed["prompt"] == "a cup"
    assert "sig=x" not in str(claimed)
    claims = await bench.ledger.claims(request.key)
    assert [(claim.claim_no, claim.request_id) for claim in claims] == [(1, "hidden")]


async def test_a_run_does_not_stay_open_for_unknown_outcomes(bench: Bench) -> None:
    """After the look at 30 s the row ends held; the next run goes on where this one ended."""
    bench.provider.submits = [error("unknown")]
    bench.clock.ends_in(100)
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == ("held", "unknown", 1)
    assert bench.provider.history == ["submit", "find"]


@pytest.mark.parametrize("policy", ["hold", "retry-once"])
async def test_on_unknown(policy: str, tmp_path: Path) -> None:
    """`hold` asks nothing and sends nothing; `retry-once` looks once and sends once more, counted, then holds."""
    bench = Bench(tmp_path, LedgerView.empty(), policy={"on_unknown": policy})
    bench.provider.submits = [error("unknown"), error("unknown"), "r3"]
    result = await bench.make()
    assert (result.status, result.error_kind) == ("held", "unknown")
    once = policy == "retry-once"
    assert bench.provider.history == (["submit", "find", "submit", "find"] if once else ["submit"])
    assert (result.attempts, result.maybe_paid) == ((2, 1) if once else (1, 0))


async def test_hold_covers_an_answered_5xx(tmp_path: Path) -> None:
    """With `hold` even the documented guess is not made."""
    bench = Bench(tmp_path, LedgerView.empty(), policy={"on_unknown": "hold"})
    bench.provider.submits = [error("unavailable", status=503)]
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == ("held", "unknown", 1)


async def test_a_look_that_fails_proves_nothing(bench: Bench) -> None:
    """While the history cannot be read, however late it is, nothing is sent again."""
    bench.provider.submits = [error("unknown")]
    bench.clock.ends_in(20_000)

    def refuse(call: str) -> None:
        if call == "find":
            raise error("unsent")

    bench.provider.watch = refuse
    result = await bench.make()
    assert (result.status, result.attempts) == ("held", 1)
    assert bench.provider.history.count("find") > 10


async def test_a_call_that_cannot_be_told_from_ours(tmp_path: Path) -> None:
    """A row of the history that could be the call holds it, by name; after a month it is left to a person."""
    for days, status, kind in ((1, "held", "unknown"), (32, "failed", "outcome_unknown")):
        bench = Bench(tmp_path / str(days), LedgerView.empty())
        assert await bench.ledger.claim(REQUEST.key, 1, claim_of("k1"))
        bench.clock.time += timedelta(days=days)
        bench.provider.look = Look((Candidate("strange", "unclear", "COMPLETED"),))
        result = await bench.make()
        assert (result.status, result.error_kind) == (status, kind)
        assert "strange" in str(result.error_message)
        assert "submit" not in bench.provider.history


async def test_a_5xx_whose_fate_cannot_be_read(bench: Bench) -> None:
    """An answered 5xx is sent again only after a look that is understood; until then the row waits, and is held."""
    bench.provider.submits = [error("unavailable", status=503)]
    bench.clock.ends_in(1000)

    def refuse(call: str) -> None:
        if call == "find":
            raise error("unknown")

    bench.provider.watch = refuse
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == ("held", "unknown", 1)
    assert bench.provider.history.count("submit") == 1


async def test_a_guess_of_an_earlier_run_is_looked_up(tmp_path: Path) -> None:
    """A row whose last calls were answered 5xx in an earlier run is looked for before it is sent again."""
    first = Bench(tmp_path, LedgerView.empty())
    first.provider.submits = [error("unavailable", status=503) for _ in range(5)]
    assert (await first.make()).error_kind == "unavailable"
    await first.ledger.flush()
    for listed_id, paid in (("hidden", 0), (None, 1)):
        folder = tmp_path.with_name(f"{tmp_path.name}-{listed_id}")
        shutil.copytree(tmp_path, folder)
        store = open_object_store(str(folder))
        second = Bench(folder, await load_ledger(store), nonce="n2", run_id="run2")
        second.provider.listed_id = listed_id
        result = await second.make()
        assert (result.status, result.attempts, result.maybe_paid) == ("generated", paid, paid)
        assert second.provider.history[0] == "find"
        if listed_id:
            assert result.image is not None
            assert "late" in result.image.flags


async def test_a_redirect_of_a_post_is_no_refusal(bench: Bench) -> None:
    """Who answers a POST with a redirect may have taken it: the run stops, and the row is held."""
    bench.provider.submits = [error("protocol", status=302)]
    bench.clock.ends_in(100)
    result = await bench.make()
    assert (result.status, result.error_kind, bench.control.stop_reason) == ("held", "unknown", "protocol")


async def test_retry_once_is_once_for_all_runs(tmp_path: Path) -> None:
    """A row that a run sent again on a guess is not sent once more by the next: it is held, and counted once."""
    view, results = LedgerView.empty(), []
    for number in range(3):
        bench = Bench(tmp_path, view, nonce=f"n{number}", run_id=f"run{number}", policy={"on_unknown": "retry-once"})
        bench.provider.submits = [error("unknown"), error("unknown")]
        bench.clock.time += timedelta(hours=3 * number)
        results.append(await bench.make())
        await bench.ledger.flush()
        view = await load_ledger(bench.store)
    assert [(result.status, result.attempts, result.maybe_paid) for result in results] == [
        ("held", 2, 1),
        ("held", 0, 0),
        ("held", 0, 0),
    ]
