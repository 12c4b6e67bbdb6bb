"""Images a second and CPU per image, against the ceiling and against a bare aiohttp loop, in one run.

    python benchmarks/throughput.py [--rows-slow 960] [--rows-fast 600]

The gateway (engine `static`) runs in a process of its own on loopback; every case runs in a fresh process. Steady
state is measured from the first image of the second wave of calls to the first one of the last wave, so ramp-up and
tail are left out.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import SecretStr

IN_FLIGHT = 64
MODEL = "flux-2-klein-9b"
IMAGES = {"jpeg": 130_000, "png": 1_000_000}


def serve(port: int, latency: float, image_format: str) -> None:
    """Run the gateway in this process."""
    from prefect_imagegen.gateway.server import run_server
    from prefect_imagegen.gateway.settings import GatewaySettings

    settings = GatewaySettings(
        engine="static", latency_s=latency, static_format=image_format, static_bytes=IMAGES[image_format]
    )
    run_server(settings, "127.0.0.1", port, on_listening=lambda _: None)


def ours(url: str, rows: int, image_format: str, api_version: Literal["v1", "v2"]) -> dict[str, float]:
    """Measure this project without Prefect: from a manifest to a local store, with everything verified and recorded."""
    import prefect_imagegen
    from prefect_imagegen.providers.settings import ProviderSettings

    with tempfile.TemporaryDirectory() as folder:
        manifest, store = f"{folder}/prompts.parquet", f"{folder}/store"
        pq.write_table(pa.table({"prompt": [f"p{n}" for n in range(rows)]}), manifest)
        cpu, wall = time.process_time(), time.monotonic()
        result = prefect_imagegen.generate(
            manifest,
            store,
            backend=ProviderSettings(base_url=url, api_key=SecretStr("k")),
            api_version=api_version,
            max_in_flight=IN_FLIGHT,
            values={"image_format": image_format},
        )
        assert result.generated == rows, result
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        stored = sorted(
            t.timestamp() for t in pq.read_table(f"{store}/runs/{result.run_id}/metadata")["created_at"].to_pylist()
        )
    return {"wall": wall, "cpu": cpu, "steady": steady(stored)}


async def bare(url: str, rows: int, image_format: str, decode: bool) -> list[float]:
    """The baseline, a script of five minutes: POST, save the bytes to a file, and decode them if asked."""
    from prefect_imagegen.core.images import image

    gate = asyncio.Semaphore(IN_FLIGHT)
    stored: list[float] = []
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    with tempfile.TemporaryDirectory() as folder:
        async with aiohttp.ClientSession(connector=connector, headers={"x-api-key": "k"}) as session:

            async def make(number: int) -> None:
                async with gate:
                    body = {"prompt": f"p{number}", "seed": number, "image_format": image_format}
                    async with session.post(f"{url}/v1/{MODEL}", json=body) as answer:
                        data = await answer.read()
                    if decode:
                        await asyncio.to_thread(image.decode, data)
                    await asyncio.to_thread(Path(folder, f"{number}.{image_format}").write_bytes, data)
                    stored.append(time.time())

            await asyncio.gather(*map(make, range(rows)))
    return stored


def steady(stored: list[float]) -> float:
    """Images a second from the first image of the second wave to the first one of the last wave."""
    first, last = IN_FLIGHT, len(stored) - IN_FLIGHT
    return (last - first) / (stored[last] - stored[first])


def measure(case: dict[str, object]) -> dict[str, float]:
    """Measure one case in this process."""
    url, rows, image_format = str(case["url"]), int(str(case["rows"])), str(case["format"])
    if case["method"] in ("v1", "v2"):
        return ours(url, rows, image_format, "v1" if case["method"] == "v1" else "v2")
    cpu, wall = time.process_time(), time.monotonic()
    stored = asyncio.run(bare(url, rows, image_format, case["method"] == "bare + decode"))
    return {
        "wall": time.monotonic() - wall,
        "cpu": time.process_time() - cpu,
        "steady": steady(sorted(stored)),
    }


@contextmanager
def gateway(latency: float, image_format: str) -> Iterator[str]:
    """Run a gateway in a process of its own; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--serve", json.dumps([port, latency, image_format])]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def run_case(**case: object) -> dict[str, float]:
    """Measure one case in a fresh process."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def main() -> None:
    """Measure every case and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows-slow", type=int, default=960)
    parser.add_argument("--rows-fast", type=int, default=600)
    parser.add_argument("--case")
    parser.add_argument("--serve")
    options = parser.parse_args()
    if options.serve:
        serve(*json.loads(options.serve))
        return
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    print(f"{IN_FLIGHT} in flight; {os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}\n")
    ceiling = IN_FLIGHT / 2.0
    print(f"latency 2 s, JPEG 130 kB, {options.rows_slow} images; the ceiling is {ceiling:.0f} images/s")
    with gateway(2.0, "jpeg") as url:
        for version in ("v1", "v2"):
            figures = run_case(url=url, rows=options.rows_slow, format="jpeg", method=version)
            print(f"  {version}: {figures['steady']:.1f} images/s, {figures['steady'] / ceiling:.3f} of the ceiling")
    for image_format, size in IMAGES.items():
        print(f"\nlatency 0.05 s, {image_format} of {size // 1000} kB, {options.rows_fast} images")
        print(f"  {'case':14} {'images/s':>9} {'ratio':>6} {'CPU ms/image':>13} {'ratio':>6}")
        with gateway(0.05, image_format) as url:
            base = None
            for method in ("bare", "bare + decode", "v1", "v2"):
                figures = run_case(url=url, rows=options.rows_fast, format=image_format, method=method)
                rate, cpu = options.rows_fast / figures["wall"], 1000 * figures["cpu"] / options.rows_fast
                base = base or (rate, cpu)
                print(f"  {method:14} {rate:9.1f} {rate / base[0]:6.2f} {cpu:13.2f} {cpu / base[1]:6.2f}")


if __name__ == "__main__":
    main()
