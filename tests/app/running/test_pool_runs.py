"""Runs over a pool of workers of the Images dialect: real sockets, real stores, faults of every kind."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import SecretStr

from prefect_imagegen import generate
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.reconcile import reconcile
from prefect_imagegen.app.planning.prepare import RowsRefusedError
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.manifests import manifest_of

Engine = Callable[..., Any]


def manifest(folder: Path, rows: int, **columns: Any) -> str:
    return manifest_of(folder, prompt=[f"cup {row}" for row in range(rows)], **columns)


def metadata(store: Path, result: RunResult) -> list[dict[str, Any]]:
    return pq.read_table(store / "runs" / str(result.run_id) / "metadata").to_pylist()


def run(source: str, store: Path, *engines: Any, **options: Any) -> RunResult:
    endpoints = [engine.endpoint for engine in engines]
    return generate(source, str(store), backend="pool", endpoints=endpoints, **options)


def test_a_pool_makes_a_manifest(images_engine: Engine, tmp_path: Path) -> None:
    """Images, metadata and ledger as with the API, for no money, without a key and without claims."""
    engines = [images_engine("vllm_omni"), images_engine("sglang")]
    source, store = manifest(tmp_path, 30, cfg=[3.0] * 10 + [None] * 20), tmp_path / "store"
    result = run(source, store, *engines, weights="klein-lab", weights_license="lab use only")
    assert (result.generated, result.cost_usd, result.paid, result.calls) == (30, 0.0, 0, 30)
    assert result.unhonoured == {"cfg": 10}
    assert not (store / "ledger" / "claims").exists()
    rows = metadata(store, result)
    assert {row["endpoint"] for row in rows} == {engine.url for engine in engines}
    for row in rows:
        requested, applied = json.loads(row["requested"]), json.loads(row["applied"])
        assert (row["backend"], row["profile"], row["weights"]) == ("pool", "klein-distilled", "klein-lab")
        assert (row["weights_license"], row["sandbox"], row["cost_usd"]) == ("lab use only", False, 0.0)
        assert requested["cfg"] == (3 if row["row_index"] < 10 else 1)
        assert (applied["cfg"], applied["steps"], applied["size"]) == (1, 4, "1024x1024")
        assert (store / row["image_path"]).exists()
    report = (store / "runs" / str(result.run_id) / "report.md").read_text()
    assert "Parameters replaced by what the worker can do (rows): cfg in 10" in report
    assert "Licence of the weights: lab use only." in report
    again = run(source, store, engines[0], weights="klein-lab")
    assert (again.reused, again.calls) == (30, 0)
    other = run(source, store, engines[0], profile="klein-base", weights="klein-lab", limit=3)
    assert (other.generated, other.reused) == (3, 0)
    assert [body["num_inference_steps"] for body in engines[0].bodies[-3:]] == [20, 20, 20]


@pytest.mark.parametrize("check", ["all", "none"])
def test_no_reference_ends_the_run(check: str, images_engine: Engine, tmp_path: Path) -> None:
    """A deep TIFF is made fit, a file that is no picture ends its own row, and the others are made all the same."""
    grey = Image.linear_gradient("L").convert("I").point(lambda value: value * 257)
    grey.convert("I;16B").save(tmp_path / "deep.tif")
    grey.convert("L").save(tmp_path / "plain.png")
    (tmp_path / "page.png").write_text("<html>not found</html>")
    names = ["deep.tif", "page.png", "plain.png", None]
    source = manifest(tmp_path, 4, image_urls=[[name] if name else None for name in names])
    engine = images_engine("sglang")
    result = run(source, tmp_path / "store", engine, check_references=check, on_invalid="skip")
    states = {row["row_index"]: row for row in metadata(tmp_path / "store", result)}
    assert [states[row]["status"] for row in (0, 2, 3)] == ["generated"] * 3
    assert states[1]["status"] == ("invalid" if check == "all" else "failed")
    assert "it is a web page" in states[1]["error_message"]
    assert check == "all" or "page.png" in states[1]["error_message"]
    assert states[1]["error_kind"] == ("invalid_row" if check == "all" else "reference_unreadable")
    changes = json.loads(states[0]["applied"]).get("references")
    remarks = ["converted from TIFF", "reduced from 16 to 8 bits"]
    assert changes == ([{"position": 1, "changes": remarks}] if check == "all" else None)


def test_an_image_in_another_format(images_engine: Engine, tmp_path: Path) -> None:
    """A worker that ignores the format is told of in the metadata: the file keeps its bytes, and its true format."""
    engine = images_engine("sglang", faults=["other_format", None, "data_url"])
    result = run(manifest(tmp_path, 3), tmp_path / "store", engine, max_in_flight=1)
    rows = metadata(tmp_path / "store", result)
    assert sorted((row["format"], tuple(row["flags"])) for row in rows) == [
        ("jpeg", ("other_format",)),
        ("png", ()),
        ("png", ()),
    ]
    for row in rows:
        with Image.open(tmp_path / "store" / row["image_path"]) as image:
            assert image.format == row["format"].upper()


@pytest.mark.parametrize("profile", ["klein-distilled", "klein-base"])
def test_strict_parameters_are_row_errors(profile: str, images_engine: Engine, tmp_path: Path) -> None:
    """With strict parameters a row that asks for what the profile cannot do is refused before any call."""
    engine = images_engine("sglang")
    columns = {"cfg": [None, 3.0, 1.0], "sampler": [None, None, "res_2s"], "negative_prompt": [None, "rain", None]}
    source = manifest(tmp_path, 3, **columns)
    with pytest.raises(RowsRefusedError) as caught:
        run(source, tmp_path / "store", engine, profile=profile, strict_parameters=True)
    expected = [(2, "sampler")] if profile == "klein-base" else [(1, "cfg"), (1, "negative_prompt"), (2, "sampler")]
    assert sorted((error.row, error.column) for error in caught.value.summary.errors) == expected
    assert "(--strict-parameters)" in str(caught.value)
    assert engine.bodies == []
    result = run(source, tmp_path / "store", engine, profile=profile)
    assert (result.generated, set(result.unhonoured)) == (3, {column for _, column in expected})


def test_faults_lose_nothing(images_engine: Engine, tmp_path: Path) -> None:
    """With every fault of the list each row gets its image, none is stored twice, and no worker has too many calls."""
    broken = ["500", None, "drop", "truncated", None, "url", "wrong_size", "503", None, "429", "no_image", "500"]
    engines = [
        images_engine("vllm_omni", seconds=0.01, faults=broken),
        images_engine("sglang", seconds=0.01, faults=broken[::-1]),
        images_engine("sglang", seconds=0.03),
    ]
    store = tmp_path / "store"
    result = run(manifest(tmp_path, 120), store, *engines, endpoint_limit=2)
    assert (result.generated, result.failures, result.exit_code) == (120, {}, 0)
    assert [max(engine.most_in_flight, 2) for engine in engines] == [2, 2, 2]
    images = [path for path in (store / "images").rglob("*") if path.is_file()]
    assert len(images) == 120
    assert len({row["image_path"] for row in metadata(store, result)}) == 120
    assert not engines[0].faults + engines[1].faults


def test_each_worker_has_its_own_limit_and_key(
    images_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind an endpoint is that worker's own; the others go by what is set for all."""
    monkeypatch.setenv("PREFECT_IMAGEGEN_POOL_API_KEY", "for-all")
    monkeypatch.setenv("GPU_1_KEY", "for-one")
    worker, other = images_engine("sglang", seconds=0.02), images_engine("vllm_omni", seconds=0.02)
    endpoints = [f"{worker.endpoint}#limit=5&key=env:GPU_1_KEY", other.endpoint]
    store = tmp_path / "store"
    result = generate(manifest(tmp_path, 60), str(store), backend="pool", endpoints=endpoints, endpoint_limit=1)
    assert result.generated == 60
    assert (worker.most_in_flight, other.most_in_flight) == (5, 1)
    assert (set(worker.keys), set(other.keys)) == ({"Bearer for-one"}, {"Bearer for-all"})
    written = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    assert b"for-one" not in written
    assert b"for-all" not in written


