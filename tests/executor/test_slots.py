"""Slots, money and time: how much is out at once, what is awaited beside it, and calls that cost nothing."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.policy.abilities import FREE
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.executor import attempt as calls_module
from prefect_imagegen.ports import Delivery, Submission
from tests.executor.conftest import HEX, REQUEST, Bench, CountingStore, Hanging, error
from tests.support.builders.images import png
from tests.support.builders.requests import request_for

pytestmark = pytest.mark.anyio


async def test_an_interruption_leaves_sent_rows_held(bench: Bench) -> None:
    """A signal lets go of what is being fetched: held, with its id in the store."""
    bench.provider.watch = lambda call: bench.control.interrupt("signal", "SIGTERM") if call == "collect" else None
    result = await bench.make()
    assert (result.status, result.error_kind, result.request_id) == ("held", "submitted", "r1")
    assert (bench.folder / layout.claim_id(HEX, 1)).exists()


async def test_slots(tmp_path: Path) -> None:
    """Never more in flight than slots, and a row that waits to try again holds none."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=3)
    bench.provider.submits = [error("unavailable", status=503) for _ in range(10)]
    sleeping, busy = 0, [0]

    async def watched(seconds: float) -> None:
        nonlocal sleeping
        sleeping += 1
        await asyncio.sleep(0.03)
        busy.append(sleeping + bench.executor.slots.used)
        sleeping -= 1

    bench.clock.sleep = watched  # type: ignore[method-assign]
    requests = [request_for(f"p{n}", n) for n in range(20)]
    results = await asyncio.gather(*map(bench.make, requests))
    assert {result.status for result in results} == {"generated"}
    assert bench.provider.most_in_flight == 3
    assert max(busy) > 3, "rows that wait must not keep others from running"


async def test_a_cap_is_never_exceeded_and_wholly_used(tmp_path: Path) -> None:
    """Calls are sent while the worst known cost still fits; then the run stops, resumable; nothing is overshot."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=8, budget=Budget(cap=0.41))
    requests = [request_for(f"p{n}", n) for n in range(30)]
    results = await asyncio.gather(*map(bench.make, requests))
    made = [result for result in results if result.status == "generated"]
    assert len(made) == 10
    assert {result.status for result in results} == {"generated", "not_run"}
    assert bench.control.stop_reason == "budget"
    assert bench.context.budget.spent == pytest.approx(0.4)
    assert (bench.context.budget.reserved, bench.context.budget.overshoot) == (pytest.approx(0.0), 0.0)


async def test_an_unmeasured_class_goes_two_at_a_time(tmp_path: Path) -> None:
    """Until five costs of a class are measured at most two of it are in flight, then all slots are used."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=8, budget=Budget(cap=100.0))
    slot_counts: list[tuple[int, int]] = []
    bench.provider.watch = lambda _: slot_counts.append(
        (bench.context.budget.measured.total(), bench.executor.slots.used)
    )
    requests = [request_for(f"p{n}", n) for n in range(30)]
    await asyncio.gather(*map(bench.make, requests))
    assert max(used for measured, used in slot_counts if measured < 5) == 2
    assert max(used for _, used in slot_counts) == 8


async def test_unknown_outcomes_stay_reserved(tmp_path: Path) -> None:
    """What may have been billed is not spent again: its price stays reserved, and the run stops at the cap."""
    bench = Bench(tmp_path, LedgerView.empty(), budget=Budget(cap=0.09), policy={"on_unknown": "hold"})
    bench.provider.submits = [error("unknown"), error("unknown")]
    requests = [request_for(f"p{n}", n) for n in range(3)]
    results = [await bench.make(request) for request in requests]
    assert [result.status for result in results] == ["held", "held", "not_run"]
    assert bench.context.budget.reserved == pytest.approx(2 * 0.04019)


