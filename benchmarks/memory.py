"""Memory of a whole run (plan, execution, metadata) by its number of rows: it must not grow with them.

    python benchmarks/memory.py [--rows 5000 --rows 50000] [--plot docs/guides/memory.png]

A provider that answers at once and a store that forgets images and claims (the rest goes to a temporary folder), so
that only the run itself is measured; each size runs in a process of its own. Planning holds a window of 32,768 rows,
so that smaller manifests peak lower. `--plot` needs matplotlib. Linux.
"""

import argparse
import asyncio
import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning import open_run, prepare
from prefect_imagegen.app.running import run_session
from prefect_imagegen.app.running.finish import finish
from prefect_imagegen.core.policy.history_lookup import Look, Window
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.ports import Balance, Delivery, HistoryRecord, ObjectInfo, Submission
from prefect_imagegen.providers.base import BaseProvider
from prefect_imagegen.providers.segmind.provider import ABILITIES
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.object_store import FsspecObjectStore

IN_FLIGHT = 64
PHASES = ("plan", "execution", "metadata")
_FORGOTTEN = ("images/", "ledger/claims/")
_PERIOD_S = 0.2


class InstantProvider(BaseProvider):
    """A provider that answers at once, with a small image."""

    def __init__(self) -> None:
        super().__init__("segmind", "http://instant", ABILITIES)
        sink = io.BytesIO()
        Image.effect_noise((32, 32), 50).save(sink, "PNG")
        self._image = sink.getvalue()
        self._numbers = itertools.count()
        self._uploads: set[str] = set()

    async def check(self) -> Balance:
        return Balance(None)

    async def upload(self, data: bytes, media_type: str) -> str:
        url = f"{self.endpoint}/{hashlib.sha256(data).hexdigest()}"
        self._uploads.add(url)
        return url

    async def has_upload(self, url: str) -> bool:
        return url in self._uploads

    async def submit(
        self, request: GenerationRequest, image_urls: Sequence[str], *, idempotency_key: str | None = None
    ) -> Submission:
        return Submission(request, f"00000000-0000-0000-0000-{next(self._numbers):012}")

    async def collect(self, submission: Submission) -> Delivery:
        await asyncio.sleep(0)
        return Delivery(self._image, "image/png", request_id=submission.request_id, cost_usd=0.01)

    async def find(self, model: str, claimed: Mapping[str, Any], window: Window) -> Look:
        return Look()

    async def record(self, request_id: str) -> HistoryRecord | None:
        return None

    async def aclose(self) -> None:
        pass


