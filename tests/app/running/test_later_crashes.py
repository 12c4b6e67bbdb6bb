"""kill -9 where more than one thing went wrong: in second attempts, after rows that failed, before another account.

The gateway's records are the judge, as in test_crashes.py.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.verify import verify
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support import warm_python
from tests.support.gateway_runs import api, scenes

ROWS = 6
VERSIONS = pytest.mark.parametrize("version", ["v1", "v2"])
CHILD = """
import sys
import prefect_imagegen
from prefect_imagegen.providers.settings import ProviderSettings
from pydantic import SecretStr

manifest, store, base_url, version, in_flight = sys.argv[1:]
prefect_imagegen.generate(
    manifest, store, api_version=version, max_in_flight=int(in_flight), history_lag=0.0, max_failure_rate=1.0,
    backend=ProviderSettings(base_url=base_url, api_key=SecretStr("k1")),
)
"""


def crash(point: str, gateway: EmbeddedGateway, folder: Path, version: str, in_flight: int = 3) -> None:
    """Run the child until it dies at the point; at `answer` once a call is billed whose answer is held back."""
    settings = os.environ | {"PYTHONWARNINGS": "ignore", "PREFECT_IMAGEGEN_CRASH_AT": point}
    arguments = [scenes(folder, ROWS), str(folder / "store"), gateway.url, version, str(in_flight)]
    child = warm_python.start("-c", CHILD, *arguments, env=settings)
    try:
        end = time.monotonic() + 60
        while point == "answer" and not any(
            call.fault and call.fault.fault == "hang" for call in gateway.account_state.billed
        ):
            assert time.monotonic() < end
            assert child.poll() is None
            time.sleep(0.01)
        if point == "answer":
            child.send_signal(signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


def again(gateway: EmbeddedGateway, folder: Path, version: str, key: str = "k1") -> RunResult:
    backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr(key))
    options: dict[str, Any] = {"api_version": version, "history_lag": 0.0, "max_failure_rate": 1.0}
    return prefect_imagegen.generate(scenes(folder, ROWS), str(folder / "store"), backend=backend, **options)


def assert_whole(gateway: EmbeddedGateway, folder: Path, images: int) -> None:
    """Every image was billed once, and is in store and ledger."""
    assert gateway.account_state.statistics()["billed_twice"] == 0
    assert len(gateway.account_state.billed) == images
    backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k1"))
    verified = asyncio.run(verify(StoreSettings(str(folder / "store")), backend, RunOptions()))
    assert (verified.images, verified.problems) == (images, [])


def claims(folder: Path, name: str) -> int:
    return len(list((folder / "store" / "ledger" / "claims").rglob(name)))


@VERSIONS
@pytest.mark.parametrize("point", ["claim:8", "answer", "request_id:2", "image:2", "segment"])
def test_killed_in_second_attempts(point: str, version: str, tmp_path: Path) -> None:
    """Rows whose first call was answered 503 are sent once more, and paid once, wherever that attempt is killed."""
    refused = [{"fault": "status", "prompt_contains": f"number {n}.", "times": 1} for n in range(ROWS)]
    hang = [{"fault": "hang", "when": "after", "times": 1}] if point == "answer" else []
    with api(*refused, *hang, latency_s=0.02) as gateway:
        crash(point, gateway, tmp_path, version)
        assert claims(tmp_path, "2.json") >= 1
        result = again(gateway, tmp_path, version)
        assert (result.generated + result.reused, result.failures) == (ROWS, {})
        assert_whole(gateway, tmp_path, ROWS)
        settled = again(gateway, tmp_path, version)
        assert (settled.reused, settled.calls) == (ROWS, 0)


@pytest.mark.parametrize("point", ["claim:3", "image:3"])
@pytest.mark.parametrize(
    ("fault", "version", "kind"),
    [("status", "v1", "invalid_request"), ("status", "v2", "invalid_request"), ("failed", "v2", "generation_failed")],
)
def test_killed_after_a_row_that_failed_for_good(
    point: str, fault: str, version: str, kind: str, tmp_path: Path
) -> None:
    """A failure for good whose end the ledger did not learn is asked for once more at most, and then it is known."""
    script = {"fault": fault, "prompt_contains": "number 1."} | ({"status": 400} if fault == "status" else {})
    with api(script, latency_s=0.02) as gateway:
        crash(point, gateway, tmp_path, version, in_flight=1)
        assert not (tmp_path / "store" / "ledger" / "segments").exists(), "its end is to be lost"
        sent = len(gateway.account_state.billed)
        result = again(gateway, tmp_path, version)
        assert (result.generated + result.reused, result.failures) == (ROWS - 1, {kind: 1})
        # What was accepted and failed is not sent again; what was refused may have been sent for all that is known.
        assert result.calls == ROWS - 1 - sent + (fault == "status")
        for _ in range(2):
            later = again(gateway, tmp_path, version)
            assert (later.reused, later.failures, later.calls) == (ROWS - 1, {kind: 1}, 0)
        assert_whole(gateway, tmp_path, ROWS - 1)


@VERSIONS
@pytest.mark.parametrize("point", ["claim:2", "answer", "request_id:2", "image:2"])
def test_another_account_after_a_kill(point: str, version: str, tmp_path: Path) -> None:
    """What a killed run of one account claimed is not bought with another's key; with its own all is settled."""
    hang = [{"fault": "hang", "when": "after", "times": 1}] if point == "answer" else []
    accounts = {"one": [SecretStr("k1")], "two": [SecretStr("k2")]}
    with api(*hang, accounts=accounts, latency_s=0.02) as gateway:
        crash(point, gateway, tmp_path, version)
        claimed, billed = claims(tmp_path, "1.json"), len(gateway.account_state.billed)
        other = again(gateway, tmp_path, version, "k2")
        # It adopts images that lie there, makes what nobody has claimed, and leaves alone all that may be paid.
        assert other.calls == ROWS - claimed
        assert (other.generated + other.held, other.failures) == (ROWS, {"other_account": other.held})
        assert Counter(call.account for call in gateway.account_state.billed)["two"] == ROWS - claimed
        result = again(gateway, tmp_path, version)
        assert (result.generated + result.reused, result.maybe_paid, result.failures) == (ROWS, 0, {})
        assert result.calls <= claimed - billed
        assert_whole(gateway, tmp_path, ROWS)
