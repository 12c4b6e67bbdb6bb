"""CPU and memory of planning a manifest, as a ratio to reading and hashing the same rows, in one run.

python benchmarks/plan_million.py [--rows 1000000]
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_imagegen.app.plan import PlanDraft, Planner
from prefect_imagegen.core.ledger import EVENT_SCHEMA, LedgerView, fold
from prefect_imagegen.core.manifest import ManifestOptions
from prefect_imagegen.io.manifests import Manifest

CASES = ("read + hash", "plan, empty ledger", "plan, 90 % done")


def write_manifest(path: Path, rows: int) -> None:
    """Prompts of a sentence, an aspect ratio, a seed for half of the rows, two columns that are carried."""
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
    """The yardstick: every row read, written as sorted JSON, hashed."""
    count = 0
    for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(32_768):
        for row in batch.to_pylist():
            hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
            count += 1
    return count


def ledger_of(path: Path, share: float) -> LedgerView:
    """A ledger in which this share of the manifest's requests is delivered."""
    planner = Planner(Manifest(str(path)), ManifestOptions(), LedgerView.empty(), shard_size=64)
    keys = pa.chunked_array([column for table in planner.windows() for column in table["request_key"].chunks])
    keys = keys.slice(0, int(len(keys) * share))
    columns = {
        "key": keys,
        "type": pa.array(["delivered"] * len(keys)),
        "attempt_id": pa.array([f"{key.hex()}-1" for key in keys.to_pylist()]),
    }
    arrays = [columns.get(field.name, pa.nulls(len(keys), field.type)) for field in EVENT_SCHEMA]
    return fold([pa.table(arrays, schema=EVENT_SCHEMA)])


def measure(case: str, path: Path) -> dict[str, float]:
    """CPU seconds and peak memory of one case, in this process."""
    ledger = ledger_of(path, 0.9) if case == CASES[2] else LedgerView.empty()
    started = time.process_time()
    if case == CASES[0]:
        rows = read_and_hash(path)
    else:
        draft = PlanDraft(Planner(Manifest(str(path)), ManifestOptions(), ledger, shard_size=64))
        rows = draft.make(keep=False).rows
        draft.close()
    cpu = time.process_time() - started
    return {"rows": rows, "cpu": cpu, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    """Measure every case in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--manifest", type=Path)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(given.case, given.manifest)))
        return
    print(f"{given.rows:,} rows; {os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        write_manifest(path, given.rows)
        base = None
        print(f"{'case':22} {'CPU s':>8} {'us/row':>8} {'ratio':>6} {'peak RSS MB':>12}")
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, "--manifest", str(path)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            base = base or found["cpu"]
            per_row = 1e6 * found["cpu"] / found["rows"]
            print(f"{case:22} {found['cpu']:8.1f} {per_row:8.1f} {found['cpu'] / base:6.1f} {found['rss_mb']:12.0f}")


if __name__ == "__main__":
    main()
