"""The cost of a row in a large ledger against a small one: CPU time of all that depends on the number of rows.

    python benchmarks/growth.py [--rows 100000 --rows 1000000] [--whole 100000 --whole 1000000]

The look-ups by themselves, over synthetic keys and events, each size in a process of its own: reading the ledger,
planning (states and identical rows), finishing (the images that were there before), compaction. With `--whole`, whole
runs that have nothing to do as well: planning and finishing. 10,000,000 rows of look-ups take 4 GB in the
temporary folder. Linux.
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from plan_million import fill, write_manifest

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning import prepare
from prefect_imagegen.app.running import run_session
from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.core.ledger.deliveries import Deliveries, group_of
from prefect_imagegen.core.ledger.fold import EVENT_SCHEMA, KEY_TYPE, LedgerFold, LedgerView
from prefect_imagegen.core.plan import KeySeen
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.ledger import compaction
from prefect_imagegen.store.ledger.event_file import EventFile

WINDOW = 32_768
STEPS = ("read", "plan", "finish", "compact")
TIME = datetime(2026, 11, 1, tzinfo=UTC)


def keys_of(window: int, count: int) -> pa.Array:
    """The keys of a window: random like hashes, and the same each time."""
    data = hashlib.shake_128(window.to_bytes(8, "big")).digest(16 * count)
    return pa.Array.from_buffers(KEY_TYPE, count, [None, pa.py_buffer(data)])


def windows(rows: int) -> Iterator[pa.Array]:
    """The keys of so many rows, window by window."""
    for start in range(0, rows, WINDOW):
        yield keys_of(start // WINDOW, min(WINDOW, rows - start))


def delivered(keys: pa.Array) -> pa.Table:
    """A table with a delivered event for each key."""
    raw = keys.buffers()[1].to_pybytes()
    names = pa.array([raw[start : start + 16].hex() for start in range(0, 16 * len(keys), 16)])
    columns: dict[str, Any] = {
        "key": keys,
        "attempt_id": pc.binary_join_element_wise(names, "1", "-"),
        "request_id": names,
        "sha256": pc.binary_join_element_wise(names, names, ""),
        "image_path": pc.binary_join_element_wise("images/00/", names, ".png", ""),
    }
    same = {
        "type": "delivered",
        "run_id": "20261101T000000-00000000",
        "time": TIME,
        "cost_usd": 0.04,
        "latency_s": 12.5,
    }
    same |= {"model": "flux-2-klein-9b", "cost_class": "all", "backend": "segmind", "width": 1024, "height": 1024}
    same |= {"format": "png", "size_bytes": 1_000_000}
    for field in EVENT_SCHEMA:
        if field.name not in columns:
            value = pa.array([same.get(field.name)], field.type)
            columns[field.name] = value.take(pa.nulls(len(keys), pa.int32()).fill_null(0))
    return pa.table({name: columns[name] for name in EVENT_SCHEMA.names}, schema=EVENT_SCHEMA)


def read(rows: int) -> LedgerView:
    """The view of a ledger with `rows` images."""
    with EventFile() as spool:
        folding = LedgerFold(spool)
        for keys in windows(rows):
            folding.add(delivered(keys))
        return folding.view()


def plan(view: LedgerView, rows: int) -> None:
    """The look-ups of a plan of so many rows, half of which the ledger has."""
    known_keys = KeySeen()
    half = -(-rows // WINDOW) // 2
    for window, keys in enumerate(windows(rows)):
        wanted = keys if window < half else keys_of(window + rows, len(keys))
        view.states(wanted)
        known_keys.numbers(wanted)
        known_keys.add(wanted, pa.array(range(len(wanted)), pa.int32()))


def end(view: LedgerView, rows: int) -> None:
    """The look-ups of finishing a run whose rows were all done before."""
    count = -(-rows // WINDOW)
    with EventFile() as spool:
        deliveries = Deliveries(spool)
        for window, keys in enumerate(windows(rows)):
            deliveries.ask(group_of(window, count), keys)
        deliveries.bring(view.all_delivered())
    group, events = -1, EVENT_SCHEMA.empty_table()
    for window, keys in enumerate(windows(rows)):
        if group != group_of(window, count):
            group = group_of(window, count)
            events = deliveries.of(group)
        own = events.filter(pc.is_in(events["key"], keys))
        assert len(own) == len(keys)


def compact(view: LedgerView) -> None:
    """Sort all events into the files of a generation."""
    with EventFile() as runs:
        for part in view.all_delivered():
            compaction.write_run(runs, [part])
    for _ in compaction.merged(runs):
        pass


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """The CPU seconds of some work, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def measure(rows: int) -> dict[str, float]:
    """CPU seconds of each step for so many rows, and the peak of resident memory in MB."""
    making, _ = cpu(lambda: [delivered(keys) for keys in windows(min(rows, 4 * WINDOW))])
    reading, view = cpu(lambda: read(rows))
    figures = {"rows": rows, "read": reading - making * rows / min(rows, 4 * WINDOW)}
    figures["plan"], _ = cpu(lambda: plan(view, rows))
    figures["finish"], _ = cpu(lambda: end(view, rows))
    figures["compact"], _ = cpu(lambda: compact(view))
    return figures | {"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _fill(folder: str) -> None:
    asyncio.run(fill(Path(folder, "store"), Path(folder, "manifest.parquet"), 2_000, compacted=True))


def whole(rows: int) -> dict[str, float]:
    """CPU seconds of planning and of ending a whole run that has nothing to do."""

    async def run() -> dict[str, float]:
        started = time.process_time()
        store = StoreSettings(f"{folder}/store")
        spec = prepare.RunSpec(f"{folder}/manifest.parquet", store, ProviderSettings("sandbox"))
        planned_run = await prepare.prepare(spec)
        planned = time.process_time()
        async with run_session.open_session(planned_run) as session:
            opened = time.process_time()
            result = await finish(session, 0.0)
            assert result.reused == rows
            return {"plan": planned - started, "finish": time.process_time() - opened}

    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder, "manifest.parquet"), rows)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            other.submit(_fill, folder).result()
        figures = asyncio.run(run())
    return figures | {"rows": rows, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def table(option: str, sizes: list[int], steps: tuple[str, ...]) -> None:
    """Measure each size in a process of its own and print microseconds a row, and ratios to the first size."""
    print(f"{'rows':>11} " + " ".join(f"{step + ' us/row':>14} {'ratio':>5}" for step in steps) + "  peak RSS MB")
    first: dict[str, float] = {}
    for rows in sizes:
        command = [sys.executable, __file__, option, str(rows)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        cost = {step: 1e6 * figures[step] / rows for step in steps}
        first = first or cost
        cells = " ".join(f"{cost[step]:14.2f} {cost[step] / first[step]:5.2f}" for step in steps)
        print(f"{rows:11,} {cells} {figures['rss_mb']:12.0f}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--whole", type=int, action="append")
    parser.add_argument("--one", type=int, dest="rows_here")
    parser.add_argument("--one-whole", type=int, dest="whole_here")
    options = parser.parse_args()
    if options.rows_here or options.whole_here:
        print(json.dumps(measure(options.rows_here) if options.rows_here else whole(options.whole_here)))
        return
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}; CPU time")
    table("--one", options.rows or [100_000, 1_000_000], STEPS)
    if options.whole:
        table("--one-whole", options.whole, ("plan", "finish"))


if __name__ == "__main__":
    main()
