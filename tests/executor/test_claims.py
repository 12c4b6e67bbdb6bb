"""Before a POST: claims of this run and of others, images already in the store, and the accounts of earlier calls."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import Claim
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.ports import ObjectInfo
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger
from tests.executor.conftest import HEX, REQUEST, Bench, FakeAccounts, claim_of, error, event, other_claim
from tests.support.builders.images import png

pytestmark = pytest.mark.anyio


async def test_an_image_without_a_ledger_entry_is_adopted(bench: Bench) -> None:
    """After winning a claim the store is asked first: an image that is there costs no call."""
    await bench.store.create(layout.image(HEX, "bin"), b"not read")
    await bench.store.create(layout.image(HEX, REQUEST.extension), png())
    result = await bench.make()
    assert (result.status, result.attempts, result.cost_usd) == ("generated", 0, None)
    assert bench.provider.history == []


async def test_the_cost_of_an_adopted_image(bench: Bench) -> None:
    """An image whose claim has an id is adopted with the cost that the history tells."""
    await other_claim(bench, "theirs")
    await bench.store.create(layout.image(HEX, REQUEST.extension), png())
    result = await bench.make()
    assert (result.status, result.attempts, result.cost_usd) == ("generated", 0, 0.07)
    assert bench.provider.history == []


async def test_claims_of_others(bench: Bench) -> None:
    """A living run keeps its row; a dead one's call is fetched by its id, and held if it left none."""
    await other_claim(bench, None)
    bench.alive = {"run0"}
    bench.clock.ends_in(100)
    assert (await bench.make()).error_kind == "other_run"
    bench.alive = set()
    bench.clock.ends_in(100)
    held = await bench.make()
    assert (held.status, held.error_kind) == ("held", "unknown")
    assert set(bench.provider.history) == {"find"}
    await bench.ledger.record_request_id(REQUEST.key, 1, "theirs")
    result = await bench.make()
    assert (result.status, result.request_id, result.attempts) == ("generated", "theirs", 0)
    assert bench.provider.history[-1] == "collect"


async def test_a_stop_while_a_claim_is_made(bench: Bench) -> None:
    """A run that stops between claim and POST sends nothing, and closes the attempt: nobody has to ask for it."""
    claim = bench.ledger.claim

    async def stopping(*claimed: Any) -> bool:
        bench.control.stop("signal", "SIGTERM was received")
        return await claim(*claimed)

    bench.ledger.claim = stopping  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, bench.provider.history) == ("not_run", [])
    assert bench.ledger.is_closed(f"{HEX}-1")


async def test_a_living_run_is_watched(bench: Bench) -> None:
    """A row that a living run works on is reused when its image appears, and taken over when that run ends."""
    await other_claim(bench, "theirs")
    bench.alive = {"run0"}
    asleep = bench.clock.sleep

    async def sleep(seconds: float) -> None:
        await bench.store.create(layout.image(HEX, REQUEST.extension), png())
        await asleep(seconds)

    bench.clock.sleep = sleep  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, result.cost_usd, result.attempts) == ("reused", 0.0, 0)
    assert result.image is not None
    assert bench.provider.history == []


async def test_a_run_that_dies_while_it_is_watched(bench: Bench) -> None:
    """When a watched run ends, its call is fetched by its id, and paid for once."""
    await other_claim(bench, "theirs")
    bench.alive = {"run0"}
    asleep = bench.clock.sleep

    async def sleep(seconds: float) -> None:
        bench.alive = set()
        await asleep(seconds)

    bench.clock.sleep = sleep  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, result.request_id, result.attempts) == ("generated", "theirs", 0)


async def test_nobody_sends_over_a_young_claim(tmp_path: Path) -> None:
    """The claim of a run that is silent, not gone, is left alone for 120 s, by the store's clock."""
    for dead, first in (("stale", 120.0), ("dead", 0.0)):
        bench = Bench(tmp_path / dead, LedgerView.empty(), policy={"history_lag": 0.0})
        bench.dead = dead
        await other_claim(bench, None)
        sent: list[datetime] = []
        start = bench.clock.time
        bench.provider.watch = lambda call, sent=sent, bench=bench: (
            sent.append(bench.clock.time) if call == "submit" else None
        )
        result = await bench.make()
        assert (result.status, result.attempts) == ("generated", 1)
        assert (sent[0] - start).total_seconds() == pytest.approx(first, abs=5)


async def test_a_late_claim_needs_one_look(bench: Bench) -> None:
    """A claim older than the lag is looked up once and then sent again."""
    await other_claim(bench, None)
    bench.clock.time += timedelta(hours=3)
    result = await bench.make()
    assert (result.status, result.attempts) == ("generated", 1)
    assert bench.provider.history == ["find", "submit", "collect"]


