"""What a sandbox run says of money: that there is none to pay."""

from pathlib import Path

import pytest

import prefect_imagegen
from prefect_imagegen.app.running.report import money_text
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.cli.output import forecast_text
from prefect_imagegen.core.policy.forecast import Forecast
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.app.running.runs.conftest import generate
from tests.support.manifests import numbered


def test_the_estimate_of_a_sandbox_names_no_price(tmp_path: Path) -> None:
    """The estimate of a sandbox run names neither Segmind nor dollars; that of a real run does."""
    path, store = numbered(tmp_path, 2), tmp_path / "store"
    expected = prefect_imagegen.plan(path, store, backend="sandbox").forecast
    assert forecast_text(expected) == "2 images in the sandbox: placeholders, nothing to pay"
    assert "USD" in forecast_text(prefect_imagegen.plan(path, store, backend="segmind").forecast)
    assert "USD" in forecast_text(Forecast(2))


@pytest.mark.parametrize("price", [None, 0.25])
def test_the_report_of_a_sandbox_names_play_money(price: float | None, tmp_path: Path) -> None:
    """Every figure in dollars of a run at a sandbox gateway is said to be play money, on screen and in the report."""
    with EmbeddedGateway(GatewaySettings(price_usd=price)) as gateway:
        result = generate(gateway, numbered(tmp_path, 1), tmp_path / "store")
    assert money_text(result).endswith("USD (play money: a sandbox costs nothing)")
    assert "play money" in (tmp_path / "store" / "runs" / str(result.run_id) / "report.md").read_text()
    assert "play money" not in money_text(RunResult("run-1", "store", generated=1, paid=1, cost_usd=0.25))