async def test_stuck_jobs_give_their_slots_away(tmp_path: Path) -> None:
    """A job far slower than the others is polled without a slot; at the end of the run it is held, with its id."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=1, policy={"straggler_seconds": 0.0})
    for _ in range(40):
        bench.context.totals.add(0.001)
    collect = bench.provider.collect

    async def stuck(submission: Submission) -> Delivery:
        if submission.request.prompt == "stuck":
            await asyncio.Event().wait()
        return await collect(submission)

    bench.provider.collect = stuck  # type: ignore[method-assign]
    calls_module.STUCK_AT_LEAST_S, before = 0.05, calls_module.STUCK_AT_LEAST_S
    try:
        requests = [request_for(p, 1) for p in ("stuck", "a", "b")]
        results = [await bench.executor.make(request, request.key) for request in requests]
    finally:
        calls_module.STUCK_AT_LEAST_S = before
    assert [result.status for result in results] == ["held", "generated", "generated"]
    bench.clock.time += timedelta(minutes=1)
    (late,) = await bench.executor.finish_deferred()
    assert (late.status, late.error_kind, late.request_id) == ("held", "submitted", "r1")


@pytest.mark.usefixtures("impatient")
async def test_a_slow_answer_is_awaited_without_a_slot(tmp_path: Path) -> None:
    """A POST that takes far longer than others gives its slot away, and is not cut: its answer counts, once paid."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=1)
    for _ in range(40):
        bench.context.submits.add(0.001)
    hanging = Hanging(bench)
    result = await bench.executor.make(REQUEST, REQUEST.key)
    assert (result.status, result.error_kind) == ("held", "unknown")
    assert (bench.executor.slots.used, bench.executor.awaited) == (0, 1)
    hanging.answers[0].set_result("r9")
    (late,) = await bench.executor.finish_deferred()
    assert (late.status, late.request_id, late.attempts) == ("generated", "r9", 1)
    assert bench.executor.awaited == 0
    assert "find" not in bench.provider.history


@pytest.mark.parametrize("pause", [0.0, 0.02])
@pytest.mark.usefixtures("impatient")
async def test_a_black_hole_takes_twice_the_slots_at_most(pause: float, tmp_path: Path) -> None:
    """When as many answers are awaited beside the slots as there are slots, nothing new is sent."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=3)
    for _ in range(40):
        bench.context.submits.add(0.001)
    hanging = Hanging(bench)
    requests = [request_for(f"p{n}", n) for n in range(30)]
    tasks = []
    for request in requests:
        tasks.append(asyncio.create_task(bench.executor.make(request, request.key)))
        await asyncio.sleep(pause)
    await hanging.six.wait()
    await asyncio.sleep(0.3)
    assert (len(hanging.answers), bench.executor.awaited) == (6, 3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    bench.control.interrupt("signal", "the test is over")
    bench.clock.ends_in(20)
    assert {result.status for result in await bench.executor.finish_deferred()} == {"held"}


@pytest.mark.usefixtures("impatient")
async def test_an_interruption_waits_for_what_is_worked_on(tmp_path: Path) -> None:
    """A deferred request whose answer has come is not let go amid its id: the id is durable, and the row held by it."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=1)
    for _ in range(40):
        bench.context.submits.add(0.001)
    hanging = Hanging(bench)
    assert (await bench.executor.make(REQUEST, REQUEST.key)).error_kind == "unknown"
    keep = bench.ledger.record_request_id

    async def slow(key: bytes, n: int, request_id: str) -> None:
        bench.control.interrupt("signal", "SIGTERM was received")
        await asyncio.sleep(0.3)
        await keep(key, n, request_id)

    bench.ledger.record_request_id = slow  # type: ignore[method-assign]
    hanging.answers[0].set_result("r9")
    (late,) = await bench.executor.finish_deferred()
    assert (late.status, late.error_kind, late.request_id) == ("held", "submitted", "r9")
    assert [(claim.claim_no, claim.request_id) for claim in await bench.ledger.claims(REQUEST.key)] == [(1, "r9")]


async def test_a_post_ends_after_the_deadline(tmp_path: Path) -> None:
    """A POST that is never answered is of unknown fate after --deadline: looked up, not sent again."""
    bench = Bench(tmp_path, LedgerView.empty(), policy={"deadline": 0.05})
    Hanging(bench)
    bench.provider.listed_id = "hidden"
    result = await bench.make()
    assert (result.status, result.attempts, result.request_id) == ("generated", 1, "hidden")