@pytest.mark.parametrize("overtaken", [True, False])
async def test_a_sleeper_does_not_send_under_an_old_claim(bench: Bench, overtaken: bool) -> None:
    """A claim older than 60 s is given up unsent: the call is looked for around the time of the claim that it has."""
    head = bench.store.head

    async def slow_head(path: str) -> Any:
        bench.store.head = head  # type: ignore[method-assign]
        bench.clock.ends_in(500)
        bench.clock.time += timedelta(minutes=5)
        if overtaken:
            later = Claim("run2", "n2", f"{HEX}-2", bench.clock.now(), {})
            await bench.ledger.claim(REQUEST.key, 2, later)
        return await head(path)

    bench.store.head = slow_head  # type: ignore[method-assign]
    result = await bench.make()
    if overtaken:
        assert (result.status, result.error_kind) == ("held", "unknown")
        assert "submit" not in bench.provider.history
    else:
        assert (result.status, result.attempts) == ("generated", 1)
        first, second = await bench.ledger.known(REQUEST.key)
        assert (first.error_kind, first.request_id, second.request_id) == ("unsent", None, "r1")


@pytest.mark.parametrize("stopped", ["now", "monotonic"])
async def test_either_clock_tells_that_a_claim_is_old(bench: Bench, stopped: str) -> None:
    """A claim is as old as either clock says: one stands still while a machine sleeps, the other may be set back."""
    moment, head = getattr(bench.clock, stopped)(), bench.store.head

    async def slow_head(path: str) -> Any:
        bench.store.head = head  # type: ignore[method-assign]
        bench.clock.time += timedelta(minutes=5)
        setattr(bench.clock, stopped, lambda: moment)
        return await head(path)

    bench.store.head = slow_head  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, result.attempts) == ("generated", 1)
    first, second = await bench.ledger.known(REQUEST.key)
    assert (first.error_kind, second.request_id) == ("unsent", "r1")


async def test_a_strange_answer_keeps_its_id(bench: Bench) -> None:
    """A POST that a sandbox answered in a real run, or the reverse, is held with its id, and the run stops."""
    bench.provider.submits = [error("sandbox_mismatch", status=200, request_id="r7")]
    result = await bench.make()
    assert (result.status, result.error_kind, result.request_id) == ("held", "submitted", "r7")
    assert bench.control.stop_reason == "sandbox_mismatch"
    (known,) = await bench.ledger.known(REQUEST.key)
    assert (known.request_id, known.is_closed) == ("r7", False)


async def test_a_guess_of_another_account(tmp_path: Path) -> None:
    """A call that another account's key gave up after an answered 5xx is not bought again with this key."""
    first = Bench(tmp_path, LedgerView.empty(), accounts=FakeAccounts("k2"))
    first.provider.submits = [error("unavailable", status=503) for _ in range(5)]
    assert (await first.make()).error_kind == "unavailable"
    await first.ledger.flush()
    second = Bench(tmp_path, await load_ledger(first.store), nonce="n2", run_id="run2")
    result = await second.make()
    assert (result.status, result.error_kind, second.provider.history) == ("held", "other_account", [])
    await second.ledger.flush()
    third = Bench(tmp_path, await load_ledger(first.store), nonce="n3", run_id="run3", accounts=FakeAccounts("k2"))
    assert (await third.make()).status == "generated"


async def test_an_id_that_only_the_ledger_has_is_polled(tmp_path: Path) -> None:
    """An id whose object was never written, and whose event was, is the attempt's own: fetched, not excluded."""
    first = Bench(tmp_path, LedgerView.empty())

    async def refuse(key: bytes, n: int, request_id: str) -> None:
        raise StoreError("store_unreachable", "gone")

    first.ledger.record_request_id = refuse  # type: ignore[method-assign]
    first.provider.collects = [error("submitted")]
    assert (await first.make()).status == "held"
    await first.ledger.flush()
    second = Bench(tmp_path, await load_ledger(first.store), nonce="n2", run_id="run2")
    second.clock.time += timedelta(hours=5)
    result = await second.make()
    assert (result.status, result.request_id, result.attempts) == ("generated", "r1", 0)
    assert second.provider.history == ["collect"]
    assert (tmp_path / layout.claim_id(HEX, 1)).exists()


async def test_a_closing_event_that_was_lost(tmp_path: Path) -> None:
    """An attempt below the highest is over, however it ended: a row that failed for good later stays so."""
    bench = Bench(tmp_path, LedgerView.empty())
    await other_claim(bench, None)
    await bench.ledger.record(event("claimed", 1))
    for number, kind in ((2, "claimed"), (2, "failed")):
        await bench.ledger.record(event(kind, number, error_kind="invalid_request" if kind == "failed" else None))
    await bench.ledger.flush()
    view = await load_ledger(bench.store)
    assert view.states(pa.array([REQUEST.key], pa.binary(16))).to_pylist() == ["failed"]
    assert view.failure(REQUEST.key)[0] == "invalid_request"


