"""The commands that look after a store, as a user meets them."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.contract.checks import CHECKS
from tests.support import warm_python
from tests.support.command import MODULE

COMMANDS = ("verify", "doctor", "reconcile", "retry")


class User:
    """Somebody with a terminal in a folder, and an account."""

    def __init__(self, folder: Path, gateway: EmbeddedGateway) -> None:
        self.folder = folder
        self.gateway = gateway
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment |= {"SEGMIND_API_KEY": "SG_00112233", "SEGMIND_BASE_URL": gateway.url, "COLUMNS": "120"}
        self.environment["PREFECT_HOME"] = str(folder / "prefect-home")

    def run(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        place = ("--store", "images")
        process = warm_python.run(
            "-m", MODULE, command, *place, *words, cwd=self.folder, env=self.environment, timeout=120
        )
        assert "Traceback" not in process.stderr + process.stdout, process.stderr
        assert "SG_00112233" not in process.stderr + process.stdout
        return process

    def make(self, **options: object) -> RunResult:
        path = self.folder / "prompts.parquet"
        pq.write_table(pa.table({"prompt": ["a cup", "a hat"]}), path)
        backend = ProviderSettings(base_url=self.gateway.url, api_key=SecretStr("SG_00112233"))
        return prefect_imagegen.generate(str(path), str(self.folder / "images"), backend=backend, **options)


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    """A user whose account loses the answer to the first call."""
    script = FaultScript(faults=[Fault(fault="disconnect", when="after", times=1)])
    with EmbeddedGateway(GatewaySettings(price_usd=0.01, faults=script)) as gateway:
        yield User(tmp_path, gateway)


def figures(process: subprocess.CompletedProcess[str]) -> dict[str, object]:
    answer: dict[str, object] = json.loads(process.stdout)
    return answer


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_all_of_stdout(command: str, user: User) -> None:
    """With --json stdout is one line of JSON, also where the command is refused; people read stderr."""
    words = ["some-run"] if command == "retry" else []
    if command != "doctor":
        refused = user.run(command, *words, "--json")
        assert (refused.returncode, figures(refused)) == (2, {"store": "images"})
        assert "images is no image store yet" in refused.stderr
    run_id = str(user.make(on_unknown="hold").run_id)
    process = user.run(command, *([run_id] if words else []), "--json")
    assert len(process.stdout.splitlines()) == 1
    assert figures(process)
    assert process.stderr


def test_verify_and_repair(user: User) -> None:
    """`verify` exits 0 on a sound store and 1 on a damaged one; `--repair` fetches the lost image again."""
    user.make(history_lag=0.0)
    sound = user.run("verify")
    assert (sound.returncode, sound.stdout) == (0, "2 images read\nthe store is sound\n")
    image = next(path for path in (user.folder / "images" / "images").rglob("*") if path.is_file())
    image.unlink()
    damaged = user.run("verify")
    assert damaged.returncode == 1
    assert f"images/{image.parent.name}/{image.name}: not in the store" in damaged.stdout
    assert "--repair" in damaged.stdout
    mended = user.run("verify", "--repair")
    assert mended.returncode == 0
    assert "fetched_again 1" in mended.stdout
    assert image.exists()
    assert len(user.gateway.account_state.billed) == 2


def test_retry_then_reconcile(user: User) -> None:
    """`retry` says what the decision may cost; `reconcile` then names what was paid twice, in dollars, and exits 1."""
    run_id = str(user.make(on_unknown="hold").run_id)
    freed = user.run("retry", run_id)
    assert freed.returncode == 0
    assert "1 rows are free" in freed.stdout
    assert "may be paid a second time" in freed.stdout
    assert user.make(on_unknown="hold").generated == 1
    process = user.run("reconcile")
    assert process.returncode == 1
    assert "the history has 3 calls for 0.0300 USD, the ledger 2 for 0.0200 USD" in process.stdout
    assert "paid_twice 1 calls, +0.0100 USD" in process.stdout
    assert user.run("reconcile", "--from", "2026-01-01", "--to", "2026-11-01").returncode == 2


def test_reconcile_agrees(user: User) -> None:
    """`reconcile` exits 0 where ledger and history agree."""
    user.make(history_lag=0.0)
    process = user.run("reconcile")
    assert (process.returncode, process.stdout.splitlines()[-1]) == (0, "they agree")


def test_doctor(user: User) -> None:
    """`doctor` exits 0 with a line for everything, and 1 with the remedy where something hinders a run."""
    well = user.run("doctor")
    assert well.returncode == 0, well.stdout
    lines = [line.split(maxsplit=2)[:2] for line in well.stdout.splitlines()]
    assert {state for state, _ in lines} <= {"ok", "warn"}
    assert {name for _, name in lines} >= {"store", "create-only", "clock", "key", "balance", "history", "prefect"}
    del user.environment["SEGMIND_API_KEY"]
    ill = user.run("doctor")
    assert ill.returncode == 1
    assert "fail key" in ill.stdout
    assert "Set SEGMIND_API_KEY" in ill.stdout
    user.environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    assert "fail prefect" in user.run("doctor", "--backend", "sandbox").stdout


def test_doctor_meets_something_else_than_prefect(user: User) -> None:
    """A PREFECT_API_URL at which some other server answers, or the UI, is told with the remedy."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        user.environment["PREFECT_API_URL"] = f"http://127.0.0.1:{server.server_address[1]}"
        process = user.run("doctor", "--backend", "sandbox")
        server.shutdown()
    assert process.returncode == 1
    assert "it ends in /api" in process.stdout


