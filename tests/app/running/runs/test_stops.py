"""What ends a run early, and that its report is written."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.prepare import RunSpec, plan_only
from prefect_imagegen.gateway.faults import Fault
from prefect_imagegen.gateway.routes import generation
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.app.running.runs.conftest import VERSIONS, generate, metadata, prompts, rules
from tests.support.manifests import manifest_of


def test_the_budget_is_a_hard_cap(tmp_path: Path) -> None:
    """The run stops, resumable, when one more image could exceed the cap; the gateway's records agree to the cent."""
    store, path = str(tmp_path / "store"), manifest_of(tmp_path, prompt=prompts(20))
    with EmbeddedGateway(GatewaySettings(price_usd=0.1)) as gateway:
        first = generate(gateway, path, store, max_cost_usd=0.75)
        assert (first.generated, first.not_run, first.stop_reason, first.exit_code) == (7, 13, "budget", 3)
        assert gateway.account_state.charged == pytest.approx(0.7)
        assert first.overshoot_usd == 0.0
        settings = ProviderSettings(base_url=gateway.url, max_in_flight=2)
        summary = asyncio.run(plan_only(RunSpec(path, StoreSettings(store), settings)))
        assert (summary.forecast.images, summary.forecast.measured) == (13, 13)
        assert summary.forecast.low_usd == summary.forecast.high_usd == pytest.approx(1.3)
        again = generate(gateway, path, store, max_cost_usd=5.0)
        assert (again.reused, again.generated, again.paid) == (7, 13, 13)
        assert len(gateway.account_state.billed) == 20


@pytest.fixture
def costless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways that name no cost."""
    sent, json_answer = generation.answer_body, generation.json_answer

    def without_cost(data: bytes, kind: str, fault: Fault | None, headers: dict[str, str]) -> Any:
        return sent(data, kind, fault, {name: text for name, text in headers.items() if name != "x-cost"})

    def json_without_cost(content: dict[str, Any], fault: Fault | None, status: int = 200) -> Any:
        content.get("metrics", {}).pop("cost", None)
        return json_answer(content, fault, status)

    monkeypatch.setattr(generation, "answer_body", without_cost)
    monkeypatch.setattr(generation, "json_answer", json_without_cost)


@VERSIONS
@pytest.mark.usefixtures("costless")
def test_an_api_that_names_no_cost(version: str, tmp_path: Path) -> None:
    """A capped run against an API that names no cost stays within the cap, is not slow for ever, and says so."""
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(40))
    with EmbeddedGateway(GatewaySettings(price_usd=0.01, latency_s=0.2)) as gateway:
        result = generate(gateway, path, str(store), api_version=version, max_cost_usd=0.9)
        assert (result.stop_reason, result.generated, result.assumed_price) == ("budget", 22, True)
        assert gateway.account_state.max_in_flight > 2
        assert metadata(store, result)["cost_usd"].null_count == 22
    folder = store / "runs" / str(result.run_id)
    assert json.loads((folder / "report.json").read_text())["assumed_price"] is True
    assert "cap held against an assumed price" in (folder / "report.md").read_text()


def test_a_key_revoked_in_mid_run_stops_it(tmp_path: Path) -> None:
    """401 stops the run with exit code 3; the same command with a good key finishes it, nothing paid twice."""
    path, store = manifest_of(tmp_path, prompt=prompts(8)), str(tmp_path / "store")
    settings = GatewaySettings(faults=rules({"fault": "status", "status": 401, "every": 4, "times": 1}))
    with EmbeddedGateway(settings) as gateway:
        first = generate(gateway, path, store, max_in_flight=1)
        assert (first.stop_reason, first.exit_code, first.generated, first.not_run) == ("auth", 3, 3, 5)
        assert generate(gateway, path, store).generated == 5
        assert gateway.account_state.statistics()["billed_twice"] == 0


def test_too_many_failures_stop_the_run(tmp_path: Path) -> None:
    """When more than half of at least twenty rows failed, the rest is not asked for."""
    script = rules({"fault": "failed", "share": 0.9})
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        result = generate(gateway, manifest_of(tmp_path, prompt=prompts(200)), str(tmp_path / "store"), max_in_flight=4)
    assert result.stop_reason == "too_many_failures"
    assert result.not_run > 150


def test_nothing_moves_until_the_deadline(tmp_path: Path) -> None:
    """An endpoint that only answers 429 stops the run at the deadline; such calls do not count as attempts."""
    script = rules({"fault": "status", "status": 429, "seconds": 0})
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        result = generate(gateway, manifest_of(tmp_path, prompt=["a"]), str(tmp_path / "store"), deadline=2.0)
    assert (result.stop_reason, result.not_run) == ("deadline", 1)


def test_a_store_that_gives_way_stops_the_run(tmp_path: Path) -> None:
    """If images cannot be stored the run stops, resumable; what was delivered is fetched again, not bought again."""
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(6))
    store.mkdir()
    (store / "images").write_text("in the way")
    with EmbeddedGateway(GatewaySettings()) as gateway:
        first = generate(gateway, path, str(store), max_in_flight=2, deadline=2.0)
        assert (first.stop_reason, first.exit_code, first.generated) == ("store", 3, 0)
        assert first.held >= 1
        assert first.held + first.not_run == 6
        (store / "images").unlink()
        again = generate(gateway, path, str(store))
        assert again.generated == 6
        assert len(gateway.account_state.billed) == 6


@pytest.mark.usefixtures("costless")
def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    """If only the metadata cannot be written, the run ends stopped, with its figures, and the next one has it all."""
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(3))
    settings = GatewaySettings()
    with EmbeddedGateway(settings) as gateway:
        ticks = iter(range(10**9))

        def clock() -> float:
            # Called for every request, so the obstacle is there before the run is finished.
            for run in store.glob("runs/*"):
                if not (run / "metadata").exists():
                    (run / "metadata").write_text("in the way")
            return 1_800_000_000.0 + next(ticks)

        settings.clock = clock
        first = generate(gateway, path, str(store), deadline=3.0)
        assert (first.stop_reason, first.generated, first.calls) == ("store", 3, 3)
        assert (first.paid, first.unpriced, first.maybe_paid) == (3, 3, 0)
        settings.clock = time.time
        again = generate(gateway, path, str(store))
        assert (again.reused, again.calls) == (3, 0)


def test_held_rows_are_fetched_by_the_next_run_of_the_same_process(tmp_path: Path) -> None:
    """A run that has ended is not taken for a living one: its sent rows are fetched by their ids, at no cost."""
    store, path = str(tmp_path / "store"), manifest_of(tmp_path, prompt=prompts(3))
    with EmbeddedGateway(GatewaySettings(latency_s=1.5)) as gateway:
        first = generate(gateway, path, store, deadline=0.5)
        assert first.failures == {"submitted": 3}
        again = generate(gateway, path, store)
        assert (again.generated, again.calls) == (3, 0)
        assert again.cost_usd > 0
        assert len(gateway.account_state.billed) == 3
