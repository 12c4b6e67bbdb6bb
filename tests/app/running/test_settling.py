"""What an earlier run left, and what this one could not write, is settled at the right price."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.verify import verify
from prefect_imagegen.app.planning.prepare import RunSpec, prepare
from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.run_session import open_session
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import KnownAttempt
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.ports import ObjectInfo
from prefect_imagegen.providers import registry
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.object_store import FsspecObjectStore
from tests.support.gateway_runs import PRICE, api, report_text
from tests.support.manifests import numbered


def spec_of(running: EmbeddedGateway, folder: Path, rows: int, **options: Any) -> RunSpec:
    path = numbered(folder, rows)
    backend = ProviderSettings(base_url=running.url, api_key=SecretStr("k"))
    return RunSpec(path, StoreSettings(str(folder / "store")), backend, RunOptions(**options))


def generate(running: EmbeddedGateway, folder: Path, rows: int, **options: Any) -> RunResult:
    spec = spec_of(running, folder, rows)
    return prefect_imagegen.generate(spec.manifest, spec.store, backend=spec.provider, **options)


@pytest.mark.parametrize("slow", [False, True])
def test_a_run_that_ended_meanwhile_has_paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> None:
    """Images that another run delivered after this one had read the ledger are reused, and cost nothing again.

    Also where the facts of some rows were read before the ledger was read anew, and used after it (`slow`).
    """
    known = StoreLedger.known
    asked: list[bytes] = []

    async def late(self: StoreLedger, key: bytes, *, lost: int = 0) -> Sequence[KnownAttempt]:
        attempts = await known(self, key, lost=lost)
        asked.append(key)
        if len(asked) in (2, 3):
            await asyncio.sleep(0.5)
        return attempts

    async def both(running: EmbeddedGateway) -> tuple[RunResult, float]:
        second = await prepare(spec_of(running, tmp_path, 5, max_cost_usd=1.0))
        async with open_session(second) as session:
            spec = spec_of(running, tmp_path, 5)
            first = await prefect_imagegen.agenerate(spec.manifest, spec.store, backend=spec.provider)
            assert (first.generated, first.failed) == (4, 1)
            if slow:
                monkeypatch.setattr(StoreLedger, "known", late)
            await session.for_each_shard(session.run_shard)
            return await finish(session, 0.0), session.budget.spent

    with api({"fault": "status", "status": 400, "prompt_contains": "number 3"}) as running:
        result, spent = asyncio.run(both(running))
    assert (result.reused, result.generated, result.failed, result.paid) == (4, 0, 1, 0)
    assert (result.cost_usd, spent) == (0.0, 0.0)


def test_a_run_that_ended_between_plan_and_start_has_paid(tmp_path: Path) -> None:
    """What another run delivered, or found to fail for good, after this one was planned is neither made nor paid again.

    It was known before this run read the ledger, and not when it was planned.
    """

    async def both(running: EmbeddedGateway) -> tuple[RunResult, float]:
        planned_run = await prepare(spec_of(running, tmp_path, 5, max_cost_usd=1.0))
        spec = spec_of(running, tmp_path, 4)
        first = await prefect_imagegen.agenerate(spec.manifest, spec.store, backend=spec.provider)
        assert (first.generated, first.failed) == (3, 1)
        async with open_session(planned_run) as session:
            await session.for_each_shard(session.run_shard)
            return await finish(session, 0.0), session.budget.spent

    with api({"fault": "status", "status": 400, "prompt_contains": "number 3"}) as running:
        result, spent = asyncio.run(both(running))
        assert (result.reused, result.generated, result.failed, result.paid) == (3, 1, 1, 1)
        assert (result.failures, result.calls) == ({"invalid_request": 1}, 1)
        assert len(running.account_state.billed) == 4
    assert (result.cost_usd, spent) == (pytest.approx(PRICE), pytest.approx(PRICE))
    assert not any("late" in (row["flags"] or ()) for row in columns(tmp_path, result, "flags"))


def test_what_is_written_while_the_ledger_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that another run writes while a run reads the ledger are known to it, whichever listing shows them."""
    listing, aside = FsspecObjectStore.list, tmp_path / "segment"

    async def late(self: FsspecObjectStore, prefix: str) -> Sequence[ObjectInfo]:
        infos = await listing(self, prefix)
        if prefix == layout.SEGMENTS and aside.exists():
            aside.rename(segment)
        return infos

    async def known(running: EmbeddedGateway) -> list[str | None]:
        planned_run = await prepare(spec_of(running, tmp_path, 1))
        monkeypatch.setattr(FsspecObjectStore, "list", late)
        async with open_session(planned_run) as session:
            await session.ledger.refresh(at_once=True)
            (planned_request,) = (await session.plan.shard(0))[:1]
            return [attempt.error_kind for attempt in await session.ledger.known(planned_request.key)]

    with api({"fault": "status", "status": 400}) as running:
        assert generate(running, tmp_path, 1).failures == {"invalid_request": 1}
        (segment,) = (tmp_path / "store" / layout.SEGMENTS).iterdir()
        segment.rename(aside)
        assert asyncio.run(known(running)) == ["invalid_request"]
    assert not aside.exists()


