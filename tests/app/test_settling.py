"""What an earlier run left, and what this one could not write, is settled at the right price."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.finish import finish
from prefect_imagegen.app.options import GenerateOptions
from prefect_imagegen.app.prepare import Job, prepare
from prefect_imagegen.app.result import RunResult
from prefect_imagegen.app.session import open_session
from prefect_imagegen.app.settings import BackendSettings, StoreSettings
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.io.object_store import FsspecObjectStore

PRICE = 0.01


def gateway(*faults: dict[str, Any], **settings: Any) -> EmbeddedGateway:
    script = FaultScript(faults=[Fault(**fault) for fault in faults])
    return EmbeddedGateway(GatewaySettings(price_usd=PRICE, faults=script, **settings))


def job(running: EmbeddedGateway, folder: Path, rows: int, **options: Any) -> Job:
    path = folder / "prompts.parquet"
    pq.write_table(pa.table({"prompt": [f"scene number {n}" for n in range(rows)]}), path)
    backend = BackendSettings(base_url=running.url, api_key=SecretStr("k"))
    return Job(str(path), StoreSettings(str(folder / "store")), backend, GenerateOptions(**options))


def generate(running: EmbeddedGateway, folder: Path, rows: int, **options: Any) -> RunResult:
    one = job(running, folder, rows)
    return prefect_imagegen.generate(one.manifest, one.store, backend=one.backend, **options)


def test_a_run_that_ended_meanwhile_has_paid(tmp_path: Path) -> None:
    """Images that another run delivered after this one had read the ledger are reused, and cost nothing again."""

    async def both(running: EmbeddedGateway) -> tuple[RunResult, float]:
        second = await prepare(job(running, tmp_path, 5, max_cost_usd=1.0))
        async with open_session(second) as session:
            one = job(running, tmp_path, 5)
            first = await prefect_imagegen.agenerate(one.manifest, one.store, backend=one.backend)
            assert (first.generated, first.failed) == (4, 1)
            await session.for_each_shard(session.run_shard)
            return await finish(session, 0.0), session.budget.spent

    with gateway({"fault": "status", "status": 400, "prompt_contains": "number 3"}) as running:
        result, spent = asyncio.run(both(running))
    assert (result.reused, result.generated, result.failed, result.paid) == (4, 0, 1, 0)
    assert (result.cost_usd, spent) == (0.0, 0.0)


def test_results_that_the_store_refused_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of results that could not be written once stops the run; what was paid is in its metadata all the same."""
    put, refused = FsspecObjectStore.put, []

    async def flaky(self: FsspecObjectStore, path: str, data: bytes, content_type: str = "") -> None:
        if "/results/" in path and not refused:
            refused.append(path)
            raise StoreError("store_unreachable", f"{path}: one time-out")
        await put(self, path, data, content_type)

    monkeypatch.setattr(FsspecObjectStore, "put", flaky)
    with gateway() as running:
        result = generate(running, tmp_path, 5)
    assert refused
    assert (result.generated, result.paid, result.stop_reason) == (5, 5, "store")
    assert result.cost_usd == pytest.approx(5 * PRICE)


def test_a_plan_that_cannot_be_read_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails while a shard is read is a stop with its reason, not a crash."""
    get = FsspecObjectStore.get
    failed = []

    async def flaky(self: FsspecObjectStore, path: str) -> bytes | None:
        if "/plan/part-" in path and not failed:
            failed.append(path)
            raise StoreError("store_unreachable", f"{path}: one time-out")
        return await get(self, path)

    monkeypatch.setattr(FsspecObjectStore, "get", flaky)
    with gateway() as running:
        result = generate(running, tmp_path, 5)
        assert (result.stop_reason, result.not_run, result.calls) == ("store", 5, 0)
        assert generate(running, tmp_path, 5).generated == 5


def left_behind(running: EmbeddedGateway, folder: Path, rows: int) -> RunResult:
    """Have a run send all rows and hold them: their answers are lost."""
    return generate(running, folder, rows, on_unknown="hold", max_failure_rate=1.0, max_in_flight=rows)


def test_what_is_paid_for_is_fetched_without_money(tmp_path: Path) -> None:
    """Held images need no budget and no balance; a stop leaves the rows that it did not reach held, not `not_run`."""
    with gateway({"fault": "disconnect", "when": "after", "times": 3}, credits=1.0) as running:
        assert left_behind(running, tmp_path, 3).held == 3
        while len(running.books.billed) < 3:
            time.sleep(0.01)
        running.books.settings.credits = running.books.charged
        result = generate(running, tmp_path, 3, history_lag=0.0, max_cost_usd=PRICE / 2)
        assert (result.generated, result.held, result.not_run, result.calls) == (3, 0, 0, 0)
        assert result.cost_usd == pytest.approx(3 * PRICE)
        assert running.books.credits == 0.0
        # Nothing is left to do, so an empty account is no reason to refuse.
        assert generate(running, tmp_path, 3).reused == 3


def test_what_others_left_does_not_trip_the_breaker(tmp_path: Path) -> None:
    """Many calls of unknown fate from a run that died say nothing of the API's health now: all are settled."""
    with gateway({"fault": "disconnect", "when": "after", "times": 30}) as running:
        assert left_behind(running, tmp_path, 30).held == 30
        result = generate(running, tmp_path, 60, history_lag=1.0)
        assert (result.generated, result.stop_reason) == (60, None)
        assert len(running.books.billed) == 60
