"""How flow runs end, and what retries do to them, on a real Prefect server of the version that is installed."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun, State
from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.blocks import Segmind
from prefect_imagegen.core.errors import ImagegenError, RefusedError
from prefect_imagegen.flows import agenerate_images, generate_images
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.support.manifests import numbered

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(600)]
PRICE = 0.04
CAP = RunOptions(max_cost_usd=0.50)


@pytest.fixture
def gateway() -> Iterator[EmbeddedGateway]:
    """The API, and a block `endings` for it."""
    with EmbeddedGateway(GatewaySettings(price_usd=PRICE, api_key=SecretStr("k"))) as running:
        Segmind(api_key="k", base_url=running.url).save("endings", overwrite=True)
        yield running


def flow_run(state: State[Any]) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id)


def faults(gateway: EmbeddedGateway, *script: dict[str, Any]) -> None:
    gateway.account_state.settings.faults = FaultScript(faults=[Fault(**fault) for fault in script])


def test_the_parameter_is_checked_and_explained() -> None:
    """`fail_above` is a share with a description; what is no share is refused before anything begins."""
    shown = generate_images.parameters.properties["fail_above"]
    assert (shown["default"], shown["minimum"], shown["maximum"]) == (0.5, 0, 1)
    assert "share of the rows" in shown["description"]
    state = generate_images("nothing.parquet", "nowhere", fail_above=1.5, return_state=True)
    assert state.name == "Failed"
    assert "less than or equal to 1" in state.message


def test_more_failures_than_the_share(gateway: EmbeddedGateway, tmp_path: Path) -> None:
    """Half of the rows may lack their image by default; above that, or the share asked for, the run is Failed."""
    faults(gateway, {"fault": "failed", "prompt_contains": "prompt 1", "text": "no"})
    path, store = numbered(tmp_path, 15, "prompt"), str(tmp_path / "store")
    arguments = (path, store, "segmind/endings")
    assert generate_images(*arguments, return_state=True).name == "CompletedWithFailures"
    state = generate_images(*arguments, fail_above=0.3, return_state=True)
    assert (state.name, state.type.value) == ("Failed", "FAILED")
    assert state.message.startswith("failed (row_errors): 6 of 15 rows have no image")
    assert flow_run(state).state.message == state.message
    with pytest.raises(ImagegenError) as caught:
        generate_images(*arguments, fail_on_row_errors=True, fail_above=1.0)
    assert caught.value.kind == "row_errors"
    faults(gateway)


def test_a_cap_holds_over_retries(gateway: EmbeddedGateway, tmp_path: Path) -> None:
    """A flow that its user retries stops at its cap once, and for good: not one image more is paid."""
    retried = generate_images.with_options(retries=2, retry_delay_seconds=0)
    store = tmp_path / "store"
    state = retried(numbered(tmp_path, 30, "prompt"), str(store), "segmind/endings", CAP, return_state=True)
    run = flow_run(state)
    assert (run.state.name, run.state.type.value, run.run_count) == ("Failed", "FAILED", 1)
    assert run.state.message.startswith("stopped (budget): one more image could exceed options.max_cost_usd")
    assert run.empirical_policy.retries == 0
    assert len(gateway.account_state.billed) * PRICE <= 0.50
    assert len(list(store.glob(f"flow_runs/{run.id}/*.json"))) == 1


def test_refusals_are_not_retried(tmp_path: Path) -> None:
    """What is refused is refused once, whatever `retries` says, with its reason."""
    retried = generate_images.with_options(retries=2, retry_delay_seconds=0)
    state = retried(str(tmp_path / "nothing.parquet"), str(tmp_path / "store"), "sandbox", return_state=True)
    run = flow_run(state)
    assert (run.state.name, run.run_count, run.empirical_policy.retries) == ("Failed", 1, 0)
    assert run.state.message.startswith("refused (manifest_not_found): ")
    assert isinstance(state.result(raise_on_failure=False), RefusedError)


@pytest.mark.anyio
async def test_refusals_of_the_async_flow(tmp_path: Path) -> None:
    """The async flow ends as the other one does."""
    retried = agenerate_images.with_options(retries=2, retry_delay_seconds=0)
    state = await retried(str(tmp_path / "nothing.parquet"), str(tmp_path / "store"), "sandbox", return_state=True)
    async with get_client() as client:
        run = await client.read_flow_run(state.state_details.flow_run_id)
    assert (run.state.name, run.run_count) == ("Failed", 1)


STUCK = RunOptions(max_cost_usd=0.50, deadline=1.0)


def test_what_passes_by_itself_is_retried(gateway: EmbeddedGateway, tmp_path: Path) -> None:
    """After `deadline` a user's retries resume the run in the same flow run, and under the same cap."""
    faults(gateway, *({"fault": "status", "status": 429, "prompt_contains": f"prompt {n}"} for n in "12"))
    store = tmp_path / "store"

    def recover() -> None:
        while not list(store.glob("runs/*/report.json")):
            time.sleep(0.05)
        faults(gateway)

    thread = threading.Thread(target=recover)
    thread.start()
    retried = generate_images.with_options(retries=2, retry_delay_seconds=1)
    state = retried(numbered(tmp_path, 30, "prompt"), str(store), "segmind/endings", STUCK, return_state=True)
    thread.join()
    run = flow_run(state)
    assert (run.run_count, run.state.name) == (2, "Failed")
    assert run.state.message.startswith("stopped (budget): ")
    assert "USD over the 2 executions of this flow run" in run.state.message
    assert 0 < len(gateway.account_state.billed) * PRICE <= 0.50
    stops = sorted(json.loads(report.read_text())["stop_reason"] for report in store.glob("runs/*/report.json"))
    assert stops == ["budget", "deadline"]


@pytest.mark.parametrize("retries", [0, 1])
def test_the_last_retry_ends_with_its_reason(gateway: EmbeddedGateway, tmp_path: Path, retries: int) -> None:
    """A run that no retry helps ends Failed with its own message, after as many executions as were asked for."""
    faults(gateway, {"fault": "status", "status": 429})
    retried = generate_images.with_options(retries=retries, retry_delay_seconds=0)
    store = str(tmp_path / "store")
    state = retried(numbered(tmp_path, 3, "prompt"), store, "segmind/endings", STUCK, return_state=True)
    faults(gateway)
    run = flow_run(state)
    assert (run.run_count, run.state.name, run.state.type.value) == (retries + 1, "Failed", "FAILED")
    assert run.state.message.startswith("stopped (deadline): ")
    assert run.empirical_policy.retries == retries


@flow(retries=2, retry_delay_seconds=0)
def campaign(path: str, store: str) -> Any:
    """A user's own flow around ours, retried as a whole."""
    return generate_images(path, store, "segmind/endings", CAP)


def test_a_cap_holds_over_the_retries_of_a_parent(gateway: EmbeddedGateway, tmp_path: Path) -> None:
    """A parent flow that is retried starts its subflow anew: that is the same order, under the same cap."""
    store = tmp_path / "store"
    state = campaign(numbered(tmp_path, 30, "prompt"), str(store), return_state=True)
    assert flow_run(state).run_count == 3
    assert len(gateway.account_state.billed) * PRICE <= 0.50
    assert len(list(store.glob("flow_runs/*"))) == 1
    assert len(list(store.glob("flow_runs/*/*.json"))) == 3
