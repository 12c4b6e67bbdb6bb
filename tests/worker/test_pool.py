"""A pool of real workers: two processes over the tiny pipeline, through a real Prefect flow."""

import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageChops

from prefect_imagegen import generate
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.blocks import GpuWorkerPool
from prefect_imagegen.flows import generate_images
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings

pytestmark = [pytest.mark.timeout(600)]
Start = Callable[..., Any]


def photos(folder: Path) -> list[list[str]]:
    """Cells of none, one and two references, in turn."""
    noise = np.random.default_rng(3).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    for number in range(2):
        Image.fromarray(np.roll(noise, 40 * number, axis=1)).save(folder / f"{number}.png")
    return [[], ["0.png"], ["0.png", "1.png"]]


def manifest(folder: Path, rows: int) -> str:
    cells = photos(folder)
    path = folder / "manifest.parquet"
    columns = {"prompt": [f"a cup number {row}" for row in range(rows)], "seed": list(range(rows))}
    pq.write_table(pa.table(columns | {"image_urls": [cells[row % 3] for row in range(rows)]}), path)
    return str(path)


def images(store: Path, run_id: str | None) -> dict[int, Image.Image]:
    rows = pq.read_table(store / "runs" / str(run_id) / "metadata").to_pylist()
    return {
        row["row_index"]: Image.open(io.BytesIO((store / row["image_path"]).read_bytes())).convert("RGB")
        for row in rows
    }


def difference(first: Image.Image, second: Image.Image) -> int:
    assert first.size == second.size
    return max(high for _, high in ImageChops.difference(first, second).getextrema())


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_a_worker_is_killed_amid_a_flow(start_worker: Start, tmp_path: Path) -> None:
    """A flow from Parquet over two workers, one of them killed: every row has its image, the same as by one worker."""
    workers = [start_worker("distilled", "--max-batch", "2") for _ in range(2)]
    source, store = manifest(tmp_path, 30), tmp_path / "store"

    def kill() -> None:
        while workers[0].metric('imagegen_images_total{model="flux-2-klein-9b"}') < 3:
            time.sleep(0.02)
        os.kill(workers[0].process.pid, 9)

    GpuWorkerPool(endpoints=[f"segmind+{worker.url}" for worker in workers]).save("tiny", overwrite=True)
    killer = threading.Thread(target=kill)
    killer.start()
    state = generate_images(source, str(store), "gpu-worker-pool/tiny", RunOptions(), return_state=True)
    killer.join()
    assert state.is_completed(), state.message
    result = state.result()
    assert (result["generated"], result["cost_usd"]) == (30, 0.0)
    run_id = result["run_id"]
    rows = pq.read_table(store / "runs" / str(run_id) / "metadata").to_pylist()
    assert [len(row["references"]) for row in rows[:3]] == [0, 1, 2]
    assert {row["endpoint"] for row in rows} == {worker.url for worker in workers}
    assert {json.loads(row["applied"])["steps"] for row in rows} == {4}
    assert len(list((store / "images").rglob("*.png"))) == 30

    alone = tmp_path / "alone"
    again = generate(source, str(alone), backend="pool", endpoints=[f"segmind+{workers[1].url}"], max_in_flight=1)
    first, second = images(store, run_id), images(alone, again.run_id)
    assert max(difference(first[row], second[row]) for row in range(30)) <= 2
    third = tmp_path / "third"
    once_more = generate(source, str(third), backend="pool", endpoints=[f"segmind+{workers[1].url}"], max_in_flight=1)
    exact = images(third, once_more.run_id)
    assert [second[row].tobytes() == exact[row].tobytes() for row in range(30)] == [True] * 30


def test_every_backend_gives_the_same_table(
    start_worker: Start, images_engine: Callable[..., Any], tmp_path: Path
) -> None:
    """The same manifest through sandbox, Images servers and a real worker: the same rows, the same metadata schema."""
    source = manifest(tmp_path, 6)
    tables = {}
    with EmbeddedGateway(GatewaySettings(allow_loopback=True)) as gateway:
        for name, endpoint in (
            ("sandbox", f"segmind+{gateway.url}"),
            ("openai", images_engine("sglang").endpoint),
            ("diffusers", f"segmind+{start_worker('distilled').url}"),
        ):
            store = tmp_path / name
            result = generate(source, str(store), backend="pool", endpoints=[endpoint])
            assert result.generated == 6
            tables[name] = pq.read_table(store / "runs" / str(result.run_id) / "metadata")
    first = tables["sandbox"]
    for other in tables.values():
        assert other.schema == first.schema
        for column in ("row_index", "status", "request_key", "prompt", "seed", "model", "requested", "references"):
            assert other[column].to_pylist() == first[column].to_pylist(), column
        applied = [json.loads(text) for text in other["applied"].to_pylist()]
        assert {(params["steps"], params["cfg"], params["go_fast"]) for params in applied} == {(4, 1, False)}


def test_a_wrong_profile_is_refused(start_worker: Start, tmp_path: Path) -> None:
    """A run that asks for the base profile of a distilled worker is refused before anything is drawn."""
    worker = start_worker("distilled")
    options = {"backend": "pool", "endpoints": [f"segmind+{worker.url}"], "profile": "klein-base"}
    with pytest.raises(Exception, match="runs the profile klein-distilled, not klein-base"):
        generate(manifest(tmp_path, 3), str(tmp_path / "store"), **options)
    assert not (tmp_path / "store").exists()
