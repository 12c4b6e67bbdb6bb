"""The GPU worker on a real GPU: FLUX.2 [klein] 4B in its real shapes with random weights, called directly and served.

    python benchmarks/gpu_real.py --check     # what to copy to a machine without a network
    python benchmarks/gpu_real.py --json gpu_real.json [--minutes 9]
    python benchmarks/gpu_real.py --tiny      # the same on the CPU with tiny shapes: only shows that it works

Needs `pip install 'prefect-imagegen[diffusers]'`, 40 GB of GPU memory, 20 GB of disk and 40 GB of main memory for the
defaults; nothing is downloaded. The loop calls the pipeline for one image after the other, without encoding; the worker
is `prefect-imagegen serve` in a process of its own, called through the pool over HTTP, with PNG. Every case makes a
batch to warm up first. Ratios are of one run. A case that fails is a line of the table (exit code 1); one that does not
fit into the time is left out, and the table says so.
"""

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpu_parts import packages
from gpu_parts.cases import (
    FAILED,
    MEASURED,
    PIPELINE,
    SKIPPED,
    WORKER,
    Case,
    Outcome,
    added,
    estimate,
    extremes_first,
    pipeline_cases,
    summary,
    table,
    worker_cases,
)
from gpu_parts.reference_images import REFERENCES, difference, draw_references

_ENDING_S = 10.0
"""Seconds reserved for stopping processes and for the table."""
_PIPELINE_SHARE = 0.5
"""The share of the time for the pipeline called directly; the rest is for the worker, the point of this benchmark."""


