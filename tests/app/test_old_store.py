"""A store that version 0.1.0 left, in every state a row can be in: read as it is, and nothing in it is bought again."""

import base64
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.gateway.state.account import Record
from prefect_imagegen.providers.settings import ProviderSettings

DATA = Path(__file__).parents[1] / "data" / "store_0_1.tar.gz"
MADE_AT = 1_795_703_990.0
"""When the store was made: 26 November 2026, 14:39 UTC, by the API's clock."""
NEVER_SENT = {"failed_unavailable"}
"""Rows whose calls were refused: asked for again, and looked for before that."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[EmbeddedGateway]:
    """The API that knows the store's calls, each of its own account, a minute later."""
    with tarfile.open(DATA) as archive:
        archive.extractall(tmp_path, filter="data")
    settings = GatewaySettings(
        engine="static",
        static_format="jpeg",
        static_bytes=1500,
        price_usd=0.03,
        clock=lambda: MADE_AT + 60,
        accounts={"one": [SecretStr("key-one")], "two": [SecretStr("key-two")]},
    )
    with EmbeddedGateway(settings) as running:
        for call in json.loads((tmp_path / "calls.json").read_text()):
            data, key = call.pop("data"), call.pop("api_key")
            running.account_state.records[call["request_id"]] = Record(**call, account=key.removeprefix("key-"))
            if data:
                (running.account_state.folder / call["output"]).write_bytes(base64.b64decode(data))
        yield running


def run(gateway: EmbeddedGateway, folder: Path, key: str = "key-one") -> tuple[RunResult, dict[str, tuple[str, str]]]:
    """One run over all rows of the store; how each of them ended, by its name."""
    backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr(key))
    result = prefect_imagegen.generate(
        str(folder / "prompts.csv"), str(folder / "store"), backend=backend, history_lag=0.0, max_failure_rate=1.0
    )
    table = pq.read_table(folder / "store" / "runs" / str(result.run_id) / "metadata").to_pylist()
    return result, {row["name"]: (row["status"], row["error_kind"] or "") for row in table}


def test_every_state_of_an_old_store(gateway: EmbeddedGateway, tmp_path: Path) -> None:
    """What was paid is fetched or found, what failed for good stays so, and what cannot be told is held, by name."""
    before = len(gateway.account_state.billed)
    result, rows = run(gateway, tmp_path)
    assert {name: end for name, end in rows.items() if end[0] not in ("generated", "reused")} == {
        "failed_generation": ("failed", "generation_failed"),
        "failed_policy": ("failed", "content_policy"),
        "failed_invalid": ("failed", "invalid_request"),
        "claim_with_id_failed": ("failed", "generation_failed"),
        "lost_closing_failed": ("failed", "generation_failed"),
        # Its run has no other call, so nobody can tell whose it was; and the history does not show it.
        "claim_not_sent": ("held", "other_account"),
        # Sent with a key whose calls this one cannot look up.
        "other_key_unknown": ("held", "other_account"),
    }
    for name in ("held_unknown", "claim_sent", "resend_asked", "held_submitted", "claim_with_id"):
        assert rows[name][0] == "generated", name
    assert gateway.account_state.statistics()["billed_twice"] == 0
    assert len(gateway.account_state.billed) == before + len(NEVER_SENT)
    assert (result.calls, result.maybe_paid) == (1, 1)


def test_an_old_store_read_with_the_other_key(gateway: EmbeddedGateway, tmp_path: Path) -> None:
    """With the other account's key its own rows are settled, and nothing of the first account is bought again."""
    before = len(gateway.account_state.billed)
    result, rows = run(gateway, tmp_path, "key-two")
    assert rows["other_key_unknown"] == ("generated", "")
    held = {name for name, end in rows.items() if end == ("held", "other_account")}
    assert held == {
        *("held_unknown", "held_submitted", "claim_not_sent", "claim_sent", "claim_with_id", "claim_with_id_failed"),
        # The first account's key got 5xx: whether it was accepted is for that key to find out.
        *("second_claim_with_id", "failed_unavailable"),
    }
    assert gateway.account_state.statistics()["billed_twice"] <= result.maybe_paid
    assert len(gateway.account_state.billed) == before + result.calls
    assert {name for name, end in rows.items() if end[0] == "failed"} == {
        *("failed_generation", "failed_policy", "failed_invalid", "lost_closing_failed")
    }
    # Nothing is lost: with the first key all of it is fetched.
    later, rows = run(gateway, tmp_path)
    assert {name for name, end in rows.items() if end[0] == "held"} == {"claim_not_sent"}
    assert later.calls == len(NEVER_SENT)
