"""Runs from the command line, as a user meets them: a process of its own, its output, its exit code."""

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.support.command import call, last_line, prompts_parquet


@pytest.mark.prefect
@pytest.mark.timeout(400)
def test_demo_makes_pictures(tmp_path: Path) -> None:
    """`demo` leaves pictures and says where, whatever Prefect profile the user has; again, it makes nothing twice."""
    profile = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_API_KEY": "nonsense"}
    first = call("demo", folder=tmp_path, **profile)
    assert first.returncode == 0, first.stderr
    assert "demo-images/contact-sheet.jpg" in first.stdout
    assert "USD" in first.stdout
    assert len([path for path in (tmp_path / "demo-images" / "images").rglob("*") if path.is_file()]) == 12
    again = call("demo", folder=tmp_path, **profile)
    assert again.returncode == 0
    assert "12  reused" in again.stdout
    shown = call("status", "--store", "demo-images", folder=tmp_path)
    assert shown.stdout.count("finished") == 2


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_home")
@pytest.mark.timeout(400)
def test_generate_through_a_gateway(tmp_path: Path) -> None:
    """`generate --json` ends with the figures; the gateway's records agree; the key is nowhere in the output."""
    path = prompts_parquet(tmp_path)
    with EmbeddedGateway(GatewaySettings(api_key=SecretStr("SG_00112233"), price_usd=0.04)) as gateway:
        words = ("generate", path, "--store", "out", "--base-url", gateway.url, "--json", "--set", "steps=4")
        words += ("--prefect", "on")
        first = call(*words, folder=tmp_path, SEGMIND_API_KEY="SG_00112233")
        assert first.returncode == 0, first.stderr
        figures = last_line(first)
        assert (figures["generated"], figures["reused"], figures["calls"], figures["cost_usd"]) == (2, 1, 2, 0.08)
        assert len(gateway.account_state.billed) == 2
        assert {record.body["steps"] for record in gateway.account_state.billed} == {4}
        assert "SG_00112233" not in first.stdout + first.stderr
        again = last_line(call(*words, folder=tmp_path, SEGMIND_API_KEY="SG_00112233"))
        assert (again["reused"], again["calls"], again["cost_usd"]) == (3, 0, 0.0)


@pytest.mark.prefect
@pytest.mark.timeout(400)
def test_failed_rows_exit_1(tmp_path: Path) -> None:
    """Rows that fail or are skipped as invalid make exit code 1; the failures name them."""
    path = prompts_parquet(tmp_path, prompt=["good", None, "bad"])
    script = tmp_path / "faults.json"
    script.write_text(json.dumps({"faults": [{"fault": "failed", "prompt_contains": "bad"}]}))
    from prefect_imagegen.gateway.faults import load_faults  # noqa: PLC0415 - for this test alone

    with EmbeddedGateway(GatewaySettings(faults=load_faults(str(script)))) as gateway:
        words = ("generate", path, "--store", "out", "--base-url", gateway.url, "--json", "--on-invalid", "skip")
        process = call(*words, folder=tmp_path, SEGMIND_API_KEY="k")
    assert process.returncode == 1, process.stderr
    figures = last_line(process)
    assert (figures["generated"], figures["invalid"], figures["failed"]) == (1, 1, 1)
    failures = pq.read_table(tmp_path / "out" / "runs" / str(figures["run_id"]) / "failures")
    assert failures["error_kind"].to_pylist() == ["invalid_row", "generation_failed"]


@pytest.mark.prefect
@pytest.mark.timeout(400)
def test_generate_with_a_pool(images_engine: Any, tmp_path: Path) -> None:
    """A pool needs no account; plan, result and doctor tell of workers, what they replaced, and the licence."""
    worker = images_engine("sglang")
    pool = ("--store", "out", "--backend", "pool", "--endpoint", worker.endpoint)
    path = prompts_parquet(tmp_path, prompt=["a", "b", "c"], cfg=[3.0, None, 3.0])
    secret = {"PREFECT_IMAGEGEN_POOL_API_KEY": "pool-00112233"}
    process = call("generate", path, *pool, "--endpoint", "openai+http://127.0.0.1:9", folder=tmp_path, **secret)
    assert process.returncode == 0, process.stderr
    assert "on your own workers: nothing to pay" in process.stdout
    assert "not used as asked for: cfg in" in process.stdout
    assert "licence of the weights: FLUX Non-Commercial License" in process.stdout
    assert "Worker http://127.0.0.1:9 is left out until it is healthy" in process.stderr
    assert "pool-00112233" not in process.stdout + process.stderr
    assert set(worker.keys) == {"Bearer pool-00112233"}
    strict = call("plan", path, *pool, "--strict-parameters", folder=tmp_path)
    assert strict.returncode == 2
    assert "the profile klein-distilled has 1 only (--strict-parameters)" in " ".join(strict.stdout.split())
    ill = call("doctor", *pool, "--endpoint", "openai+http://127.0.0.1:9", folder=tmp_path)
    assert ill.returncode == 1
    assert f"ok worker {worker.url} is ready" in " ".join(ill.stdout.split())
    assert "fail worker http://127.0.0.1:9: no answer" in " ".join(ill.stdout.split())
    refused = call("reconcile", *pool, folder=tmp_path)
    assert refused.returncode == 2
    assert "GPU workers keep no request history" in refused.stderr


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_home")
@pytest.mark.timeout(400)
def test_a_signed_manifest_leaves_no_trace(tmp_path: Path) -> None:
    """The signature of a manifest's address is nowhere afterwards: not in Prefect's database, the store, the output."""
    served = tmp_path / "served"
    served.mkdir()
    prompts_parquet(served)
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/prompts.parquet?X-Amz-Signature=hunter2"
        words = ("--store", "out", "--backend", "sandbox", "--prefect", "on")
        process = call("generate", address, *words, folder=tmp_path)
        server.shutdown()
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == 2
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # The database and its write-ahead log: where the parameters of the run are.
    assert any(b"/prompts.parquet" in data for path, data in files.items() if path.name.startswith("prefect.db"))
    traces = [path for path, data in files.items() if b"hunter2" in data]
    assert (traces, "hunter2" in process.stdout + process.stderr) == ([], False)
