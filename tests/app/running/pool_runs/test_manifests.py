"""Manifests made by a pool of workers of the Images dialect: real sockets, real stores."""

import asyncio
import json
from pathlib import Path

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
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.app.running.pool_runs.conftest import Engine, manifest, metadata, run


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
    assert "Parameters that were not used as asked for (rows): cfg in 10" in report
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
