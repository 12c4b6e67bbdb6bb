"""A run of a manifest through a gateway on a socket, and its metadata."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.providers.settings import ProviderSettings

STATES = ("generated", "reused", "invalid", "failed", "held", "not_run")
VERSIONS = pytest.mark.parametrize("version", ["v1", "v2"])


def prompts(count: int) -> list[str]:
    return [f"prompt number {number}" for number in range(count)]


def generate(gateway: EmbeddedGateway, path: str, store: Any, key: str = "k", **options: Any) -> RunResult:
    settings = ProviderSettings(base_url=gateway.url, api_key=SecretStr(key))
    result = prefect_imagegen.generate(path, store, backend=settings, **options)
    assert sum(getattr(result, state) for state in STATES) == result.rows
    return result


def metadata(store: Path, result: RunResult) -> pa.Table:
    return pq.read_table(store / "runs" / str(result.run_id) / "metadata")


def rules(*faults: dict[str, Any]) -> FaultScript:
    return FaultScript(faults=[Fault(**fault) for fault in faults])
