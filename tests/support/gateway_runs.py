"""Runs against our own gateway on a socket, judged by its records: the builders that several rooms' tests share."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings

PRICE = 0.01
"""What an image costs at `api`, in USD."""


def api(*faults: dict[str, Any], **settings: Any) -> EmbeddedGateway:
    """A gateway that misbehaves as the faults say; `settings` are those of GatewaySettings."""
    script = FaultScript(faults=[Fault(**fault) for fault in faults])
    return EmbeddedGateway(GatewaySettings(**{"price_usd": PRICE, "faults": script} | settings))


def mend(gateway: EmbeddedGateway) -> None:
    """From now on the API answers as it should."""
    gateway.account_state.settings.faults = FaultScript()


def scenes(folder: Path, rows: int) -> str:
    """A manifest of so many prompts."""
    path = folder / "prompts.parquet"
    pq.write_table(pa.table({"prompt": [f"scene number {n}." for n in range(rows)]}), path)
    return str(path)


def generate(gateway: EmbeddedGateway, folder: Path, rows: int, key: str = "k", **options: Any) -> RunResult:
    """The same command: it makes so many scenes into the same store."""
    backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr(key))
    options = {"history_lag": 0.0, "max_failure_rate": 1.0} | options
    return prefect_imagegen.generate(scenes(folder, rows), str(folder / "store"), backend=backend, **options)


def assert_paid_once(gateway: EmbeddedGateway, rows: int) -> None:
    """Every row was accepted once, and billed once."""
    assert gateway.account_state.statistics()["billed_twice"] == 0
    assert (len(gateway.account_state.records), len(gateway.account_state.billed)) == (rows, rows)


def metadata(folder: Path, result: RunResult) -> list[dict[str, Any]]:
    """The rows of a run's metadata."""
    return pq.read_table(folder / "store" / "runs" / str(result.run_id) / "metadata").to_pylist()


def report_text(folder: Path, result: RunResult, name: str = "report.json") -> str:
    """A run's report, as JSON or as Markdown."""
    return (folder / "store" / "runs" / str(result.run_id) / name).read_text()


def report(folder: Path, result: RunResult) -> dict[str, Any]:
    """A run's report."""
    content: dict[str, Any] = json.loads(report_text(folder, result))
    return content