async def test_refusals_lower_the_concurrency(tmp_path: Path) -> None:
    """429s lower the number of calls in flight; successes raise it again."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=16)
    bench.provider.submits = [error("rate_limited", status=429, retry_after=1.0) for _ in range(16)]
    requests = [request_for(f"p{n}", n) for n in range(200)]
    lowest = [16]
    bench.provider.watch = lambda _: lowest.append(bench.context.concurrency.now)
    results = await asyncio.gather(*map(bench.make, requests))
    assert {result.status for result in results} == {"generated"}
    assert (min(lowest) <= 8, bench.context.concurrency.now) == (True, 16)


async def test_a_free_call_leaves_no_claim(free: Bench) -> None:
    """Calls that cost nothing need no claim, no id and no reservation: two requests of the store for an image."""
    store = CountingStore(*fsspec.core.url_to_fs(str(free.folder)), str(free.folder))
    store.counts = Counter()
    counted = Bench(free.folder, LedgerView.empty(), store=store, budget=Budget(0.0))
    counted.provider.abilities, counted.provider.submits = FREE, [None]
    result = await counted.make()
    assert (result.status, result.paid) == ("generated", 0)
    assert store.counts == {"HEAD images": 1, "PUT images": 1}
    assert not list(free.folder.glob("ledger/claims/*"))


@pytest.mark.parametrize("kind", ["unknown", "submitted", "worker_lost"])
async def test_a_lost_free_call_is_repeated_at_once(free: Bench, kind: str) -> None:
    """Nothing is owed for a call of unknown fate, so nobody looks it up or waits; five times is enough."""
    free.provider.submits = [error(kind, retry_after=0.0), None]
    started = free.clock.monotonic()
    result = await free.make()
    assert (result.status, result.attempts, result.maybe_paid) == ("generated", 2, 0)
    assert free.clock.monotonic() == started
    assert "find" not in free.provider.history
    free.provider.submits = [error(kind) for _ in range(9)]
    result = await free.make(request_for("b", 1))
    assert (result.status, result.error_kind, result.attempts) == ("failed", "worker_lost", 5)


async def test_bad_bytes_of_a_worker_are_drawn_again(free: Bench) -> None:
    """What a worker delivers and is no image is asked for again, three times at most."""
    free.provider.submits = [None, None]
    free.provider.collects = [b"<html>"]
    assert (await free.make()).attempts == 2
    free.provider.submits = [None] * 9
    free.provider.collects = [b"<html>"] * 9
    result = await free.make(request_for("b", 1))
    assert (result.status, result.error_kind, result.attempts) == ("failed", "worker_failed", 3)


async def test_a_stopped_free_call_is_not_run(free: Bench) -> None:
    """A call that a stop cuts short is as if it had not been sent: nothing is held."""
    free.provider.watch = lambda call: free.control.interrupt("signal", "stop") if call == "submit" else None
    free.provider.submits = [error("unknown")]
    result = await free.make()
    assert (result.status, result.error_kind) == ("not_run", "signal")


async def test_the_loser_of_two_free_runs_keeps_what_is_there(free: Bench) -> None:
    """Two runs may draw the same image; the store keeps the first, and the second records that one."""
    other = png()

    def put(call: str) -> None:
        path = free.folder / layout.image(HEX, REQUEST.extension)
        if call == "collect":
            path.parent.mkdir(parents=True)
            path.write_bytes(other)

    free.provider.watch = put
    result = await free.make()
    assert result.status == "generated"
    assert result.image is not None
    assert result.image.size_bytes == len(other)


async def test_nothing_is_sent_while_the_heartbeat_is_old(bench: Bench) -> None:
    """A run whose sign of life is 45 s old pauses before its POST, and goes on when it is young again."""
    bench.beat_age = 50.0
    asleep = bench.clock.sleep

    async def sleep(seconds: float) -> None:
        assert "submit" not in bench.provider.history
        bench.beat_age = 0.0
        await asleep(seconds)

    bench.clock.sleep = sleep  # type: ignore[method-assign]
    assert (await bench.make()).status == "generated"


@pytest.mark.parametrize(
    ("trouble", "reason"), [(None, "deadline"), (StoreError("store_unreachable", "No answer."), "store")]
)
async def test_a_run_in_which_nothing_moves_ends(tmp_path: Path, trouble: StoreError | None, reason: str) -> None:
    """When no row has moved for --deadline the run is interrupted: what is out is held, with its claim.

    Where the store is in trouble, that is the reason told, whichever of the two deadlines is over first.
    """
    bench = Bench(tmp_path, LedgerView.empty(), policy={"deadline": 1e9})
    bench.control.store_trouble = lambda: trouble
    collected = asyncio.Event()

    async def never(submission: Submission) -> Delivery:
        collected.set()
        await asyncio.Event().wait()
        raise AssertionError

    bench.provider.collect = never  # type: ignore[method-assign]
    making = asyncio.create_task(bench.make())
    await collected.wait()
    watching = asyncio.create_task(bench.control.watch())
    result = await making
    watching.cancel()
    assert (result.status, result.error_kind, bench.control.stop_reason) == ("held", "submitted", reason)
    assert bench.clock.monotonic() - datetime(2026, 11, 1, tzinfo=UTC).timestamp() < 600 + 25
