"""The soak: thousands of rows against an API that misbehaves in every way it knows, judged by its own records."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.gateway.faults import load_faults
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.json"
"""A fifth of the calls go wrong, with all kinds of faults; two storms of 429; one call of a hundred hangs."""
REFUSED = 40
"""Rows that the API refuses for what they ask for."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("version", "rows"), [("v2", 2_000), ("v1", 600)])
def test_soak(version: str, rows: int, tmp_path: Path) -> None:
    """Every row ends right, whatever the API does: its image, or the refusal it deserves; nothing is billed twice."""
    prompts = [f"{'forbidden ' if n % (rows // REFUSED) == 0 else ''}scene {n}" for n in range(rows)]
    path, store = tmp_path / "prompts.parquet", tmp_path / "store"
    pq.write_table(pa.table({"prompt": prompts}), path)
    settings = GatewaySettings(
        engine="static", static_bytes=4_000, latency_s=0.1, faults=load_faults(str(CHAOS)), allow_loopback=True
    )

    def run(gateway: EmbeddedGateway) -> RunResult:
        return prefect_imagegen.generate(
            str(path),
            str(store),
            backend=ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"), max_in_flight=64),
            api_version=version,
            history_lag=5.0,
            deadline=30.0,
            max_attempts=10,
            values={"image_format": "jpeg"},
        )

    with EmbeddedGateway(settings) as gateway:
        # What is left after the last straggler limit is the next run's: it fetches, and pays for nothing. So is a row
        # that met three answers of 500 in a row, which is as many as one run takes.
        last = run(gateway)
        for _ in range(3):
            if not last.held and last.failed == REFUSED:
                break
            last = run(gateway)
        assert last.failures == {"content_policy": REFUSED}
        assert last.generated + last.reused == rows - REFUSED
        assert gateway.account_state.statistics()["billed_twice"] == 0
        delivered = Counter(record.status for record in gateway.account_state.billed)
        assert delivered == {"COMPLETED": rows - REFUSED}
        metadata = pq.read_table(store / "runs" / str(last.run_id) / "metadata")
        assert metadata.num_rows == rows
        status = Counter(zip(metadata["status"].to_pylist(), metadata["error_kind"].to_pylist(), strict=True))
        assert sum(n for (state, _), n in status.items() if state in ("generated", "reused")) == rows - REFUSED
        assert status["failed", "content_policy"] == REFUSED