def test_doctor_deep(user: User) -> None:
    """`doctor --deep` has a line for all that a store has to hold, leaves nothing of it, and says the same in JSON."""
    well = user.run("doctor", "--deep", "--json")
    assert well.returncode == 0, well.stderr
    states = {check["name"]: check["state"] for check in figures(well)["checks"]}
    assert set(states) >= {check.name for check in CHECKS} | {"cleanup"}
    assert {name for name, state in states.items() if state == "unknown"} == {"content-type"}
    assert "ok racing-creators" in well.stderr
    assert [path for path in (user.folder / "images").rglob("*") if path.is_file()] == []
    assert [path.name for path in (user.folder / "images").rglob("*")] in ([], ["doctor"])
    plain = {check["name"] for check in figures(user.run("doctor", "--json"))["checks"]}
    assert "racing-creators" not in plain


def test_doctor_deep_on_a_store_that_overwrites(user: User, blind_s3) -> None:
    """A store without conditions exits 1 with what it means and what to do; nothing is left, and nothing was billed."""
    options = ["--storage-option", f"endpoint_url={blind_s3.url}"]
    user.environment |= {"AWS_SECRET_ACCESS_KEY": "any-value", "AWS_ACCESS_KEY_ID": "any", "HALF": "any"}
    half = user.run("doctor", "--deep", *options, "--storage-option", "key=env:HALF", "--store", "s3://images/prefix")
    assert "does not accept the credentials" in half.stdout
    process = user.run("doctor", "--deep", *options, "--store", "s3://images/prefix")
    assert process.returncode == 1
    assert "fail racing-creators" in process.stdout
    assert "no run may use this store" in process.stdout
    assert "docs/guides/stores.md" in process.stdout
    assert blind_s3.objects == {}
    assert user.gateway.account_state.billed == []


def test_doctor_deep_on_a_store_out_of_reach(user: User) -> None:
    """Where the store cannot be used at all, that is said once, and the rest is unknown."""
    (user.folder / "images").write_bytes(b"a file")
    process = user.run("doctor", "--deep")
    assert process.returncode == 1
    assert "fail store" in process.stdout
    assert "unknown contract" in process.stdout
