"""A provider whose answers name no costs: `doctor`, and the plan of a run with a cap, say what the cap is held by."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.doctor import Check, examine
from prefect_imagegen.core.policy.abilities import COSTS_UNNAMED
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.gateway_runs import api
from tests.support.queue_provider.added import NAME, block, install

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderSettings]:
    """The settings of a paid provider that declares no `cost_in_answer`."""
    install(tmp_path / "site", NAME, "queue_images:ENTRY", queue_images=block("python"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    sys.modules.pop("queue_images", None)
    yield ProviderSettings(NAME, base_url=NOBODY, api_key=SecretStr("k1"))
    sys.modules.pop("queue_images", None)


def warnings(folder: Path, backend: ProviderSettings, cap: float | None) -> list[str]:
    """The warnings of the plan of one row about costs."""
    pq.write_table(pa.table({"prompt": ["a chair"]}), folder / "prompts.parquet")
    summary = prefect_imagegen.plan(
        str(folder / "prompts.parquet"), str(folder / "store"), backend=backend, max_cost_usd=cap
    )
    return [text for text in summary.warnings if COSTS_UNNAMED in text]


def checks(folder: Path, backend: ProviderSettings) -> dict[str, Check]:
    async def all_checks() -> list[Check]:
        return [check async for check in examine(StoreSettings(str(folder / "store")), backend, RunOptions())]

    return {check.name: check for check in asyncio.run(all_checks())}


def test_a_plan_with_a_cap_says_it(silent: ProviderSettings, tmp_path: Path) -> None:
    """The plan of a run with a cap warns once; without a cap there is nothing to hold."""
    assert warnings(tmp_path, silent, 1.0) == [
        f"{COSTS_UNNAMED}: compare what the run reports with the provider's bill"
    ]
    assert warnings(tmp_path, silent, None) == []


def test_doctor_says_it(silent: ProviderSettings, tmp_path: Path) -> None:
    """`doctor` has a line `costs`, which hinders no run and names the remedy."""
    costs = checks(tmp_path, silent)["costs"]
    assert (costs.state, costs.text) == ("warn", COSTS_UNNAMED)
    assert "bill" in costs.remedy


def test_nothing_is_said_where_answers_name_costs(tmp_path: Path) -> None:
    """Of Segmind, whose answers name costs, neither says anything."""
    with api() as gateway:
        backend = ProviderSettings("segmind", base_url=gateway.url, api_key=SecretStr("k1"))
        assert warnings(tmp_path, backend, 1.0) == []
        assert "costs" not in checks(tmp_path, backend)
