"""Runs against a gateway that has forgotten their calls: held, and never bought again."""

from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from prefect_imagegen import generate
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.manifests import numbered

MODEL = "flux-2-klein-9b"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(fault="status", on=["status", "result", "history"], status=503), "submitted"),
        (Fault(fault="disconnect", on=["submit"], when="after"), "unknown"),
    ],
)
def test_a_call_that_was_forgotten_is_held(fault: Fault, kind: str, tmp_path: Path) -> None:
    """A call whose result, or whose id, never came, and that the gateway keeps no more, is held by the next run."""
    path, store = numbered(tmp_path, 3), str(tmp_path / "store")
    settings = GatewaySettings(keep_records=3, faults=FaultScript(faults=[fault]))
    with EmbeddedGateway(settings) as gateway:
        backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
        first = generate(path, store, backend=backend, deadline=2.0)
        assert first.generated == 0
        assert gateway.account_state.statistics()["requests"] == 3
        gateway.account_state.settings.faults = FaultScript()
        with httpx.Client(base_url=gateway.url, headers={"x-api-key": "k"}, timeout=60) as client:
            for number in range(5):
                assert client.post(f"/v1/{MODEL}", json={"prompt": f"other {number}"}).status_code == 200
        again = generate(path, store, backend=backend, history_lag=0.0, deadline=20.0)
        assert (again.held, again.calls, again.maybe_paid) == (3, 0, 0)
        assert set(again.failures) == {kind}
        assert gateway.account_state.statistics()["requests"] == 8
