"""CPU and memory of planning a manifest, as a ratio to reading and hashing the same rows, in one run.

python benchmarks/plan_million.py [--rows 1000000]
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.plan import Planner
from prefect_imagegen.app.planning.prepare import RunSpec, plan_only
from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import Event, ImageFacts
from prefect_imagegen.core.ledger.fold import LedgerView, events_table
from prefect_imagegen.core.request.manifest import ManifestOptions
from prefect_imagegen.inputs.manifests.manifest import Manifest
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.files import to_parquet
from prefect_imagegen.store.object_store import open_object_store
from prefect_imagegen.store.store_kind import claim_kind

SEGMENTS = 2_000
CASES = ("read + hash", "plan, new store", "nothing to do, open segments", "nothing to do, compacted")


def write_manifest(path: Path, rows: int) -> None:
    """Write a manifest: short prompts, aspect ratios, seeds for half of the rows, and two carried columns."""
    with pq.ParquetWriter(
        path,
        pa.schema(
            [
                ("prompt", pa.string()),
                ("aspect_ratio", pa.string()),
                ("seed", pa.int64()),
                ("sku", pa.string()),
                ("weight", pa.float64()),
            ]
        ),
    ) as writer:
        for start in range(0, rows, 50_000):
            numbers = range(start, min(rows, start + 50_000))
            columns = {
                "prompt": [
                    f"a photograph of product number {n} on a table of oak, soft light, shot {n % 7}" for n in numbers
                ],
                "aspect_ratio": [("1:1", "3:2", "16:9")[n % 3] for n in numbers],
                "seed": [n if n % 2 else None for n in numbers],
                "sku": [f"sku-{n}" for n in numbers],
                "weight": [n / 3 for n in numbers],
            }
            writer.write_table(pa.table(columns, schema=writer.schema))


def read_and_hash(path: Path) -> int:
    """The baseline: read every row, write it as sorted JSON, and hash it. Returns the number of rows."""
    count = 0
    for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(32_768):
        for row in batch.to_pylist():
            hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
            count += 1
    return count


async def fill(folder: Path, manifest: Path, segments: int, *, compacted: bool) -> None:
    """Make a store in which every request of the manifest is delivered: two events each, in `segments` segments."""
    planner = Planner(Manifest(str(manifest)), ManifestOptions(), LedgerView.empty(), shard_size=64)
    keys = [key for table in planner.windows() for key in table["request_key"].to_pylist()]
    store, clock = open_object_store(str(folder)), SystemClock()
    await claim_kind(store, "sandbox")
    size = -(-len(keys) // segments)
    for number in range(segments):
        events = []
        for key in keys[number * size : (number + 1) * size]:
            name = key.hex()
            facts = ImageFacts(layout.image(name, "png"), 1024, 1024, "png", 1_000_000, name * 2, ())
            common: dict[str, Any] = {
                "model": "flux-2-klein-9b",
                "cost_class": "all",
                "seed": 7,
                "request_id": f"id-{name}",
            }
            made = Event("submitted", key, f"{name}-1", "run", clock.now(), **common)
            events += [made, replace(made, type="delivered", image=facts, cost_usd=0.04, latency_s=12.5)]
        await store.put(layout.segment(f"{number:08d}"), to_parquet(events_table(events)))
    if compacted:
        await compact(store, clock, more_than=0)
    store.close()


def _fill(folder: Path, manifest: Path, *, compacted: bool) -> None:
    asyncio.run(fill(folder, manifest, SEGMENTS, compacted=compacted))


def measure(case: str, path: Path) -> dict[str, float]:
    """The rows, CPU seconds and peak memory of one case, measured in this process."""
    started = time.process_time()
    if case == CASES[0]:
        rows = read_and_hash(path)
    else:
        store = StoreSettings(str(path.with_name(case)))
        summary = asyncio.run(plan_only(RunSpec(str(path), store, ProviderSettings("sandbox"))))
        rows = summary.rows
        if summary.to_make != (rows if case == CASES[1] else 0):
            raise RuntimeError(f"{case}: {summary.counts}")
    cpu = time.process_time() - started
    return {"rows": rows, "cpu": cpu, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Measure every case in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--manifest", type=Path)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.manifest)))
        return
    print(f"{options.rows:,} rows; {os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        write_manifest(path, options.rows)
        for case in CASES[2:]:
            # In a process of its own, so that its memory is not measured.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
                other.submit(_fill, path.with_name(case), path, compacted="compacted" in case).result()
        base = None
        print(f"{'case':30} {'CPU s':>8} {'us/row':>8} {'ratio':>6} {'peak RSS MB':>12}")
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, "--manifest", str(path)]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            base = base or figures["cpu"]
            per_row = 1e6 * figures["cpu"] / figures["rows"]
            print(
                f"{case:30} {figures['cpu']:8.1f} {per_row:8.1f} {figures['cpu'] / base:6.1f} {figures['rss_mb']:12.0f}"
            )


if __name__ == "__main__":
    main()
