"""The Prefect way that tutorials show: one task run an image, with Prefect's retries; files that exist are skipped.

naive_prefect.py MANIFEST BASE_URL FOLDER IN_FLIGHT
"""

import sys
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from prefect import flow, task
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff


@task(retries=8, retry_delay_seconds=exponential_backoff(0.5), retry_jitter_factor=1, persist_result=False)
def make(url: str, number: int, prompt: str, target: str) -> None:
    """Make one image."""
    body = {"prompt": prompt, "seed": number, "image_format": "jpeg"}
    answer = httpx.post(f"{url}/v1/flux-2-klein-9b", json=body, headers={"x-api-key": "k"}, timeout=60)
    answer.raise_for_status()
    Path(target).write_bytes(answer.content)


@flow
def images(manifest: str, url: str, folder: str) -> None:
    """Make all images that are not there."""
    futures = []
    for number, prompt in enumerate(pq.read_table(manifest)["prompt"].to_pylist()):
        target = Path(folder, f"{number:06}.jpg")
        if not target.exists():
            futures.append(make.submit(url, number, prompt, str(target)))
    for future in futures:
        future.wait()


if __name__ == "__main__":
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=int(sys.argv[4]))
    images.with_options(task_runner=runner)(sys.argv[1], sys.argv[2], sys.argv[3])
