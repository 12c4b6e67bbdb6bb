"""The two kinds of measured processes: the pipeline called directly, and the worker."""

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from gpu_parts.cases import SERIAL, Case
from gpu_parts.pipeline import QUALITY, prompt

from prefect_imagegen.core.request.profiles import models_of
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.providers.pool.entry import open_pool
from prefect_imagegen.providers.pool.provider import Pool
from prefect_imagegen.providers.settings import ProviderSettings

BENCHMARKS = Path(__file__).parents[1]
PROFILE = "klein-distilled"
WARM_UP_SEED = 2**20
_STOP_S = 60.0
_MEMORY_S = 10.0
_EXIT_S = 0.5


class ProcessFailedError(Exception):
    """A process has ended, or cannot go on; the message is its last line."""


@dataclass(frozen=True)
class Setup:
    """The settings of both processes. `references` are files; `folder` is for the files they write."""

    folder: Path
    model: str
    device: str
    dtype: str
    side: int
    steps: int
    references: Sequence[Path]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process: the benchmark can be imported, nothing is downloaded, one thread on a CPU."""
        path = os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH"))))
        variables = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        return os.environ | variables | ({"OMP_NUM_THREADS": "1"} if self.device == "cpu" else {})

    async def run(self, log: Path, module: str, *arguments: str, **pipes: Any) -> asyncio.subprocess.Process:
        """Start a module of the benchmark; what it prints goes to a file."""
        with log.open("w") as sink:
            command = [sys.executable, "-m", f"gpu_parts.{module}", *arguments]
            pipes = {"stdout": sink, "stderr": sink} | pipes
            return await asyncio.create_subprocess_exec(*command, env=self.environment, **pipes)


@dataclass
class PipelineProcess:
    """The pipeline in a process; `facts` are the figures of loading."""

    process: asyncio.subprocess.Process
    log: Path
    facts: dict[str, Any] = field(default_factory=dict)

    async def measure(self, case: Case, seeds: Sequence[int], images: Path | None, *, encode: bool) -> dict[str, Any]:
        """The figures of a case, and its images as `SEED.png` in a folder. Raises ProcessFailedError."""
        request = {"batch": case.batch, "references": case.references, "seeds": list(seeds), "encode": encode}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request | {"folder": images and str(images)}).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Read its next answer. Raises ProcessFailedError."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": f"the process ended: {last_line(self.log)}"}
        if "error" in reply:
            raise ProcessFailedError(reply["error"])
        return reply


@asynccontextmanager
async def pipeline_process(setup: Setup) -> AsyncIterator[PipelineProcess]:
    """The pipeline, loaded. Raises ProcessFailedError."""
    settings = {"model": setup.model, "device": setup.device, "dtype": setup.dtype, "side": setup.side}
    settings |= {"steps": setup.steps, "references": list(map(str, setup.references))}
    log, pipe = setup.folder / "pipeline.log", asyncio.subprocess.PIPE
    process = await setup.run(log, "pipeline", json.dumps(settings), stdin=pipe, stdout=pipe)
    try:
        running = PipelineProcess(process, log)
        running.facts = await running.answer()
        yield running
    finally:
        await _stop(process, signal.SIGKILL)  # it has nothing to save, and may be in the middle of a batch


@dataclass
class WorkerProcess:
    """A ready worker, and the pool that calls it."""

    setup: Setup
    process: asyncio.subprocess.Process
    url: str
    pool: Pool
    log: Path
    start_s: float

    async def measure(self, case: Case, seeds: Sequence[int], images: Path | None) -> dict[str, Any]:
        """The figures of a case, and its images as `SEED.png` in a folder.

        Raises ProviderError for failed calls, ProcessFailedError if the worker has ended.
        """
        await self._draw([WARM_UP_SEED + number for number in range(case.batch)], case)
        await self._peak()
        before, started = await self._metrics(), time.monotonic()
        files = await self._draw(seeds, case)
        seconds, after = time.monotonic() - started, await self._metrics()
        batches = after["imagegen_batch_size_count"] - before["imagegen_batch_size_count"]
        busy = after["imagegen_batch_seconds_sum"] - before["imagegen_batch_seconds_sum"]
        if images is not None:
            for seed, data in zip(seeds, files, strict=True):
                (images / f"{seed}.png").write_bytes(data)
        mean = len(seeds) / batches if batches else None
        return {"seconds": seconds, "images_per_batch": mean, "model_busy": busy / seconds, **await self._peak()}

    async def _draw(self, seeds: Sequence[int], case: Case) -> list[bytes]:
        references = [data_url(path) for path in self.setup.references[: case.references]]
        if case.path == SERIAL:
            return [await self._call(seed, references) for seed in seeds]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._call(seed, references)) for seed in seeds]
        return [task.result() for task in tasks]

    async def _call(self, seed: int, references: Sequence[str]) -> bytes:
        params = {"prompt": prompt(seed), "seed": seed, "steps": self.setup.steps, "cfg": 1, "negative_prompt": ""}
        params |= {"sampler": "euler", "go_fast": False, "aspect_ratio": "1:1", "image_format": "png"}
        model = models_of(self.setup.model)[0]
        request = GenerationRequest(model, params | {"quality": QUALITY}, profile=PROFILE)
        delivery = await self.pool.collect(await self.pool.submit(request, references))
        return delivery.data

    async def check(self) -> None:
        """Raise ProcessFailedError if the worker has ended: its pool would wait for it for ever."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), _EXIT_S)
            raise ProcessFailedError(f"the worker ended: {last_line(self.log)}")

    async def _metrics(self) -> dict[str, float]:
        try:
            async with httpx.AsyncClient() as client:
                text = (await client.get(f"{self.url}/metrics")).text
        except httpx.HTTPError as error:
            raise ProcessFailedError(f"the worker does not answer: {type(error).__name__}") from error
        return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}

    async def _peak(self) -> dict[str, Any]:
        """The peak memory since the last call of this."""
        file, end = memory_file(self.setup), time.monotonic() + _MEMORY_S
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGUSR1)
        while not file.exists():
            if time.monotonic() > end:
                raise ProcessFailedError(f"the worker does not tell its memory: {last_line(self.log)}")
            await asyncio.sleep(0.02)
        figures: dict[str, Any] = json.loads(file.read_text())
        file.unlink()
        return figures