@pytest.mark.parametrize(("times", "reason"), [(1, None), (1000, "store")])
def test_results_that_the_store_refused_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, reason: str | None
) -> None:
    """A part of results that the store refuses is put again; refused for --deadline it stops the run.

    What was paid is in its metadata all the same.
    """
    put, refused = FsspecObjectStore.put, []

    async def flaky(self: FsspecObjectStore, path: str, data: bytes, content_type: str = "") -> None:
        if "/results/" in path and len(refused) < times:
            refused.append(path)
            raise StoreError("store_unreachable", f"{path}: one time-out")
        await put(self, path, data, content_type)

    monkeypatch.setattr(FsspecObjectStore, "put", flaky)
    with api() as running:
        result = generate(running, tmp_path, 5, deadline=2.0)
    assert refused
    assert (result.generated, result.paid, result.stop_reason) == (5, 5, reason)
    assert result.cost_usd == pytest.approx(5 * PRICE)


def columns(folder: Path, result: RunResult, *names: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / "store" / "runs" / str(result.run_id) / "metadata", columns=list(names)).to_pylist()


def test_an_image_that_is_quarantined_after_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that was there for the plan and is quarantined before the run ends its row as failed, not the run."""

    async def meanwhile(running: EmbeddedGateway) -> RunResult:
        planned_run = await prepare(spec_of(running, tmp_path, 5))
        next((tmp_path / "store" / "images").rglob("*.png")).unlink()
        # While the API may still have the image, and nobody can ask it, the key is not given free.
        (young,) = (await verify(planned_run.spec.store, ProviderSettings(), RunOptions(), repair=True)).problems
        assert (young.kind, young.repair) == ("missing_image", None)
        entry = registry.PROVIDERS["segmind"]
        short_lived = replace(entry, abilities=replace(entry.abilities, outputs_live=timedelta(0)))
        monkeypatch.setattr(registry, "PROVIDERS", {**registry.PROVIDERS, "segmind": short_lived})
        (old,) = (await verify(planned_run.spec.store, ProviderSettings(), RunOptions(), repair=True)).problems
        assert (old.kind, old.repair) == ("missing_image", "quarantined")
        async with open_session(planned_run) as session:
            await session.for_each_shard(session.run_shard)
            return await finish(session, 0.0)

    with api() as running:
        generate(running, tmp_path, 4)
        result = asyncio.run(meanwhile(running))
        assert (result.rows, result.reused, result.generated, result.failed, result.exit_code) == (5, 3, 1, 1, 1)
        assert result.failures == {"image_damaged": 1}
        (row,) = [row for row in columns(tmp_path, result, "status", "error_kind", "cost_usd") if row["error_kind"]]
        assert row == {"status": "failed", "error_kind": "image_damaged", "cost_usd": 0.0}
        assert "verify --repair" in report_text(tmp_path, result, "report.md")
        # It was given free: the next run makes it.
        assert generate(running, tmp_path, 5).generated == 1


@pytest.mark.parametrize("named", [None, 0.03])
@pytest.mark.parametrize(("kind", "paid"), [("bad_output", 1), ("output_lost", 0), ("generation_failed", 1)])
def test_what_was_billed_and_failed_is_not_free(kind: str, paid: int, named: float | None, tmp_path: Path) -> None:
    """A row that failed and was billed carries its cost, or null where nobody named one; one that was not, 0."""

    async def run(running: EmbeddedGateway) -> RunResult:
        async with open_session(await prepare(spec_of(running, tmp_path, 2))) as session:

            async def make(request: GenerationRequest, key: bytes) -> RequestResult:
                if "0" in request.params["prompt"]:
                    return RequestResult(key, "failed", kind, "as told", cost_usd=named, paid=paid)
                return RequestResult(key, "failed", "invalid_request", "as told", cost_usd=named)

            session.executor.make = make  # type: ignore[method-assign]
            await session.for_each_shard(session.run_shard)
            return await finish(session, 0.0)

    with api() as running:
        result = asyncio.run(run(running))
    assert [row["cost_usd"] for row in columns(tmp_path, result, "cost_usd")] == [named, 0.0]
    assert (result.cost_usd, result.paid) == (named or 0.0, paid)


def test_what_was_not_understood_is_reported(tmp_path: Path) -> None:
    """Answers that were not understood are counted in the result, in report.json, and in words in report.md."""

    async def run(running: EmbeddedGateway) -> RunResult:
        async with open_session(await prepare(spec_of(running, tmp_path, 1))) as session:
            session._provider.not_understood.update({"history: no list": 3, "poll: status 503": 1})
            return await finish(session, 0.0)

    with api() as running:
        result = asyncio.run(run(running))
    assert result.not_understood == {"history: no list": 3, "poll: status 503": 1}
    assert json.loads(report_text(tmp_path, result))["not_understood"] == result.not_understood
    assert "not understood, and so proved nothing: history: no list (3), poll: status 503 (1)." in report_text(
        tmp_path, result, "report.md"
    )


@pytest.mark.parametrize(("times", "reason"), [(1, None), (1000, "store")])
def test_a_plan_that_cannot_be_read_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, reason: str | None
) -> None:
    """A store that fails while a shard is read is asked again, and is a stop with its reason after --deadline."""
    get = FsspecObjectStore.get
    failed = []

    async def flaky(self: FsspecObjectStore, path: str) -> bytes | None:
        if "/plan/part-" in path and len(failed) < times:
            failed.append(path)
            raise StoreError("store_unreachable", f"{path}: one time-out")
        return await get(self, path)

    monkeypatch.setattr(FsspecObjectStore, "get", flaky)
    with api() as running:
        result = generate(running, tmp_path, 5, deadline=2.0)
        assert (result.stop_reason, result.generated) == (reason, 0 if reason else 5)
        assert result.not_run == (5 if reason else 0)
        failed.extend(["enough"] * times)
        assert generate(running, tmp_path, 5).rows == 5


def left_behind(running: EmbeddedGateway, folder: Path, rows: int) -> RunResult:
    """Have a run send all rows and hold them: their answers are lost."""
    return generate(running, folder, rows, on_unknown="hold", max_failure_rate=1.0, max_in_flight=rows)


def test_what_is_paid_for_is_fetched_without_money(tmp_path: Path) -> None:
    """Held images need no budget and no balance; a stop leaves the rows that it did not reach held, not `not_run`."""
    with api({"fault": "disconnect", "when": "after", "times": 3}, credits=1.0) as running:
        assert left_behind(running, tmp_path, 3).held == 3
        while len(running.account_state.billed) < 3:
            time.sleep(0.01)
        running.account_state.settings.credits = running.account_state.charged
        result = generate(running, tmp_path, 3, history_lag=0.0, max_cost_usd=PRICE / 2)
        assert (result.generated, result.held, result.not_run, result.calls) == (3, 0, 0, 0)
        assert result.cost_usd == pytest.approx(3 * PRICE)
        assert running.account_state.credits == 0.0
        # Nothing is left to do, so an empty account is no reason to refuse.
        assert generate(running, tmp_path, 3).reused == 3


def test_what_others_left_does_not_trip_the_breaker(tmp_path: Path) -> None:
    """Many calls of unknown fate from a run that died say nothing of the API's health now: all are settled."""
    with api({"fault": "disconnect", "when": "after", "times": 30}) as running:
        assert left_behind(running, tmp_path, 30).held == 30
        result = generate(running, tmp_path, 60, history_lag=1.0)
        assert (result.generated, result.stop_reason) == (60, None)
        assert len(running.account_state.billed) == 60
