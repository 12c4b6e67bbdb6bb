"""Serve, status and errors of the command line: exit codes and what is said."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.command import call, last_line, prompts_parquet


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
