"""The column `queue_s`: what the API tells of its queue, null where it tells nothing or nonsense."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.gateway.faults import Fault
from prefect_imagegen.gateway.routes import generation
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.manifests import manifest_of

ODD: list[Any] = [-1, "NaN", "soon", True, [0.3], {"s": 1}, 1e300, 10**400, None]
"""Values that are no time in a queue. JSON has no infinity, but 1e300 and a number of 401 digits."""


def rows(folder: Path, gateway: EmbeddedGateway, path: str, **options: Any) -> list[dict[str, Any]]:
    """The metadata of one run over a manifest."""
    settings = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
    result = prefect_imagegen.generate(path, str(folder / "store"), backend=settings, **options)
    return pq.read_table(folder / "store" / "runs" / str(result.run_id) / "metadata").to_pylist()


def test_time_in_the_queue_is_told_by_v2_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """v2 tells the time in the queue, also to later runs that reuse the image; v1 does not, and the column is null."""
    json_answer = generation.json_answer

    def with_queue(content: dict[str, Any], fault: Fault | None, status: int = 200) -> Any:
        if content.get("metrics"):
            content["metrics"]["queue_time"] = 2.25
        return json_answer(content, fault, status)

    monkeypatch.setattr(generation, "json_answer", with_queue)
    path = manifest_of(tmp_path, prompt=["a", "b", "a", None])
    with EmbeddedGateway(GatewaySettings()) as gateway:
        first = rows(tmp_path, gateway, path, api_version="v2", on_invalid="skip")
        assert [(row["status"], row["queue_s"]) for row in first] == [
            ("generated", 2.25),
            ("generated", 2.25),
            ("reused", 2.25),
            ("invalid", None),
        ]
        assert [row["cost_usd"] for row in first][2:] == [0.0, 0.0]
        again = rows(tmp_path, gateway, path, api_version="v2", on_invalid="skip")
        assert [(row["status"], row["queue_s"], row["cost_usd"]) for row in again][:3] == [("reused", 2.25, 0.0)] * 3
        other = rows(tmp_path, gateway, manifest_of(tmp_path, prompt=["c"]), api_version="v1")
        assert [(row["status"], row["queue_s"]) for row in other] == [("generated", None)]


def test_a_nonsense_time_loses_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every paid image is stored once, whatever stands where the time in the queue should be; the column is null."""
    odd, json_answer = dict(enumerate(ODD)), generation.json_answer
    told: dict[str, Any] = {}

    def with_nonsense(content: dict[str, Any], fault: Fault | None, status: int = 200) -> Any:
        if content.get("metrics"):
            value = told.setdefault(content["request_id"], odd[len(told) % len(odd)])
            content["metrics"]["queue_time"] = value
        return json_answer(content, fault, status)

    monkeypatch.setattr(generation, "json_answer", with_nonsense)
    path = manifest_of(tmp_path, prompt=[f"row {n}" for n in odd])
    with EmbeddedGateway(GatewaySettings(price_usd=0.04)) as gateway:
        made = rows(tmp_path, gateway, path)
        assert [(row["status"], row["queue_s"], row["cost_usd"]) for row in made] == [("generated", None, 0.04)] * len(
            ODD
        )
        assert len(gateway.account_state.billed) == len(ODD)
    assert len(told) == len(ODD)
