"""What a run asks of endpoint and store before its first paid call, counted on the wire."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support.request_log import recording_gateway

from .conftest import LookAlike
from .proxy import Answer, Call, Fault

pytestmark = [pytest.mark.s3, pytest.mark.timeout(300)]


class Recorder(Fault):
    """Adds every request to a log, and changes nothing."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def before(self, call: Call) -> Answer | None:
        """Add the request to the log."""
        self.log.append(f"S3 {'LIST' if call.is_list else call.method} {call.query.get('prefix', '')}{call.key}")
        return None


MOST = {
    "a new store": {"GET /health": 1, "GET /v1/get-user-credits": 1, "to the store": 37},
    "a store with a ledger": {"GET /health": 1, "GET /v1/get-user-credits": 1, "to the store": 32},
}
"""The requests of a run of two rows; one and three of them compare its id column with that of the store's last runs.
Without those, opening everything twice took 43 and 35 to the store, and two for the credits."""


@pytest.mark.parametrize("case", MOST)
def test_requests_before_the_first_call(look_alike: Callable[..., LookAlike], tmp_path: Path, case: str) -> None:
    """Before it pays, a run asks its endpoint each question once, and its store no more than it has to."""
    log: list[str] = []
    place = look_alike(Recorder(log))
    path = str(tmp_path / "prompts.parquet")
    with recording_gateway(log) as gateway:
        backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
        store = StoreSettings(place.url, place.options)
        for prompts in [["a cup", "a jug"]] + [["a cup", "a tree"]] * (case == "a store with a ledger"):
            pq.write_table(pa.table({"prompt": prompts}), path)
            log.clear()
            result = prefect_imagegen.generate(path, store, backend=backend)
            assert (result.generated + result.reused, result.calls) == (2, result.generated)
    paid = next(number for number, line in enumerate(log) if line.startswith("POST"))
    # A slow machine gives a heart time for another beat.
    asked = Counter("to the store" if line.startswith("S3") else line for line in log[:paid] if "heartbeat" not in line)
    assert asked.keys() <= MOST[case].keys(), log[:paid]
    assert asked <= Counter(MOST[case]), (asked, log[:paid])
    ledger = Counter(line for line in log[:paid] if line.startswith("S3 GET") and "/ledger/" in line)
    assert max(ledger.values(), default=1) == 1, ledger
