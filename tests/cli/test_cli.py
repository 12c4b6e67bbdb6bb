"""The command line as a user meets it: a process of its own, its output, its exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.support import warm_python
from tests.support.command import MODULE, call, last_line, prompts_parquet, users_environment


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
@pytest.mark.usefixtures("prefect_home")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ctrl_c", [True, False])
@pytest.mark.parametrize("prefect", ["on", "off"])
def test_a_signal_stops_and_the_same_command_resumes(ctrl_c: bool, prefect: str, tmp_path: Path) -> None:
    """SIGTERM, or Ctrl-C to the process group, exits 3 with sent rows held; the same command does the rest."""
    path = prompts_parquet(tmp_path, prompt=[f"p{number}" for number in range(40)])
    with EmbeddedGateway(GatewaySettings(latency_s=1.0)) as gateway:
        words = ["generate", path, "--store", "out", "--base-url", gateway.url, "--json", "--max-in-flight", "8"]
        words += ["--prefect", prefect]
        process = warm_python.start(
            *("-m", MODULE, *words),
            cwd=tmp_path,
            env=users_environment(tmp_path, SEGMIND_API_KEY="k"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while gateway.account_state.calls["submit"] < 12:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        if ctrl_c:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 3, stderr
        figures = json.loads(stdout.splitlines()[-1])
        assert figures["stop_reason"] == "signal"
        assert figures["held"] > 0
        assert figures["not_run"] > 0
        resumed = call(*words, folder=tmp_path, SEGMIND_API_KEY="k")
        assert resumed.returncode == 0, resumed.stderr
        assert gateway.account_state.statistics()["billed_twice"] == 0
        assert len(gateway.account_state.billed) == 40


REFUSED = {
    "missing manifest": (("nothing.parquet",), "nothing.parquet does not exist"),
    "not parquet": (("text.parquet",), "text.parquet cannot be read as parquet"),
    "truncated": (("truncated.parquet",), "truncated.parquet cannot be read as parquet"),
    "empty": (("empty.parquet",), "empty.parquet has no rows"),
    "no prompt column": (("other.parquet",), "--column prompt=text"),
    "missing column": (("good.parquet", "--column", "prompt=Promt"), "Did you mean 'prompt'"),
    "unknown field": (("good.parquet", "--set", "step=4"), "Did you mean 'steps'"),
    "bad value": (("good.parquet", "--set", "steps=many"), "steps"),
    "null prompt": (("null.parquet",), "row 1, column prompt: the prompt is missing"),
    "wrong type": (("numbers.parquet",), "row 0, column prompt: the prompt must be text"),
    "huge prompt": (("huge.parquet",), "more than 64000"),
    "duplicate ids": (("ids.parquet", "--id-column", "sku"), "row 1, column sku: the id is that of row 0"),
    "unknown backend": (("good.parquet", "--backend", "dalle"), "'dalle'"),
    "bad option": (("good.parquet", "--max-in-flight", "0"), "--max-in-flight"),
    "secret in clear": (("good.parquet", "--storage-option", "secret=abc"), "secret=env:NAME"),
    "secret within": (
        ("good.parquet", "--storage-option", 'client_kwargs={"config": {"aws_secret_access_key": "abc"}}'),
        "client_kwargs.config.aws_secret_access_key looks like a secret",
    ),
    "secret address": (
        ("good.parquet", "--storage-option", "endpoint_url=http://user:hunter2@host"),
        "endpoint_url looks like a secret",
    ),
    "unset variable within": (
        ("good.parquet", "--storage-option", 'client_kwargs={"secret": "env:NOT_SET_ANYWHERE"}'),
        "NOT_SET_ANYWHERE is not set",
    ),
    "unset variable": (("good.parquet", "--storage-option", "key=env:NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE is not set"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")

    def write(name: str, **columns: list[object]) -> None:
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")

    write("good", prompt=["a"])
    write("null", prompt=["a", None])
    write("numbers", prompt=[1, 2])
    write("huge", prompt=["x" * 100_000])
    write("other", text=["a"])
    write("ids", prompt=["a", "b"], sku=["s", "s"])
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), folder / "empty.parquet")
    (folder / "text.parquet").write_text("no parquet at all")
    (folder / "truncated.parquet").write_bytes((folder / "good.parquet").read_bytes()[:-20])
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case: str, inputs: Path, tmp_path: Path) -> None:
    """Bad input exits 2 before any call, names culprit and remedy, and leaves no store behind."""
    (name, *words), said = REFUSED[case]
    backend = () if "--backend" in words else ("--backend", "sandbox")
    process = call("generate", inputs / name, "--store", "out", "--json", *backend, *words, folder=tmp_path)
    assert process.returncode == 2, process.stderr
    assert said in " ".join(process.stderr.split())
    figures = last_line(process)
    assert (figures["run_id"], figures["calls"]) == (None, 0)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "prefect-home").exists(), "a refusal must not start Prefect"


def test_endpoint_and_key_are_checked_first(inputs: Path, tmp_path: Path) -> None:
    """No key, a wrong key, no credits and an unreachable endpoint are refused before any call."""
    good = inputs / "good.parquet"

    def refused(*words: str, **environment: str) -> str:
        process = call("generate", good, "--store", "out", "--json", *words, folder=tmp_path, **environment)
        assert process.returncode == 2, process.stderr
        last_line(process)
        return " ".join(process.stderr.split())

    assert "SEGMIND_API_KEY" in refused()
    assert "127.0.0.1:9" in refused("--base-url", "http://127.0.0.1:9", SEGMIND_API_KEY="k")
    assert "no http(s) URL" in refused("--base-url", "ftp://x", SEGMIND_API_KEY="k")
    settings = GatewaySettings(api_key=SecretStr("right"), credits=0.0)
    with EmbeddedGateway(settings) as gateway:
        assert "rejects the API key" in refused("--base-url", gateway.url, SEGMIND_API_KEY="wrong")
        assert "balance" in refused("--base-url", gateway.url, SEGMIND_API_KEY="right")
        assert gateway.account_state.calls["submit"] == 0
    assert not (tmp_path / "out").exists()


def test_stores_are_checked_first(inputs: Path, tmp_path: Path, s3) -> None:
    """A store of the other kind, of a newer format, missing, closed or out of reach is refused."""
    good = inputs / "good.parquet"
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "store.json").write_text('{"format": 99, "kind": "sandbox"}')
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "store.json").write_text('{"format": 1, "kind": "real"}')
    secrets = {"S3_KEY": "reader", "S3_SECRET": "reader-secret"}
    options = ("--storage-option", "key=env:S3_KEY", "--storage-option", "secret=env:S3_SECRET")
    here = ("--storage-option", f"endpoint_url={s3.endpoint}")
    away = ("--storage-option", "endpoint_url=http://127.0.0.1:9")
    cases = {
        ("newer",): "pip install -U prefect-imagegen",
        ("real",): "is a real store, and this is a sandbox run",
        (s3.url(), *options, *here): "cannot be written",
        ("s3://no-such-bucket/a", *options, *here): "does not exist",
        (s3.url(), *options, *away): "Could not connect",
        ("nonsense://x",): "nonsense://x",
    }
    for (store, *words), said in cases.items():
        command = ("generate", good, "--backend", "sandbox", "--json", "--store", store, *words)
        process = call(*command, folder=tmp_path, **secrets)
        assert process.returncode == 2, (store, process.stderr)
        assert said in " ".join(process.stderr.split()), store
        assert "reader-secret" not in process.stderr
        last_line(process)


def test_a_store_without_create_only_puts_is_refused(tmp_path: Path, blind_s3) -> None:
    """A service that overwrites what was to be created once is refused by name, with the remedy, before any call."""
    with EmbeddedGateway(GatewaySettings()) as gateway:
        store = ("--store", "s3://images/a", "--storage-option", f"endpoint_url={blind_s3.url}")
        secrets = ("--storage-option", "key=env:S3", "--storage-option", "secret=env:S3")
        command = ("generate", prompts_parquet(tmp_path), "--base-url", gateway.url, "--json", *store, *secrets)
        process = call(*command, folder=tmp_path, S3="x", SEGMIND_API_KEY="k")
        assert process.returncode == 2, process.stderr
        said = " ".join(process.stderr.split())
        assert "s3://images/a overwrites objects that were to be created only once" in said
        assert "conditional puts" in said
        assert last_line(process)["calls"] == 0
        assert gateway.account_state.calls["submit"] == 0
        assert set(blind_s3.objects) == {"a/store.json"}


def test_plan_writes_nothing_and_needs_no_key(inputs: Path, tmp_path: Path) -> None:
    """`plan` counts what is to do, without key, store or Prefect; invalid rows make it exit 2."""
    process = call("plan", prompts_parquet(tmp_path), "--store", "out", "--json", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    figures = last_line(process)
    assert (figures["rows"], figures["not_run"], figures["run_id"]) == (3, 3, None)
    assert "2 images: 0.04 to 0.16 USD" in process.stderr
    assert call("plan", inputs / "null.parquet", "--store", "out", folder=tmp_path).returncode == 2
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "prefect-home").exists()


def test_usage_errors_end_with_json_too(tmp_path: Path) -> None:
    """A command line that cannot be parsed exits 2, with its line of JSON if that was asked for."""
    process = call("generate", "--json", folder=tmp_path)
    assert process.returncode == 2
    assert last_line(process)["rows"] == 0
    assert "MANIFEST" in process.stderr


def test_an_open_gateway_is_refused(tmp_path: Path) -> None:
    """`serve` on any address but loopback needs a key."""
    process = call("serve", "--host", "0.0.0.0", folder=tmp_path)
    assert process.returncode == 2
    assert "PREFECT_IMAGEGEN_API_KEY" in process.stderr
    script = tmp_path / "faults.json"
    script.write_text('{"faults": [{"fault": "earthquake"}]}')
    process = call("serve", "--faults", script, folder=tmp_path)
    assert process.returncode == 2
    assert "faults.json" in process.stderr


def test_accounts_of_a_gateway_that_cannot_be(tmp_path: Path) -> None:
    """`serve --account` takes keys from variables only, and never shows what was given in place of one."""
    for text, said in (
        ("alice=hunter2", "NAME=env:VARIABLE"),
        ("hunter2", "NAME=env:VARIABLE"),
        ("=env:ALICE_KEY", "NAME=env:VARIABLE"),
        ("alice=env:MISSING_KEY", "MISSING_KEY is not set"),
        ("bob=env:ALICE_KEY", "the same key"),
    ):
        words = ("serve", "--port", "0", "--account", "alice=env:ALICE_KEY", "--account", text)
        process = call(*words, folder=tmp_path, ALICE_KEY="a-secret")
        assert process.returncode == 2
        assert said in process.stderr
        assert "hunter2" not in process.stderr
        assert "a-secret" not in process.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_well(number: signal.Signals, tmp_path: Path) -> None:
    """`serve --port 0` names its address, answers there, and ends on either signal with exit code 0 and no litter."""
    litter = tmp_path / "temporary"
    litter.mkdir()
    command = [sys.executable, "-m", "prefect_imagegen.cli.main", "serve", "--port", "0"]
    command += ["--account", "alice=env:ONE", "--account", "bob=env:TWO", "--account", "alice=env:THREE"]
    environment = os.environ | {"TMPDIR": str(litter), "COLUMNS": "200", "ONE": "1", "TWO": "2", "THREE": "3"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stderr
        first = server.stderr.readline()
        url = first.split("http://")[1].split(",")[0]
        assert server.stderr.readline().strip() == "accounts: alice, bob"
        assert httpx.get(f"http://{url}/health").status_code == 200
        credits_left = f"http://{url}/v1/get-user-credits"
        answers = [httpx.get(credits_left, headers={"x-api-key": key}).status_code for key in "1234"]
        assert answers == [200, 200, 200, 401]
        server.send_signal(number)
        rest = server.communicate(timeout=30)[1]
    finally:
        server.kill()
        server.wait()
    assert server.returncode == 0, rest
    assert "Traceback" not in rest
    assert list(litter.iterdir()) == []


def test_status_of_nothing(tmp_path: Path) -> None:
    """`status` of a folder that is no store says so."""
    process = call("status", "--store", "nothing", folder=tmp_path)
    assert process.returncode == 2
    assert "no image store" in process.stderr


def test_an_internal_error_exits_4(tmp_path: Path) -> None:
    """What nobody expects, such as a Prefect that does not start, exits 4, in words and in JSON."""
    words = (
        "generate",
        prompts_parquet(tmp_path),
        "--store",
        "out",
        "--backend",
        "sandbox",
        "--json",
        "--prefect",
        "on",
    )
    process = call(*words, folder=tmp_path, PREFECT_API_REQUEST_TIMEOUT="soon")
    assert process.returncode == 4, process.stderr
    assert "internal error" in process.stderr
    assert last_line(process)["calls"] == 0


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
    assert "replaced by what the workers can do: cfg in" in process.stdout
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


@pytest.mark.parametrize("text", ["[/]", "[/red]", "[link=https://example.com]see[/link]", "\\[bold]"])
def test_texts_of_others_are_no_markup(text: str, tmp_path: Path) -> None:
    """Brackets in cells and in names are shown as they stand; a refusal or a result never fails because of them."""
    broken = prompts_parquet(tmp_path, prompt=["a cup"], seed=[text])
    refused = call("generate", broken, "--store", "out", "--backend", "sandbox", "--json", folder=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert repr(text) in refused.stderr
    store = text.replace("/", "").replace(":", "").replace("\\", "") + "[a]"
    whole = prompts_parquet(tmp_path, prompt=[text])
    made = call("generate", whole, "--store", store, "--backend", "sandbox", "--json", folder=tmp_path)
    assert (made.returncode, last_line(made)["generated"]) == (0, 1), made.stderr
    assert f"{store}/runs/" in made.stderr
