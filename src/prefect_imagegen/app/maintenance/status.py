"""`status`: the runs of a store, and its accounts."""

from dataclasses import dataclass
from typing import Any

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.access import existing_store
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError, StoreError
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.store.heartbeat import HeartbeatAges, Process, heartbeat_liveness
from prefect_imagegen.store.ledger.accounts import KeyRecord, known_keys
from prefect_imagegen.store.ledger.files import json_object
from prefect_imagegen.store.object_store import FsspecObjectStore


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of one run.

    `state`: finished, stopped, running, planned, abandoned or damaged. `report` (`report.json`) and `report_text`
    (`report.md`) are empty until the run has ended.
    """

    run_id: str
    state: str
    manifest: str
    report: dict[str, Any]
    report_text: str = ""


async def statuses(settings: StoreSettings, run_id: str | None = None) -> list[RunStatus]:
    """All runs of a store, oldest first, or only `run_id`. Raises RefusedError."""
    async with existing_store(settings) as store:
        if run_id is None:
            files = [info.path.split("/") for info in await store.list(layout.RUNS)]
            names = sorted({parts[1] for parts in files if parts[-1] == "run.json"})
        else:
            names = [run_id]
        runs = []
        for name in names:
            try:
                runs.append(await _status(store, name))
            except StoreError:
                if run_id is not None:
                    raise
                runs.append(RunStatus(name, "damaged", "", {}))  # the other runs are still shown
        return runs


async def accounts(settings: StoreSettings) -> list[KeyRecord]:
    """The API keys that have paid in a store, with their accounts. Raises RefusedError."""
    async with existing_store(settings) as store:
        return await known_keys(store)


async def _status(store: FsspecObjectStore, run_id: str) -> RunStatus:
    about = await _read(store, run_id, "run.json")
    if about is None:
        raise RefusedError("run_not_found", f"{store.url} has no run {run_id!r}.", remedy="List them without RUN.")
    report = await _read(store, run_id, "report.json")
    if report is not None:
        text = await store.get(layout.run(run_id, "report.md"))
        state = "stopped" if report.get("stop_reason") else "finished"
        return RunStatus(run_id, state, about.get("manifest", ""), report, (text or b"").decode())
    if await store.head(layout.run(run_id, "started.json")) is None:
        return RunStatus(run_id, "planned", about.get("manifest", ""), {})
    clock = SystemClock()
    life = await heartbeat_liveness(
        store, layout.heartbeat(run_id), clock.now(), Process.this(""), HeartbeatAges(clock)
    )
    return RunStatus(run_id, "running" if life == "alive" else "abandoned", about.get("manifest", ""), {})


async def _read(store: FsspecObjectStore, run_id: str, name: str) -> dict[str, Any] | None:
    data = await store.get(layout.run(run_id, name))
    if data is None:
        return None
    return json_object(layout.run(run_id, name), data)