class Run:
    """One run: the outcomes of the cases so far, and the time that is left."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._started = time.monotonic()  # before the slow imports
        from gpu_parts.processes import Setup

        self.options = options
        self.images = {0: options.images, REFERENCES: options.reference_images}
        self.outcomes: list[Outcome] = []
        self.facts: dict[str, Any] = {"worker_start_s": {}}
        self.encoding_ms: dict[str, float] = {}
        self._folder = folder
        references = draw_references(folder, options.reference_size or (options.side, options.side))
        model = options.model or str(folder / "random-klein-4B")
        self.setup = Setup(folder, model, options.device, options.dtype, options.side, options.steps, references)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def left(self, share: float = 1.0) -> float:
        """Seconds of the time, or of a share of it, that are left."""
        minutes: float = self.options.minutes
        return share * (60 * minutes - _ENDING_S) - self.spent

    async def measure(self) -> None:
        """Measure all cases, in order."""
        direct = pipeline_cases(self.options.batches, self.images)
        workers = {batch: worker_cases(batch, self.images) for batch in extremes_first(self.options.batches)}
        everything = [*direct, *(case for cases in workers.values() for case in cases)]
        if self.left() > 0 and (reason := self._build()):
            self._add_all(everything, FAILED, reason)
            return
        await self._directly(direct)
        for batch, cases in workers.items():
            await self._served(batch, cases)

    def _build(self) -> str:
        """Make the checkpoint; returns why it could not be made, or an empty text."""
        if self.options.model:
            return ""
        started, shapes = time.monotonic(), "tiny" if self.options.tiny else "real"
        command = [sys.executable, "-m", "gpu_parts.klein", self.setup.model, shapes]
        command += [self.options.device, self.options.dtype]
        try:
            limit = self.left()
            subprocess.run(
                command, check=True, capture_output=True, text=True, env=self.setup.environment, timeout=limit
            )
        except subprocess.CalledProcessError as error:
            return f"the checkpoint cannot be made: {(error.stderr.strip().splitlines() or ['it said nothing'])[-1]}"
        except subprocess.TimeoutExpired:
            return f"the checkpoint was not made within {limit:.0f} s"
        self.facts["build_s"] = time.monotonic() - started
        return ""

    async def _directly(self, cases: list[Case]) -> None:
        from gpu_parts.processes import ProcessFailedError, pipeline_process

        open_cases = list(cases)
        try:
            if self.left(_PIPELINE_SHARE) > 0:
                async with asyncio.timeout(self.left(_PIPELINE_SHARE)), pipeline_process(self.setup) as pipeline:
                    self.facts |= pipeline.facts
                    while open_cases and self._fits(open_cases[0], _PIPELINE_SHARE):
                        case = open_cases[0]
                        try:
                            await self._measure_directly(case, pipeline)
                        except ProcessFailedError as error:
                            self._add_all([case], FAILED, str(error))
                        open_cases.pop(0)
        except ProcessFailedError as error:
            self._add_all(open_cases, FAILED, str(error))
            return
        except TimeoutError:
            pass
        self._add_all(open_cases, SKIPPED, f"no time left of {self.options.minutes:g} minutes (half for the pipeline)")

    async def _measure_directly(self, case: Case, pipeline: Any) -> None:
        first = case.path == PIPELINE and case.batch == 1
        images = self._images(case)
        encode = first and case.references == 0
        figures = await pipeline.measure(case, range(case.images), images, encode=encode)
        self.encoding_ms |= figures.pop("encoding_ms", {})
        self._add_measured(case, figures, images)

    async def _served(self, batch: int, cases: list[Case]) -> None:
        from gpu_parts.processes import ProcessFailedError, worker_process

        from prefect_imagegen.core.errors import ProviderError, RefusedError

        open_cases = list(cases)
        start_s = max(self.facts["worker_start_s"].values(), default=self.facts.get("load_s", 0.0))
        reason = f"no time left of {self.options.minutes:g} minutes"
        try:
            if self._fits(cases[0], start_s=start_s):
                async with asyncio.timeout(self.left()), worker_process(self.setup, batch, self.left()) as worker:
                    self.facts["worker_start_s"][str(batch)] = worker.start_s
                    while open_cases and self._fits(open_cases[0]):
                        case, images = open_cases[0], self._images(open_cases[0])
                        try:
                            self._add_measured(case, await worker.measure(case, range(case.images), images), images)
                        except* ProviderError as errors:
                            self._add_all([case], FAILED, _first(errors))
                        open_cases.pop(0)
                        await worker.check()
        except (ProcessFailedError, RefusedError, ProviderError) as error:
            self._add_all(open_cases, FAILED, str(error))
            return
        except TimeoutError:
            pass
        self._add_all(open_cases, SKIPPED, reason)

    def _fits(self, case: Case, share: float = 1.0, start_s: float = 0.0) -> bool:
        return 0 < self.left(share) >= estimate(case, self.outcomes, start_s)

    def _images(self, case: Case) -> Path:
        """The folder for the images of a case."""
        folder = self._folder / f"{case.path}-{case.batch}-{case.references}"
        folder.mkdir()
        return folder

    def _add_measured(self, case: Case, figures: dict[str, Any], images: Path) -> None:
        loop = self._folder / f"{PIPELINE}-1-{case.references}"
        if loop.is_dir() and loop != images:
            figures["against_loop"] = difference(loop, images)
        self._add(Outcome(case, MEASURED, figures=figures))

    def _add_all(self, cases: Sequence[Case], status: str, reason: str) -> None:
        for case in cases:
            self._add(Outcome(case, status, reason))

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        case, rate = outcome.case, outcome.rate
        result = f"{rate:.3f} images/s" if rate else f"{outcome.status}: {outcome.reason}"
        print(f"[{self.spent:4.0f} s] {case.name}, {case.references} references: {result}", file=sys.stderr, flush=True)


def _first(errors: BaseExceptionGroup[Any]) -> str:
    """The message of the first error of a group."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def device_name(device: str) -> str:
    """The name of the device, for the table."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(device))
    return f"{device}, {platform.machine()}"


def report_of(run: Run) -> dict[str, Any]:
    """The whole report of a run, for the JSON file."""
    options, cases = run.options, summary(run.outcomes)
    report: dict[str, Any] = {"shapes": "given" if options.model else "tiny" if options.tiny else "real"}
    report |= {name: getattr(options, name) for name in ("device", "dtype", "side", "steps", "minutes")}
    report["device_name"] = device_name(options.device)
    report["versions"] = {name: version(name) for name in ("torch", "diffusers", "transformers", "prefect-imagegen")}
    report |= {"seconds": run.spent, **run.facts, "cases": cases, "encoding_ms": run.encoding_ms}
    report["added_ms"] = added(cases, run.encoding_ms)
    again = next((case["ratio"] for case in cases if case["name"] == "pipeline, once more"), None)
    return report | {"loop_again_ratio": again}


def show(report: dict[str, Any]) -> None:
    """Print the table and the figures below it."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    size = f"{report['side']} pixels a side, {report['steps']} steps"
    print(f"{report['device_name']}, {report['dtype']}, {size}; {versions}\n")
    print("\n".join(table(report["cases"])))
    for case in report["cases"]:
        if case["path"] == WORKER and (images := case.get("against_loop")):
            equal = f"{images['identical']} of {images['compared']} images are the loop's"
            colours = f"colours differ by {images['largest_difference']} of 255 at most"
            sizes = "" if images["same_size"] else "; SIZES DIFFER"
            print(f"\n{case['name']}, {case['references']} references: {equal}, {colours}{sizes}")
    for title, milliseconds in (
        ("Encoding one image", report["encoding_ms"]),
        ("Added to one call", report["added_ms"]),
    ):
        if milliseconds:
            print(f"\n{title}: " + ", ".join(f"{name} {value:.1f}" for name, value in milliseconds.items()) + " (ms)")
    if report["loop_again_ratio"]:
        print(f"\nThe loop once more, after the other cases: {report['loop_again_ratio']:.2f} of the first time")
    if report["shapes"] == "tiny":
        print("\nTiny shapes: these figures say nothing but that the benchmark works.")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say what is missing on this machine, and end")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU, to see that the benchmark works")
    parser.add_argument("--model", help="a checkpoint of FLUX.2 [klein] distilled instead of random weights")
    parser.add_argument("--minutes", type=float, default=9.0, help="leave out what does not fit into this time")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is made [a temporary one]")
    parser.add_argument("--device", help="[cuda; with --tiny cpu]")
    parser.add_argument("--dtype", help="[bfloat16; with --tiny float32]")
    parser.add_argument("--side", type=int, help="pixels [1024; with --tiny 128]")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batches", type=_numbers, default=(1, 2, 4, 8), help="such as 1,2,4,8")
    parser.add_argument("--images", type=int, help="of each case without references [24; with --tiny 4]")
    parser.add_argument("--reference-images", type=int, help="of each case with two [8; with --tiny 4]")
    parser.add_argument("--reference-size", type=_size, help="WIDTHxHEIGHT [that of the images]")
    options = parser.parse_args(arguments)
    tiny = {"device": "cpu", "dtype": "float32", "side": 128, "images": 4, "reference_images": 4}
    real = {"device": "cuda", "dtype": "bfloat16", "side": 1024, "images": 24, "reference_images": 8}
    for name, value in (tiny if options.tiny else real).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table; returns the exit code."""
    options = parsed(arguments)
    if options.check:
        requirements = packages.needs()
        print("\n".join(packages.report(requirements)))
        return 0 if all(need.fits for need in requirements) else 1
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as folder:
        run = Run(options, Path(folder))
        asyncio.run(run.measure())
        report = report_of(run)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    show(report)
    return 1 if any(case["status"] == FAILED for case in report["cases"]) else 0


if __name__ == "__main__":
    sys.exit(main())