def test_a_worker_with_another_key_is_left_out(
    images_engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers of both dialects that reject the key are named before the first call and get none; the report says so."""
    strange, well = images_engine("vllm_omni"), images_engine("sglang")
    strange.key = "another"
    with EmbeddedGateway(GatewaySettings(api_key=SecretStr("another"))) as gateway:
        endpoints = [strange.endpoint, well.endpoint, f"segmind+{gateway.url}"]
        # A store is for placeholders or for images: the gateway would be refused for that, were its key taken.
        result = generate(manifest(tmp_path, 20), str(tmp_path / "store"), backend="pool", endpoints=endpoints)
        assert not gateway.account_state.records
    assert (result.generated, result.calls, len(strange.bodies), result.exit_code) == (20, 20, 0, 0)
    assert set(result.left_out) == {strange.url, gateway.url}
    assert result.left_out[strange.url] == "401: Unauthorized"
    report = (tmp_path / "store" / "runs" / str(result.run_id) / "report.md").read_text()
    assert f"Workers that were left out, for a while or to the end: {min(strange.url, gateway.url)}" in report
    assert f"Worker {strange.url} is left out for the rest of this run: 401: Unauthorized" in caplog.text


def test_a_pool_that_rejects_the_key_is_refused(images_engine: Engine, tmp_path: Path) -> None:
    """Where no worker takes the key the run is refused before anything is planned, with what each said."""
    engines = [images_engine("vllm_omni"), images_engine("sglang")]
    for engine in engines:
        engine.key = "another"
    with pytest.raises(RefusedError, match=r"No worker takes the key.*401.*PREFECT_IMAGEGEN_POOL_API_KEY") as caught:
        run(manifest(tmp_path, 5), tmp_path / "store", *engines)
    assert (caught.value.kind, engines[0].bodies, engines[1].bodies) == ("wrong_key", [], [])
    assert not (tmp_path / "store" / "runs").exists()
    assert all(engine.url in caught.value.message for engine in engines)


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_worker_that_refuses_in_mid_run(status: int, images_engine: Engine, tmp_path: Path) -> None:
    """A worker that begins to refuse costs no row and does not stop the run: its rows are drawn by the others."""
    bad, well = images_engine("vllm_omni", seconds=0.02), images_engine("sglang", seconds=0.02)

    def turn() -> None:
        while len(bad.bodies) < 5:
            time.sleep(0.01)
        bad.refuses = status

    thread = threading.Thread(target=turn)
    thread.start()
    result = run(manifest(tmp_path, 60), tmp_path / "store", bad, well)
    thread.join()
    assert (result.generated, result.failures, result.exit_code) == (60, {}, 0)
    assert result.left_out == {bad.url: f"{status}: refused"}


def test_a_pool_in_which_all_refuse_stops(images_engine: Engine, tmp_path: Path) -> None:
    """Two workers that are no workers of images end the run at once, with both reasons; nothing is held or failed."""
    engines = [images_engine("vllm_omni"), images_engine("sglang")]
    engines[0].refuses, engines[1].refuses = 404, 405
    result = run(manifest(tmp_path, 10), tmp_path / "store", *engines)
    assert (result.stop_reason, result.not_run, result.exit_code) == ("no_worker", 10, 3)
    assert all(f"{engine.url}: {engine.refuses}: refused" in str(result.stop_message) for engine in engines)


def test_a_worker_of_another_model_gets_nothing(images_engine: Engine, tmp_path: Path) -> None:
    """A worker whose checkpoint is another model's draws nothing under its name; one that does not tell is believed."""
    small, unknown = images_engine("vllm_omni"), images_engine("sglang")
    small.checkpoint, unknown.checkpoint = "black-forest-labs/FLUX.2-klein-4B", "our-own"
    result = run(manifest(tmp_path, 10), tmp_path / "store", small, unknown)
    assert (result.generated, len(small.bodies), len(unknown.bodies)) == (10, 0, 10)
    result = run(manifest(tmp_path, 10), tmp_path / "other", small, model="flux-2-klein-4b")
    assert (result.generated, len(small.bodies)) == (10, 10)


def test_a_hung_call_is_repeated(images_engine: Engine, tmp_path: Path) -> None:
    """A worker that takes a call and never answers loses it; the row is drawn by another."""
    hung, well = images_engine("sglang", faults=["hang"]), images_engine("sglang", seconds=0.05)
    result = run(manifest(tmp_path, 40), tmp_path / "store", hung, well, deadline=3.0)
    assert (result.generated, result.calls, result.exit_code) == (40, 41, 0)


def test_a_worker_that_is_killed(images_engine: Engine, tmp_path: Path) -> None:
    """A worker that dies in mid-run costs its calls under way; they are drawn elsewhere at once."""
    engines = [images_engine("sglang", seconds=0.05) for _ in range(3)]

    def kill() -> None:
        while len(engines[0].bodies) < 5:
            time.sleep(0.01)
        engines[0].stop()

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(manifest(tmp_path, 60), tmp_path / "store", *engines)
    killer.join()
    assert (result.generated, result.exit_code) == (60, 0)
    lost = result.calls - 60
    assert 1 <= lost <= 2


def test_a_warming_worker_joins_later(images_engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run starts with the first healthy worker; one that becomes healthy later gets its share."""
    ready, warming = images_engine("vllm_omni", seconds=0.05), images_engine("sglang", seconds=0.01)
    warming.healthy = False

    def warm() -> None:
        while len(ready.bodies) < 5:
            time.sleep(0.01)
        warming.healthy = True

    thread = threading.Thread(target=warm)
    thread.start()
    result = run(manifest(tmp_path, 80), tmp_path / "store", ready, warming)
    thread.join()
    assert result.generated == 80
    assert len(warming.bodies) > 10
    assert f"Worker {warming.url} is left out until it is healthy: unhealthy" in caplog.text
    assert f"Worker {warming.url} is ready" in caplog.text


def test_a_pool_without_workers(images_engine: Engine, tmp_path: Path) -> None:
    """No healthy worker within the deadline is a refusal; all gone in mid-run is a stop that the next run resumes."""
    engine = images_engine("sglang", seconds=0.02)
    engine.healthy = False
    source, store = manifest(tmp_path, 40), tmp_path / "store"
    with pytest.raises(RefusedError, match="no worker was ready within 1 s") as caught:
        run(source, store, engine, deadline=1.0)
    assert caught.value.kind == "no_worker"
    engine.healthy = True

    def kill() -> None:
        while len(engine.bodies) < 5:
            time.sleep(0.01)
        engine.stop()

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(source, store, engine, deadline=2.0)
    killer.join()
    assert (result.stop_reason, result.exit_code) == ("no_worker", 3)
    assert (result.held, result.generated + result.not_run) == (0, 40)
    again = run(source, store, images_engine("sglang"))
    assert (again.generated + again.reused, again.exit_code) == (40, 0)
    assert again.reused >= result.generated


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpoints": []}, "--endpoint"),
        ({"endpoints": ["http://h:1"]}, r"http://h:1 is no endpoint.*openai\+http"),
        ({"endpoints": ["grpc+http://h:1"]}, "is no endpoint"),
        ({"endpoints": ["openai+http://h:1", "segmind+http://h:1/"]}, "twice"),
        ({"endpoints": ["openai+http://h:1#limit=x"]}, "is no endpoint"),
        ({"endpoints": ["openai+http://h:1#speed=9"]}, "#limit=N or #key=env:NAME"),
        ({"endpoints": ["openai+http://user:hush@h:1"]}, r"is no endpoint"),
        ({"endpoints": ["openai+http://h:1#key=env:NOWHERE"]}, r"The key of openai\+http://h:1 is not in the env"),
        ({"endpoints": ["openai+http://h:1#key=hush"]}, r"Export it"),
        ({"endpoints": ["openai+http://h:1"], "reference_transport": "upload"}, "--reference-transport upload"),
    ],
)
def test_bad_pools_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    """A pool that means nothing is refused in words, before anything is called."""
    with pytest.raises(RefusedError, match=words) as caught:
        generate(manifest(tmp_path, 1), str(tmp_path / "store"), backend="pool", **options)
    assert "hush" not in str(caught.value)


def test_options_of_a_pool_are_for_a_pool(tmp_path: Path) -> None:
    """Another backend refuses them instead of leaving them unheeded."""
    for option in ({"profile": "klein-base"}, {"endpoints": ["openai+http://h:1"]}, {"strict_parameters": True}):
        with pytest.raises(RefusedError, match="--backend pool"):
            generate(manifest(tmp_path, 1), str(tmp_path / "store"), backend="sandbox", **option)


def test_references_go_as_bytes(images_engine: Engine, tmp_path: Path) -> None:
    """References in files and on the web are read here and sent in the call; `match_input_image` takes their size."""
    noise = np.random.default_rng(1).integers(0, 255, (80, 160, 3), dtype=np.uint8)
    for name in ("one.png", "two.png"):
        Image.fromarray(noise if name == "one.png" else noise[:, ::-1]).save(tmp_path / name)
    engine = images_engine("vllm_omni")
    columns = {
        "image_urls": [[], ["one.png"], ["one.png", "two.png"]],
        "aspect_ratio": ["1:1", "match_input_image", "3:2"],
    }
    store = tmp_path / "store"
    result = run(manifest(tmp_path, 3, **columns), store, engine)
    assert result.generated == 3
    assert sorted(engine.references) == [0, 1, 2]
    assert [(row["width"], row["height"]) for row in metadata(store, result)] == [(1024, 1024), (160, 80), (1248, 832)]
    assert engine.complaints == []


def test_free_images_say_nothing_of_money(tmp_path: Path) -> None:
    """What workers drew for nothing neither lowers the prices known of the API nor is looked for in its history."""
    source, store = manifest(tmp_path, 30), StoreSettings(str(tmp_path / "store"))
    with (
        EmbeddedGateway(GatewaySettings(allow_loopback=True)) as worker,
        EmbeddedGateway(GatewaySettings(allow_loopback=True, price_usd=0.01)) as api,
    ):
        pool = generate(source, store, backend="pool", endpoints=[f"segmind+{worker.url}"], values={"steps": 20})
        assert (pool.generated, pool.cost_usd) == (30, 0.0)
        account = ProviderSettings(base_url=api.url, api_key=SecretStr("k"))
        paid = generate(source, store, backend=account, max_cost_usd=0.045)
        assert (paid.stop_reason, paid.overshoot_usd) == ("budget", 0.0)
        assert 1 <= len(api.account_state.billed) <= 4
        reconciled = asyncio.run(reconcile(store, account, RunOptions()))
        assert (reconciled.differences, reconciled.ledger_calls) == ([], paid.generated)


def test_every_backend_gives_the_same_table(images_engine: Engine, tmp_path: Path) -> None:
    """The same manifest through a sandbox gateway and a pool: the same rows, seeds and metadata schema."""
    source = manifest(tmp_path, 6, seed=[1, 2, None, None, -1, 6], sku=list("abcdef"))
    tables = []
    with EmbeddedGateway(GatewaySettings(allow_loopback=True)) as gateway:
        for name, backend, endpoint in (
            ("toy", "sandbox", None),
            ("pool", "pool", images_engine("sglang").endpoint),
            ("mixed", "pool", f"segmind+{gateway.url}"),
        ):
            store = tmp_path / name
            endpoints = [endpoint] if endpoint else []
            result = generate(source, str(store), backend=backend, endpoints=endpoints)
            tables.append(pq.read_table(store / "runs" / str(result.run_id) / "metadata"))
    first, *others = tables
    for other in others:
        assert other.schema == first.schema
        for column in ("row_index", "status", "prompt", "seed", "model", "width", "height", "format", "sku"):
            assert other[column].to_pylist() == first[column].to_pylist(), column
