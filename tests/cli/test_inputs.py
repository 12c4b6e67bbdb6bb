"""Input that the command line refuses before anything is made or paid."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.support.command import call, last_line, prompts_parquet

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