@asynccontextmanager
async def worker_process(setup: Setup, max_batch: int, patience: float) -> AsyncIterator[WorkerProcess]:
    """Start a worker; yields it when it is ready, after `patience` seconds at most. Raises ProcessFailedError."""
    started = time.monotonic()
    log = setup.folder / f"worker-{max_batch}.log"
    options = {"--engine": "diffusers", "--model": setup.model, "--device": setup.device, "--dtype": setup.dtype}
    options |= {"--port": "0", "--max-batch": str(max_batch), "--megapixels": str(setup.side**2 / 1024**2)}
    arguments = [text for option in options.items() for text in option]
    memory_file(setup).unlink(missing_ok=True)
    process = await setup.run(log, "worker", str(memory_file(setup)), setup.device, "serve", *arguments)
    try:
        async with asyncio.timeout(patience):
            url = await _address(process, log)
            settings = ProviderSettings("pool", endpoints=(f"segmind+{url}",), profile=PROFILE)
            pool = open_pool(settings, patience)
        try:
            await _ready(process, pool, log)
            yield WorkerProcess(setup, process, url, pool, log, time.monotonic() - started)
        finally:
            await pool.aclose()
    finally:
        await _stop(process, signal.SIGTERM)


async def _address(process: asyncio.subprocess.Process, log: Path) -> str:
    while True:
        output = log.read_text()  # noqa: ASYNC240 - nothing else goes on meanwhile
        if match := re.search(r"http://[\d.]+:\d+", output):
            return match[0]
        if process.returncode is not None:
            raise ProcessFailedError(f"the worker ended: {last_line(log)}")
        await asyncio.sleep(0.05)


async def _ready(process: asyncio.subprocess.Process, pool: Pool, log: Path) -> None:
    """Wait until the worker is healthy, or has ended."""
    opening, ending = asyncio.ensure_future(pool.open()), asyncio.ensure_future(process.wait())
    await asyncio.wait((opening, ending), return_when=asyncio.FIRST_COMPLETED)
    if opening.done():
        ending.cancel()
        opening.result()
        return
    opening.cancel()
    raise ProcessFailedError(f"the worker ended: {last_line(log)}")


async def _stop(process: asyncio.subprocess.Process, stop_signal: signal.Signals) -> None:
    if process.returncode is not None:
        return
    process.send_signal(stop_signal)
    try:
        await asyncio.wait_for(process.wait(), _STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def memory_file(setup: Setup) -> Path:
    """The file to which a worker writes its peak memory."""
    return setup.folder / "memory.json"


def data_url(path: Path) -> str:
    """A reference as a data URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def last_line(log: Path) -> str:
    """The last line that a process has printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
