"""One order, one cap: what the executions of an order spend counts together, each call once."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.prepare import RunSpec, prepare
from prefect_imagegen.app.running import orders
from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.app.running.run_session import open_session
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.object_store import open_object_store
from tests.support.gateway_runs import api
from tests.support.manifests import numbered

PRICE = 0.04


def execute(running: EmbeddedGateway, folder: Path, rows: int, order: str | None, **options: Any) -> RunResult:
    """One execution of an order: a run of so many rows."""
    path = numbered(folder, rows)
    backend = ProviderSettings(base_url=running.url, api_key=SecretStr("k"))
    spec = RunSpec(path, StoreSettings(str(folder / "store")), backend, RunOptions(**options))

    async def run() -> RunResult:
        async with open_session(await prepare(spec), order) as session:
            await session.for_each_shard(session.run_shard)
            return await finish(session, 0.0)

    return asyncio.run(run())


def lose_the_events(folder: Path) -> None:
    """As if the last run had been killed before it could write down a single event."""
    store = folder / "store"
    for segment in (store / "ledger" / "segments").glob("*.parquet"):
        segment.unlink()
    (beat,) = store.glob("runs/*/heartbeat.json")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    beat.write_text(json.dumps(json.loads(beat.read_text()) | {"ended": False, "pid": gone.pid}))


def test_a_cap_holds_over_all_executions(tmp_path: Path) -> None:
    """Whatever is executed again under the same order spends what is left of its cap; another order has its own."""
    with api(price_usd=PRICE) as running:
        first = execute(running, tmp_path, 30, "order", max_cost_usd=0.50)
        assert (first.stop_reason, first.earlier, first.order_text) == ("budget", None, "")
        spent = [len(running.account_state.billed)]
        for n in (2, 3):
            again = execute(running, tmp_path, 30, "order", max_cost_usd=0.50)
            assert (again.stop_reason, again.calls, again.reused) == ("budget", 0, spent[0])
            assert again.stop_message == "this flow run's cap is used; start a new run to allow more"
            assert again.order == {"executions": n, "cost_usd": pytest.approx(spent[0] * PRICE), "open_usd": 0.0}
            assert f"{spent[0] * PRICE:.4f} USD over the {n} executions of this flow run" in again.order_text
            spent.append(len(running.account_state.billed))
        assert spent == [12, 12, 12]
        assert execute(running, tmp_path, 30, "another", max_cost_usd=0.20).generated == 5
        assert execute(running, tmp_path, 30, None, max_cost_usd=0.20).generated == 5
        more = execute(running, tmp_path, 30, "order", max_cost_usd=0.60)
    assert (more.generated, more.earlier.cost_usd) == (3, pytest.approx(12 * PRICE))
    assert sorted(path.name for path in (tmp_path / "store" / "flow_runs" / "order").iterdir()) == [
        f"{n}.json" for n in range(1, 5)
    ]
    report = json.loads((tmp_path / "store" / "runs" / more.run_id / "report.json").read_text())
    assert report["order"] == {"executions": 4, "cost_usd": pytest.approx(15 * PRICE), "open_usd": 0.0}


def test_settling_turns_a_reservation_into_cost(tmp_path: Path) -> None:
    """Calls that an execution left open are reserved for in the next, which fetches them: then they count once."""
    with api({"fault": "disconnect", "when": "after", "times": 3}, price_usd=PRICE) as running:
        left = execute(
            *(running, tmp_path, 3, "order"),
            max_cost_usd=0.50,
            on_unknown="hold",
            max_failure_rate=1.0,
            max_in_flight=3,
        )
        assert (left.held, left.cost_usd) == (3, 0.0)
        while len(running.account_state.billed) < 3:
            time.sleep(0.01)
        done = execute(running, tmp_path, 30, "order", max_cost_usd=0.50, history_lag=0.0)
        assert len(running.account_state.billed) <= 12
    assert (done.generated, done.stop_reason) == (12, "budget")
    assert done.order == {"executions": 2, "cost_usd": pytest.approx(12 * PRICE), "open_usd": 0.0}


def test_what_stays_open_stays_reserved(tmp_path: Path) -> None:
    """Calls whose fate nobody knows use up the cap: they may be billed still."""
    with api({"fault": "disconnect", "when": "after", "times": 3}, price_usd=PRICE) as running:
        options = {"on_unknown": "hold", "max_failure_rate": 1.0, "max_in_flight": 3}
        execute(running, tmp_path, 3, "order", max_cost_usd=0.50, **options)
        again = execute(running, tmp_path, 30, "order", max_cost_usd=0.50, **options)
        assert len(running.account_state.billed) <= 12
    assert (again.held, again.generated) == (3, 9)
    assert again.order["open_usd"] == pytest.approx(3 * 0.04019, abs=0.001)
    assert "reserved for earlier calls" in again.order_text


def test_a_killed_execution_has_spent(tmp_path: Path) -> None:
    """Claims of a process that died with all its events in memory count at the dearest price until they are settled."""
    with api(price_usd=PRICE) as running:
        execute(running, tmp_path, 5, "order", max_cost_usd=0.50)
        lose_the_events(tmp_path)
        for image in (tmp_path / "store" / "images").rglob("*.png"):
            image.unlink()

        async def before() -> dict[str, str | None]:
            store = open_object_store(str(tmp_path / "store"), {})
            (name,) = (tmp_path / "store" / "flow_runs" / "order").iterdir()
            run_id = json.loads(name.read_text())["run_id"]
            spending = await orders.spent_before(store, orders.Execution(2, (run_id,)), queues=True)
            other = await orders.spent_before(store, orders.Execution(2, ("nobody",)), queues=True)
            store.close()
            assert (spending.cost_usd, other.unpriced) == (0.0, {})
            return dict(spending.unpriced)

        assert list(asyncio.run(before()).values()) == [None] * 5
        again = execute(running, tmp_path, 30, "order", max_cost_usd=0.50)
        assert len(running.account_state.billed) <= 12
    assert running.account_state.statistics()["billed_twice"] == 0
    assert again.generated >= 5
    assert again.order["open_usd"] == 0.0


def test_executions_are_numbered_in_the_store(tmp_path: Path) -> None:
    """Each execution has a number of its own, also where several begin at once; a put sent again is the same one."""

    async def all_at_once() -> list[orders.Execution]:
        store = open_object_store(str(tmp_path), {})
        executions = await asyncio.gather(*(orders.enter(store, "order", f"run-{n}") for n in range(8)))
        again = await orders.enter(store, "order", "run-3")
        assert again == executions[3]
        store.close()
        return executions

    executions = asyncio.run(all_at_once())
    assert sorted(execution.number for execution in executions) == list(range(1, 9))
    assert all(len(set(execution.earlier)) == execution.number - 1 for execution in executions)
