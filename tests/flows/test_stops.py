"""How a flow run stops that waits for a Prefect global concurrency limit, on a real Prefect server."""

import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import (
    TaskRunFilter,
    TaskRunFilterName,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import TaskRunSort

from prefect_imagegen.executor.control import STOP_CLOCK_S
from tests.support import warm_python

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(300)]
CHILD = """
import json, sys
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.flows import generate_images

manifest, store, name = sys.argv[1:]
options = RunOptions(shard_size=2, max_in_flight=4)
state = generate_images(manifest, store, "sandbox", options, concurrency_limit=name, return_state=True)
print(json.dumps({"name": state.name, "message": state.message}))
"""


def running_shards(client: SyncPrefectClient) -> set[UUID]:
    """Shards that run, as the server knows it: also those of processes that other tests have killed."""
    running = TaskRunFilter(
        name=TaskRunFilterName(like_="shard-"),
        state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING])),
    )
    return {run.id for run in client.read_task_runs(task_run_filter=running, sort=TaskRunSort.EXPECTED_START_TIME_DESC)}


def test_sigterm_while_shards_wait_for_a_limit(tmp_path: Path) -> None:
    """SIGTERM ends a run whose shards wait for an occupied limit within the stop clock; no slot is taken afterwards."""
    path, store, name = tmp_path / "prompts.parquet", str(tmp_path / "store"), f"busy-{uuid.uuid4().hex[:8]}"
    pq.write_table(pa.table({"prompt": [f"scene {number}" for number in range(12)]}), path)
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=4))
        client.increment_concurrency_slots([name], 4, "concurrency")
        before = running_shards(client)
        environment = os.environ | {"PREFECT_API_URL": str(client.api_url)}
        child = warm_python.start("-c", CHILD, path, store, name, stdout=subprocess.PIPE, env=environment)
        try:
            end = time.monotonic() + 90
            while len(running_shards(client) - before) < 2:
                assert child.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            child.send_signal(signal.SIGTERM)
            told = time.monotonic()
            said = json.loads(child.communicate(timeout=STOP_CLOCK_S)[0])
            assert time.monotonic() - told < STOP_CLOCK_S
        finally:
            child.kill()
            child.wait()
        assert said["message"].startswith("stopped (signal): "), said
        (report,) = (tmp_path / "store").glob("runs/*/report.json")
        figures = json.loads(report.read_text())
        assert (figures["not_run"], figures["calls"], figures["stop_reason"]) == (12, 0, "signal")
        assert client.read_global_concurrency_limit_by_name(name).active_slots == 4
