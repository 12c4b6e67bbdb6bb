"""Resend: rows that are held or failed are given free."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from prefect_imagegen.app.maintenance.resend import resend
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.ledger.events import Claim
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.store.heartbeat import Heartbeat, Process
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.object_store import open_object_store
from tests.app.maintenance.conftest import PRICE, ROWS, Place


def test_held_rows_are_given_free(tmp_path: Path) -> None:
    """`retry` names what may be paid again; the next run asks for the held rows anew, and for no others."""
    script = FaultScript(faults=[Fault(fault="disconnect", when="after", times=2)])
    with EmbeddedGateway(GatewaySettings(price_usd=PRICE, faults=script)) as gateway:
        place = Place(tmp_path, gateway)
        first = place.generate(on_unknown="hold")
        assert (first.generated, first.held) == (ROWS - 2, 2)
        assert [(difference.kind, difference.usd) for difference in place.reconcile().differences] == [
            ("not_fetched", PRICE)
        ] * 2
        again = place.generate(on_unknown="hold")
        assert (again.held, again.calls) == (2, 0)
        freed = asyncio.run(resend(place.store, str(again.run_id)))
        assert (freed.rows, dict(freed.kinds)) == (2, {"unknown": 2})
        assert freed.risk_usd > 0
        third = place.generate(on_unknown="hold")
        assert (third.generated, third.reused, third.calls) == (2, ROWS - 2, 2)
        assert gateway.account_state.statistics()["billed_twice"] == 2
        kinds_now = [difference.kind for difference in place.reconcile().differences]
        assert kinds_now == ["paid_twice"] * 2


@pytest.mark.parametrize("alive", [False, True])
def test_a_newer_call_is_left_alone(alive: bool, tmp_path: Path) -> None:
    """`retry` of an old run leaves rows alone that a later run has sent, or works on: they are paid for."""
    script = FaultScript(faults=[Fault(fault="status", status=500, times=3)])
    with EmbeddedGateway(GatewaySettings(price_usd=PRICE, faults=script)) as gateway:
        place = Place(tmp_path, gateway)
        first = place.generate(1)
        assert first.failures == {"server_error": 1}
        (folder,) = {path.parent for path in (tmp_path / "store" / "ledger" / "claims").rglob("*.json")}
        body = json.loads((folder / "3.json").read_text())["body"]
        sent = httpx.post(f"{gateway.url}/v2/flux-2-klein-9b", json=body, headers={"x-api-key": "k"}).json()
        claim = Claim("later", "n", f"{folder.name}-4", datetime.now(UTC), body)
        key = bytes.fromhex(folder.name)

        async def write() -> None:
            store = open_object_store(place.store.url)
            clock = SystemClock()
            ledger = StoreLedger(store, LedgerView.empty(), run_id="later", nonce="n", clock=clock)
            await ledger.claim(key, 4, claim)
            await ledger.record_request_id(key, 4, sent["request_id"])
            beat = Heartbeat(store, "later", Process.this("n"), clock)
            await beat.beat(ended=not alive)
            store.close()

        asyncio.run(write())
        freed = asyncio.run(resend(place.store, str(first.run_id)))
        assert (freed.rows, freed.still_alive, freed.on_their_way) == (0, int(alive), int(not alive))
        if not alive:
            again = place.generate(1)
            assert (again.generated, again.calls, len(gateway.account_state.billed)) == (1, 0, 1)


def test_retry_by_kind(tmp_path: Path) -> None:
    """Only rows of the kinds named are given free; a kind that does not exist and an unknown run are refused."""
    script = FaultScript(faults=[Fault(fault="disconnect", when="after", times=1)])
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        place = Place(tmp_path, gateway)
        run_id = str(place.generate(on_unknown="hold").run_id)
        assert asyncio.run(resend(place.store, run_id, ["content_policy"])).rows == 0
        with pytest.raises(RefusedError, match="--kind nonsense"):
            asyncio.run(resend(place.store, run_id, ["nonsense"]))
        for wrong in ("unknwon", "Unknown"):
            with pytest.raises(RefusedError, match="there is no such kind") as refusal:
                asyncio.run(resend(place.store, run_id, [wrong]))
            assert refusal.value.remedy == "Did you mean 'unknown'?"
        with pytest.raises(RefusedError, match="no finished run 'other'"):
            asyncio.run(resend(place.store, "other"))
        assert asyncio.run(resend(place.store, run_id, ["unknown"])).rows == 1