class ForgetfulStore(FsspecObjectStore):
    """A store that drops images and claims: they would be files or objects, not memory."""

    async def create(self, path: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        return path.startswith(_FORGOTTEN) or await super().create(path, data, content_type)

    async def head(self, path: str) -> ObjectInfo | None:
        return None if path.startswith(_FORGOTTEN) else await super().head(path)

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        return [] if f"{prefix}/".startswith(_FORGOTTEN) else await super().list(prefix)


def write_manifest(path: Path, rows: int) -> None:
    """Write a manifest of short prompts with one carried column."""
    with pq.ParquetWriter(path, pa.schema([("prompt", pa.string()), ("sku", pa.string())])) as writer:
        for start in range(0, rows, 50_000):
            numbers = range(start, min(rows, start + 50_000))
            prompts = [f"a photograph of product number {n} on a table of oak, soft light" for n in numbers]
            writer.write_table(pa.table({"prompt": prompts, "sku": [f"sku-{n}" for n in numbers]}))


def resident_mb() -> float:
    """The resident memory of this process in MB (Linux)."""
    return round(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def spec_in(folder: str) -> prepare.RunSpec:
    """The run of the manifest in a folder."""
    return prepare.RunSpec(
        f"{folder}/manifest.parquet",
        StoreSettings(f"{folder}/store"),
        ProviderSettings(base_url="http://instant", api_key=SecretStr("k"), max_in_flight=IN_FLIGHT),
        RunOptions(),
    )


def plan(folder: str, rows: int) -> tuple[dict[str, Any], float]:
    """Plan a manifest of so many rows: what another process needs of it, and the peak of resident memory in MB."""
    write_manifest(Path(folder) / "manifest.parquet", rows)

    async def make() -> dict[str, Any]:
        planned_run = await prepare.prepare(spec_in(folder))
        await planned_run.aclose()
        return {name: getattr(planned_run, name) for name in ("run_id", "kind", "summary", "plan")}

    with instant():
        planned = asyncio.run(make())
    return planned, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def measure(rows: int) -> dict[str, Any]:
    """Measure one run, planned in another process: seconds, and resident memory in MB by phase and over time."""
    samples: list[tuple[float, float]] = []
    by_phase: dict[str, list[float]] = {phase: [] for phase in PHASES}
    now = ["execution"]
    ended = threading.Event()
    started = time.monotonic()

    def sample() -> None:
        while not ended.wait(_PERIOD_S):
            samples.append((round(time.monotonic() - started, 1), resident_mb()))
            by_phase[now[0]].append(samples[-1][1])

    async def run(planned: dict[str, Any]) -> int:
        spec = spec_in(folder)
        planned_run = prepare.PlannedRun(spec=spec, open_run=open_run.OpenRun(spec.store, 60.0), **planned)
        async with run_session.open_session(planned_run) as opened:
            await opened.for_each_shard(opened.run_shard)
            now[0] = "metadata"
            return (await finish(opened, 0.0)).generated

    with tempfile.TemporaryDirectory() as folder, instant():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            planned, peak = other.submit(plan, folder, rows).result()
            by_phase["plan"].append(peak)
        thread = threading.Thread(target=sample)
        thread.start()
        try:
            made = asyncio.run(run(planned))
        finally:
            ended.set()
            thread.join()
    assert made == rows, made
    return {
        "rows": rows,
        "seconds": time.monotonic() - started,
        "steady": median(by_phase["execution"]),
        "peaks": {phase: max(values) for phase, values in by_phase.items()},
        "samples": samples,
    }


@contextlib.contextmanager
def instant() -> Iterator[None]:
    """Make every run inside the `with` block use an `InstantProvider` and a `ForgetfulStore`."""
    provider = InstantProvider()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(open_run, "open_provider", return_value=provider))
        stack.enter_context(mock.patch.object(open_run, "open_object_store", open_forgetful))
        yield


def open_forgetful(url: str, _: Mapping[str, Any]) -> ForgetfulStore:
    """A `ForgetfulStore` in a local folder."""
    file_system, root = fsspec.core.url_to_fs(url)
    return ForgetfulStore(file_system, root, url)


def plot(runs: list[dict[str, Any]], target: str) -> None:
    """Draw resident memory over the course of each run to a file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for run in runs:
        end = run["samples"][-1][0]
        axes.plot(
            [100 * t / end for t, _ in run["samples"]], [mb for _, mb in run["samples"]], label=f"{run['rows']:,} rows"
        )
    axes.set(xlabel="course of the run, %", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=150)


def main() -> None:
    """Measure each size in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--one", type=int, dest="rows_here")
    options = parser.parse_args()
    if options.rows_here:
        print(json.dumps(measure(options.rows_here)))
        return
    print(f"{IN_FLIGHT} in flight; {os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}")
    print(f"{'rows':>10} {'seconds':>8} {'ms/row':>7} {'steady MB':>10}   peak MB in {', '.join(PHASES)}")
    runs = []
    for rows in options.rows or [5_000, 50_000]:
        command = [sys.executable, __file__, "--one", str(rows)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        runs.append(figures)
        seconds = figures["seconds"]
        peaks = " ".join(f"{figures['peaks'][phase]:6.0f}" for phase in PHASES)
        print(
            f"{rows:10,} {seconds:8.1f} {1000 * seconds / rows:7.2f} {figures['steady']:10.0f} {peaks}",
            flush=True,
        )
    if options.plot:
        plot(runs, options.plot)


if __name__ == "__main__":
    main()
