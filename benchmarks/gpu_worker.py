"""The GPU worker and the pool over a tiny random pipeline on the CPU: batches, workers, and their overhead.

    pip install 'prefect-imagegen[diffusers]' && python benchmarks/gpu_worker.py [--images 64] [--rounds 3]

Only ratios mean anything: the pipeline has a few thousand weights, and a GPU at one megapixel has other bottlenecks.
Every process has one thread for the model. Rounds are interleaved; medians are shown.
"""

import argparse
import asyncio
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from prefect_imagegen.core.request.request import GenerationRequest

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
TINY = Path(__file__).parents[1] / "tests" / "worker" / "tiny_klein.py"
MODEL = "flux-2-klein-9b"
SIDE = 256
MEGAPIXELS = SIDE * SIDE / 1024**2
BATCHES = (1, 2, 4, 8)
LOOP = """
import sys, time, io, torch
from diffusers import Flux2KleinPipeline
pipe = Flux2KleinPipeline.from_pretrained(sys.argv[1], dtype=torch.float32, local_files_only=True)
pipe.set_progress_bar_config(disable=True)
def draw(seed):
    generator = torch.Generator("cpu").manual_seed(seed)
    image = pipe(prompt=f"cup {seed}", width=int(sys.argv[3]), height=int(sys.argv[3]), num_inference_steps=4,
                 guidance_scale=1.0, generator=generator).images[0]
    image.save(io.BytesIO(), "PNG", compress_level=1)
draw(0)
cpu, wall = time.process_time(), time.monotonic()
for seed in range(int(sys.argv[2])):
    draw(seed)
print(time.monotonic() - wall, time.process_time() - cpu)
"""


def loop(model: str, images: int) -> tuple[float, float]:
    """Call the pipeline in a loop: images a second, and CPU ms per image."""
    command = [sys.executable, "-c", LOOP, model, str(images), str(SIDE)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout.split()
    return images / float(output[0]), 1000 * float(output[1]) / images


@contextmanager
def worker(model: str, max_batch: int) -> Iterator[tuple[int, str]]:
    """Run a worker process; yields its id and URL."""
    command = [sys.executable, "-m", "prefect_imagegen.cli.main", "serve", "--engine", "diffusers", "--model", model]
    command += ["--device", "cpu", "--port", "0", "--max-batch", str(max_batch), "--megapixels", str(MEGAPIXELS)]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log, env=ENVIRONMENT) as process:
        try:
            url = None
            while url is None:
                time.sleep(0.05)
                log.seek(0)
                match = re.search(r"http://[\d.]+:\d+", log.read())
                url = match[0] if match else None
            yield process.pid, url
        finally:
            process.terminate()
            process.wait(60)


def cpu_seconds(pid: int) -> float:
    """The CPU seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def drive(urls: list[str], images: int) -> float:
    """Make images through a pool; returns the seconds it took."""
    from prefect_imagegen.providers.pool.entry import open_pool
    from prefect_imagegen.providers.settings import ProviderSettings

    settings = ProviderSettings("pool", endpoints=tuple(f"segmind+{url}" for url in urls), profile="klein-distilled")
    pool = open_pool(settings, 600.0)
    base = {"steps": 4, "cfg": 1, "negative_prompt": "", "sampler": "euler", "go_fast": False, "aspect_ratio": "1:1"}

    async def make(number: int) -> None:
        params = base | {"prompt": f"cup {number}", "seed": number, "image_format": "png", "quality": 90}
        request = GenerationRequest(MODEL, params, profile="klein-distilled")
        await pool.collect(await pool.submit(request, ()))

    try:
        await pool.open()
        await asyncio.gather(*(make(-number - 1 + 2**20) for number in range(pool.capacity)))
        started = time.monotonic()
        await asyncio.gather(*map(make, range(images)))
        return time.monotonic() - started
    finally:
        await pool.aclose()


def pooled(model: str, images: int, max_batch: int, workers: int = 1) -> tuple[float, float]:
    """Make images through gateway and pool: images a second, and CPU ms per image of all processes."""
    with ExitStack() as stack:
        running = [stack.enter_context(worker(model, max_batch)) for _ in range(workers)]
        urls = [url for _, url in running]
        asyncio.run(drive(urls, workers))  # until all are warm
        before = time.process_time() + sum(cpu_seconds(pid) for pid, _ in running)
        seconds = asyncio.run(drive(urls, images))
        after = time.process_time() + sum(cpu_seconds(pid) for pid, _ in running)
        made = images + sum(max_batch + 1 for _ in running)  # images that warm the pool up cost CPU too
    return images / seconds, 1000 * (after - before) / made


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cases: dict[str, Callable[[str], tuple[float, float]]]
    cases = {"pipeline in a loop": partial(loop, images=options.images)}
    for size in BATCHES:
        cases[f"pool and worker, batch {size}"] = partial(pooled, images=options.images, max_batch=size)
    cases["pool of two workers, batch 1"] = partial(pooled, images=options.images, max_batch=1, workers=2)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/tiny-klein-9B"
        subprocess.run([sys.executable, str(TINY), model], check=True, capture_output=True, env=ENVIRONMENT)
        for _ in range(options.rounds):
            for name, case in cases.items():
                results[name].append(case(model))
    middle = {name: (median(r for r, _ in pairs), median(c for _, c in pairs)) for name, pairs in results.items()}
    base = middle["pipeline in a loop"]
    print(f"{platform.python_version()}, {os.cpu_count()} cores, {options.images} images of {SIDE} pixels a side\n")
    print("| case | images/s | ratio | CPU ms/image | ratio |\n| --- | --- | --- | --- | --- |")
    for name, (rate, cpu) in middle.items():
        print(f"| {name} | {rate:.1f} | {rate / base[0]:.2f} | {cpu:.0f} | {cpu / base[1]:.2f} |")


if __name__ == "__main__":
    main()
