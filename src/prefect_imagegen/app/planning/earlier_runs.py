"""Compare a plan with earlier runs of the same manifest in the same store."""

import asyncio
from contextlib import suppress
from typing import Any

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.core.redact import redact
from prefect_imagegen.store.ledger.files import json_object
from prefect_imagegen.store.object_store import FsspecObjectStore

LAST_RUNS = 10
"""How many runs of a store are looked at, the last ones."""


async def warn_of_other_ids(
    store: FsspecObjectStore, manifest: str, id_column: str | None, summary: PlanSummary
) -> None:
    """Add a warning to a plan with work to do if the last run of the manifest took its ids from another column.

    Rows without a seed derive it from their id, so that they would be made, and paid for, a second time. The manifest
    is known by its file's name. Costs one listing and one read a run; nothing that cannot be read is an error here.
    """
    if not summary.to_make:
        return
    with suppress(StoreError):
        names = (await store.folders(layout.RUNS))[-LAST_RUNS:]
        runs = await asyncio.gather(*(_about(store, name) for name in names))
        same = [run for run in runs if _file_of(str(run.get("manifest"))) == _file_of(redact(manifest))]
        options = same[-1].get("options") if same else None
        if isinstance(options, dict) and options.get("id_column", id_column) != id_column:
            summary.warnings[
                f"the last run of this table was made {_with(options['id_column'])}, this one is {_with(id_column)}: "
                "rows without a seed get another one, so their images are made and paid for again"
            ] += summary.to_make


async def _about(store: FsspecObjectStore, run_id: str) -> dict[str, Any]:
    """What `run.json` says of a run; empty if it says nothing."""
    path = layout.run(run_id, "run.json")
    try:
        return json_object(path, await store.get(path))
    except StoreError:
        return {}


def _file_of(address: str) -> str:
    return address.rstrip("/").rpartition("/")[2]


def _with(id_column: Any) -> str:
    return "without --id-column" if id_column is None else f"with --id-column {id_column}"
