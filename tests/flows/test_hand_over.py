"""A planned run is handed to the flow in the same process, and every other flow run plans for itself."""

import asyncio
import json
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry
from prefect.utilities.collections import visit_collection

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.prepare import RunSpec, prepare
from prefect_imagegen.app.running.session import Session
from prefect_imagegen.flows import generate_images
from prefect_imagegen.flows.hand_over import HandOver, handing_over
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.manifests import manifest_of

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(600)]


def parent_of(store: Path, run_id: str) -> str | None:
    """The parent that a run names."""
    parent: str | None = json.loads((store / "runs" / run_id / "run.json").read_text())["parent_run_id"]
    return parent


def test_a_run_is_executed_once(tmp_path: Path) -> None:
    """A flow executes the run that it is handed, and plans anew, with it as parent, if it was executed."""
    path, store = manifest_of(tmp_path, prompt=["a", "b"]), tmp_path / "store"
    sessions: list[Session] = []
    with asyncio.Runner() as runner:
        planned_run = runner.run(prepare(RunSpec(path, StoreSettings(str(store)), ProviderSettings("sandbox"))))
        hand_over = HandOver(planned_run, runner, sessions.append)
        with handing_over(hand_over):
            first = generate_images("unused", str(store), "sandbox")
            assert hand_over.result is not None
            assert hand_over.result.as_dict() == first
            second = generate_images(path, str(store), "sandbox")
    assert (first["run_id"], first["calls"], second["calls"]) == (planned_run.run_id, 2, 0)
    assert [session.planned_run.run_id for session in sessions] == [first["run_id"], second["run_id"]]
    assert [parent_of(store, figures["run_id"]) for figures in (first, second)] == [None, planned_run.run_id]
    visited: list[object] = []
    visit_collection(sessions[0], visited.append, return_data=False)
    assert visited == [sessions[0]], "Prefect walks through what its tasks are given"
    third = generate_images(path, str(store), "sandbox")
    assert parent_of(store, third["run_id"]) is None


def test_a_flow_run_that_is_retried_names_its_parent(tmp_path: Path) -> None:
    """A retried flow run plans anew; its parent is the run that its order executed before."""
    path, store = manifest_of(tmp_path, prompt=["a", "b"]), tmp_path / "store"
    run_ids: list[str] = []

    @flow(retries=1, retry_delay_seconds=0)
    def nightly() -> None:
        run_ids.append(generate_images(path, str(store), "sandbox")["run_id"])
        if len(run_ids) == 1:
            raise ValueError("once more")

    nightly()
    assert len(set(run_ids)) == 2
    assert [parent_of(store, run_id) for run_id in run_ids] == [None, run_ids[0]]


def test_a_flow_run_that_is_retried_in_the_ui_names_its_parent(tmp_path: Path) -> None:
    """A flow run that is executed once more, by whatever process, plans anew as a child of its last run."""
    path, store = manifest_of(tmp_path, prompt=["a", "b"]), tmp_path / "store"
    first = generate_images(path, str(store), "sandbox", return_state=True)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(first.state_details.flow_run_id, AwaitingRetry(), force=True)
        flow_run = client.read_flow_run(first.state_details.flow_run_id)
    second = run_flow(generate_images, flow_run, parameters=flow_run.parameters)
    run_id = first.result()["run_id"]
    assert (second["reused"], parent_of(store, run_id), parent_of(store, second["run_id"])) == (2, None, run_id)