async def test_what_another_run_found_to_fail_for_good(bench: Bench) -> None:
    """A row that a concurrent run closed with a permanent kind is not bought again by a run planned before."""
    await other_claim(bench, None)
    other = StoreLedger(bench.store, LedgerView.empty(), run_id="run0", nonce="n0", clock=bench.clock)
    await other.record(event("failed", 1, error_kind="content_policy", error_message="no"))
    await other.flush()
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == ("failed", "content_policy", 0)
    assert bench.provider.history == []


async def test_a_listing_that_lags(bench: Bench) -> None:
    """A claim that exists and is not listed yet is read by its name: nobody asks for ever, and nobody sends twice."""
    await other_claim(bench, "theirs")
    listing = bench.store.list

    async def lagging(prefix: str) -> Sequence[ObjectInfo]:
        return [] if "claims" in prefix else await listing(prefix)

    bench.store.list = lagging  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, result.request_id, result.attempts) == ("generated", "theirs", 0)


async def test_a_claim_that_cannot_be_read(bench: Bench) -> None:
    """A claim that the store says exists and never shows holds its row."""
    await other_claim(bench, None)
    get, listing = bench.store.get, bench.store.list

    async def blind(path: str) -> bytes | None:
        return None if "claims" in path else await get(path)

    async def lagging(prefix: str) -> Sequence[ObjectInfo]:
        return [] if "claims" in prefix else await listing(prefix)

    bench.store.get, bench.store.list = blind, lagging  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, result.error_kind, bench.provider.history) == ("held", "other_run", [])


async def test_a_claim_tells_who_sends_and_when(bench: Bench) -> None:
    """A claim names account, key, endpoint and the heartbeat that vouches for it, and the time by every clock."""
    await bench.make()
    (known,) = await bench.ledger.known(REQUEST.key)
    claim = known.record.claim if known.record else None
    assert claim is not None
    assert (claim.account, claim.fingerprint, claim.endpoint) == ("a1", "k1", "http://fake")
    assert claim.owner == "runs/run1/heartbeat.json"
    assert claim.store_time is not None
    assert (known.account, known.request_id, known.is_delivered) == ("a1", "r1", True)


@pytest.mark.parametrize("request_id", [None, "theirs"])
async def test_calls_of_another_account(tmp_path: Path, request_id: str | None) -> None:
    """A call of another account is never bought again: without an id it is held at once, with one it is asked for."""
    bench = Bench(tmp_path, LedgerView.empty())
    assert await bench.ledger.claim(REQUEST.key, 1, claim_of("k2"))
    if request_id:
        await bench.ledger.record_request_id(REQUEST.key, 1, request_id)
    bench.clock.time += timedelta(days=20)
    bench.provider.collects = [error("submitted", status=404)]
    result = await bench.make()
    assert (result.status, result.error_kind) == ("held", "other_account")
    assert bench.provider.history == (["collect"] if request_id else [])
    if request_id:
        assert (await bench.make()).status == "generated", "what the other key lets us see is fetched"


@pytest.mark.parametrize(("shown", "ends"), [(True, "generated"), (False, "held")])
async def test_absence_needs_a_history_that_shows_the_account(tmp_path: Path, shown: bool, ends: str) -> None:
    """A rotated key proves absence only where its history shows other calls of the account that sent."""
    bench = Bench(tmp_path, LedgerView.empty(), accounts=FakeAccounts(linked=["k2"], shown=shown))
    assert await bench.ledger.claim(REQUEST.key, 1, claim_of("k2"))
    bench.clock.time += timedelta(hours=30)
    bench.clock.ends_in(500)
    result = await bench.make()
    assert (result.status, "submit" in bench.provider.history) == (ends, ends == "generated")


async def test_an_embedded_sandbox_forgets(tmp_path: Path) -> None:
    """What an earlier run's own sandbox took on is gone with it, and costs nothing: it is drawn anew at once."""
    bench = Bench(tmp_path, LedgerView.empty(), accounts=FakeAccounts(forgets=True))
    await other_claim(bench, "theirs")
    result = await bench.make()
    assert (result.status, result.attempts, bench.provider.history) == ("generated", 1, ["submit", "collect"])


async def test_a_damaged_claim_holds_its_row_alone(bench: Bench) -> None:
    """A claim that is no JSON holds its row; the run goes on."""
    await bench.store.create(layout.claim(HEX, 1), b"{")
    result = await bench.make()
    assert (result.status, result.error_kind, bench.provider.history) == ("held", "unknown", [])
    assert not bench.control.stopped


async def test_an_adopted_image_names_who_made_it(bench: Bench) -> None:
    """An image that was found in the store names the endpoint of the claim that made it."""
    assert await bench.ledger.claim(REQUEST.key, 1, claim_of("k1", endpoint="http://elsewhere"))
    await bench.store.create(layout.image(HEX, REQUEST.extension), png())
    assert (await bench.make()).endpoint == "http://elsewhere"
