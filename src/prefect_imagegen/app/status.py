"""What a store says of its runs."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect_imagegen.app.opened import existing_store
from prefect_imagegen.app.settings import StoreSettings
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.io.heartbeat import Process, life_of
from prefect_imagegen.io.object_store import FsspecObjectStore


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run: `state` is finished, stopped, running, planned or abandoned; `report` is there once it has ended."""

    run_id: str
    state: str
    manifest: str
    report: dict[str, Any]
    report_text: str = ""


async def statuses(settings: StoreSettings, run_id: str | None = None) -> list[RunStatus]:
    """All runs of a store, oldest first, or the one named. Raises RefusedError."""
    async with existing_store(settings) as store:
        if run_id is None:
            files = [info.path.split("/") for info in await store.list(layout.RUNS)]
            names = sorted({parts[1] for parts in files if parts[-1] == "run.json"})
        else:
            names = [run_id]
        return [await _status(store, name) for name in names]


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
    alive = await life_of(store, run_id, datetime.now(UTC), Process.this("")) == "live"
    return RunStatus(run_id, "running" if alive else "abandoned", about.get("manifest", ""), {})


async def _read(store: FsspecObjectStore, run_id: str, name: str) -> dict[str, Any] | None:
    data = await store.get(layout.run(run_id, name))
    if data is None:
        return None
    found: dict[str, Any] = json.loads(data)
    return found
