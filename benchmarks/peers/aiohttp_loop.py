"""A script of ten minutes: a semaphore, eight tries, one file for each image; files that exist are skipped.

aiohttp_loop.py MANIFEST BASE_URL FOLDER IN_FLIGHT
"""

import asyncio
import sys
from pathlib import Path

import aiohttp
import pyarrow.parquet as pq


async def main(manifest: str, url: str, folder: str, in_flight: int) -> None:
    """Make all images."""
    gate = asyncio.Semaphore(in_flight)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(headers={"x-api-key": "k"}, timeout=timeout) as session:

        async def make(number: int, prompt: str) -> None:
            target = Path(folder, f"{number:06}.jpg")
            if target.exists():  # noqa: ASYNC240 - as one writes it
                return
            body = {"prompt": prompt, "seed": number, "image_format": "jpeg"}
            async with gate:
                for attempt in range(8):
                    try:
                        async with session.post(f"{url}/v1/flux-2-klein-9b", json=body) as answer:
                            answer.raise_for_status()
                            target.write_bytes(await answer.read())  # noqa: ASYNC240 - the same
                            return
                    except (aiohttp.ClientError, TimeoutError):
                        await asyncio.sleep(2**attempt / 4)

        prompts = pq.read_table(manifest)["prompt"].to_pylist()
        await asyncio.gather(*(make(number, prompt) for number, prompt in enumerate(prompts)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
