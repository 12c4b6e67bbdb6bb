"""Stopping in good order: what is under way when SIGTERM comes is waited for (v1), or left to be fetched (v2)."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support import warm_python
from tests.support.manifests import numbered

ROWS, IN_FLIGHT = 12, 3
CHILD = """
import json, sys
import prefect_imagegen
from prefect_imagegen.providers.settings import ProviderSettings
from pydantic import SecretStr

manifest, store, base_url, version, drain = sys.argv[1:]
result = prefect_imagegen.generate(
    manifest, store, api_version=version, max_in_flight=3, drain_seconds=float(drain),
    backend=ProviderSettings(base_url=base_url, api_key=SecretStr("k")),
)
print(json.dumps(result.as_dict()))
"""


@pytest.mark.parametrize(("version", "drain", "delivered"), [("v1", 20.0, IN_FLIGHT), ("v1", 0.0, 0), ("v2", 20.0, 0)])
def test_what_is_under_way(version: str, drain: float, delivered: int, tmp_path: Path) -> None:
    """v1 calls under way are awaited for --drain-seconds, then held; v2 jobs are held at once. Nothing is lost."""
    path, store = numbered(tmp_path, ROWS), str(tmp_path / "store")
    with EmbeddedGateway(GatewaySettings(latency_s=4.0)) as gateway:
        arguments = [path, store, gateway.url, version, str(drain)]
        child = warm_python.start("-c", CHILD, *arguments, stdout=subprocess.PIPE)
        try:
            end = time.monotonic() + 60
            while len(gateway.account_state.records) < IN_FLIGHT:
                assert child.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            child.send_signal(signal.SIGTERM)
            stopped = json.loads(child.communicate(timeout=60)[0])
        finally:
            child.kill()
            child.wait()
        assert stopped["stop_reason"] == "signal"
        assert (stopped["generated"], stopped["held"]) == (delivered, IN_FLIGHT - delivered)
        assert stopped["not_run"] == ROWS - IN_FLIGHT
        assert len(gateway.account_state.records) == IN_FLIGHT
        backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
        again = prefect_imagegen.generate(path, store, backend=backend, api_version=version, history_lag=0.0)
        assert (again.generated + again.reused, again.maybe_paid) == (ROWS, 0)
        assert len(gateway.account_state.billed) == ROWS
        assert gateway.account_state.statistics()["billed_twice"] == 0
