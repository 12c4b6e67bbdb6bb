"""Other accounts, stores that hiccup, damaged files and signals: nothing is bought twice for them, and nothing is lost.

The gateway's records are the judge.
"""

import asyncio
import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.resend import resend
from prefect_imagegen.app.maintenance.status import accounts
from prefect_imagegen.app.maintenance.verify import verify
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.accounts import fingerprint_of
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store import heartbeat, patient_store
from prefect_imagegen.store.object_store import FsspecObjectStore
from tests.support import warm_python
from tests.support.gateway_runs import PRICE, api, assert_paid_once, generate, mend, metadata, scenes

VERSIONS = pytest.mark.parametrize("version", ["v1", "v2"])
LOST = {"fault": "disconnect", "when": "after"}
"""All work is done, and no answer comes."""


def keys(**named: list[str]) -> dict[str, list[SecretStr]]:
    return {name: [SecretStr(key) for key in own] for name, own in named.items()}


def left_unanswered(gateway: EmbeddedGateway, folder: Path, rows: int, version: str, key: str) -> None:
    """A run whose calls were all done, and none answered; then the API answers again."""
    result = generate(gateway, folder, rows, key, api_version=version, on_unknown="hold")
    assert (result.held, result.failures) == (rows, {"unknown": rows})
    while len(gateway.account_state.billed) < rows:
        time.sleep(0.01)
    mend(gateway)


@VERSIONS
def test_rows_of_another_account(version: str, tmp_path: Path) -> None:
    """Unanswered calls of one account are held for another's key, and nothing is bought; their own settles them."""
    with api(LOST, accounts=keys(one=["k1"], two=["k2"])) as gateway:
        left_unanswered(gateway, tmp_path, 4, version, "k1")
        other = generate(gateway, tmp_path, 5, "k2", api_version=version)
        assert (other.generated, other.held, other.failures, other.calls) == (1, 4, {"other_account": 4}, 1)
        assert generate(gateway, tmp_path, 5, "k2", api_version=version).calls == 0
        result = generate(gateway, tmp_path, 5, "k1", api_version=version)
        assert (result.generated, result.reused, result.calls) == (4, 1, 0)
        assert result.cost_usd == pytest.approx(4 * PRICE)
        assert_paid_once(gateway, 5)
        assert Counter(record.account for record in gateway.account_state.billed) == {"one": 4, "two": 1}


def test_jobs_of_another_account(tmp_path: Path) -> None:
    """Accepted jobs of one account that another key cannot see are held for it, and fetched with their own."""
    with api({"fault": "hang", "on": ["download"]}, accounts=keys(one=["k1"], two=["k2"])) as gateway:
        assert generate(gateway, tmp_path, 3, "k1", deadline=2.0).held == 3
        mend(gateway)
        other = generate(gateway, tmp_path, 3, "k2")
        assert (other.held, other.failures, other.calls) == (3, {"other_account": 3}, 0)
        assert generate(gateway, tmp_path, 3, "k1").generated == 3
        assert_paid_once(gateway, 3)


def test_jobs_of_another_account_can_be_given_free(tmp_path: Path) -> None:
    """What the other account's key cannot settle is given free by hand, with the risk in dollars."""
    with api({"fault": "hang", "on": ["download"]}, accounts=keys(one=["k1"], two=["k2"])) as gateway:
        assert generate(gateway, tmp_path, 3, "k1", deadline=2.0).held == 3
        mend(gateway)
        other = generate(gateway, tmp_path, 3, "k2")
        freed = asyncio.run(resend(StoreSettings(str(tmp_path / "store")), str(other.run_id)))
        assert (freed.rows, freed.on_their_way, dict(freed.kinds)) == (3, 0, {"other_account": 3})
        assert freed.risk_usd > 0
        assert generate(gateway, tmp_path, 3, "k2").generated == 3


@VERSIONS
def test_a_key_that_was_rotated(version: str, tmp_path: Path) -> None:
    """Another key of the same account settles what the old one left, without any option, and is known from then on."""
    with api(accounts=keys(one=["k1", "k2"], two=["k3"])) as gateway:
        # The account has calls that were answered: by their ids the new key proves whose it is.
        assert generate(gateway, tmp_path, 2, "k1", api_version=version).generated == 2
        gateway.account_state.settings.faults = FaultScript(faults=[Fault(**LOST)])
        held = generate(gateway, tmp_path, 6, "k1", api_version=version, on_unknown="hold")
        assert (held.reused, held.held) == (2, 4)
        mend(gateway)
        result = generate(gateway, tmp_path, 6, "k2", api_version=version)
        assert (result.generated, result.reused, result.calls) == (4, 2, 0)
        assert_paid_once(gateway, 6)
        old, new = (fingerprint_of(key, gateway.url) for key in ("k1", "k2"))
        account_of = {
            record.fingerprint: record.account
            for record in asyncio.run(accounts(StoreSettings(str(tmp_path / "store"))))
        }
        assert account_of == {old: old, new: old}


@pytest.mark.parametrize("key", ["k1", "k2"])
def test_adopted_images_say_who_made_them_and_for_how_much(key: str, tmp_path: Path) -> None:
    """Images that the ledger does not know name the endpoint that made them, and their cost if the key can see it."""
    accounts_ = keys(one=["k1"], two=["k2"])
    with api(accounts=accounts_) as first, api(accounts=accounts_) as second:
        assert generate(first, tmp_path, 3, "k1").generated == 3
        shutil.rmtree(tmp_path / "store" / "ledger" / "segments")
        used = first if key == "k1" else second
        result = generate(used, tmp_path, 3, key)
        assert (result.generated, result.calls) == (3, 0)
        assert {row["endpoint"] for row in metadata(tmp_path, result)} == {first.url}
        costs = [row["cost_usd"] for row in metadata(tmp_path, result)]
        assert costs == ([PRICE] * 3 if key == "k1" else [None] * 3)
        assert_paid_once(first, 3)
        assert not second.account_state.records


@pytest.fixture
def hiccups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """A store that fails the first three writes of each kind, before they are done or (`lost`) after; how often."""
    monkeypatch.setattr(patient_store, "_PAUSE_S", 0.02)
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.05)
    monkeypatch.setattr(heartbeat, "_RETRY_S", 0.05)
    failed: Counter[str] = Counter()
    beats = Counter[str]()
    create, put = FsspecObjectStore.create, FsspecObjectStore.put

    def kind_of(path: str) -> str | None:
        if path.endswith("/heartbeat.json"):
            beats[path] += 1
            return "beat" if beats[path] > 1 else None  # a run that cannot begin has spent nothing
        if path.endswith(".id.json"):
            return "id"
        return next((name for name in ("claims", "images", "segments", "results") if f"{name}/" in path), None)

    async def trouble(path: str) -> None:
        kind = kind_of(path)
        if kind is not None and failed[kind] < 3:
            failed[kind] += 1
            raise StoreError("store_unreachable", f"{path}: a time-out")

    async def hiccuping_create(self: FsspecObjectStore, path: str, data: bytes, content_type: str = "") -> bool:
        if request.param == "lost":
            made = await create(self, path, data, content_type)
            await trouble(path)
            return made
        await trouble(path)
        return await create(self, path, data, content_type)

    async def hiccuping_put(self: FsspecObjectStore, path: str, data: bytes, content_type: str = "") -> None:
        if request.param == "lost":
            await put(self, path, data, content_type)
        await trouble(path)
        await put(self, path, data, content_type)

    monkeypatch.setattr(FsspecObjectStore, "create", hiccuping_create)
    monkeypatch.setattr(FsspecObjectStore, "put", hiccuping_put)
    return failed


@VERSIONS
@pytest.mark.parametrize("hiccups", ["refused", "lost"], indirect=True)
def test_a_store_that_fails_now_and_then(version: str, hiccups: Counter[str], tmp_path: Path) -> None:
    """Heartbeats, claims, ids, images and events that the store did not take at first cost time, and nothing else."""
    with api(latency_s=0.3) as gateway:
        result = generate(gateway, tmp_path, 6, api_version=version)
        assert set(hiccups.values()) == {3}
        assert {"beat", "id", "claims", "images", "segments"} <= set(hiccups)
        assert (result.generated, result.calls, result.paid, result.stop_reason) == (6, 6, 6, None)
        again = generate(gateway, tmp_path, 6, api_version=version)
        assert (again.reused, again.calls) == (6, 0)
        assert_paid_once(gateway, 6)


@VERSIONS
def test_one_damaged_image(version: str, tmp_path: Path) -> None:
    """A damaged file ends its own row, with the remedy, and no other; mended, it is fetched again, not bought again."""
    store = StoreSettings(str(tmp_path / "store"))
    with api() as gateway:
        assert generate(gateway, tmp_path, 4, api_version=version).generated == 4
        # As after a crash: the images lie there, the ledger does not know of them, and one is damaged.
        shutil.rmtree(tmp_path / "store" / "ledger" / "segments")
        damaged = min((tmp_path / "store" / "images").rglob("*.png"))
        damaged.write_bytes(damaged.read_bytes()[:1000])
        for generated in (4, 0):
            result = generate(gateway, tmp_path, 5, api_version=version)
            assert (result.generated, result.failures, result.exit_code) == (generated, {"image_damaged": 1}, 1)
        text = (tmp_path / "store" / "runs" / str(result.run_id) / "report.md").read_text()
        assert "verify --repair" in text
        backend = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
        mended = asyncio.run(verify(store, backend, RunOptions(), repair=True))
        assert [problem.path for problem in mended.problems] == [str(damaged.relative_to(tmp_path / "store"))]
        result = generate(gateway, tmp_path, 5, api_version=version)
        assert (result.generated + result.reused, result.calls, result.exit_code) == (5, 0, 0)
        assert_paid_once(gateway, 5)
        assert asyncio.run(verify(store, backend, RunOptions())).problems == []


CHILD = """
import json, sys
import prefect_imagegen
from prefect_imagegen.providers.settings import ProviderSettings
from pydantic import SecretStr

manifest, store, base_url, version = sys.argv[1:]
result = prefect_imagegen.generate(
    manifest, store, api_version=version, max_in_flight=6, drain_seconds=60,
    backend=ProviderSettings(base_url=base_url, api_key=SecretStr("k")),
)
print(json.dumps(result.as_dict()))
"""


# The stop clock
@VERSIONS
def test_a_signal_while_answers_are_out(version: str, tmp_path: Path) -> None:
    """SIGTERM ends a run within 25 s, whatever is out and however long it may drain; nothing is lost, or sent again."""
    never = {"fault": "hang", "on": ["submit", "run"], "when": "after", "prompt_contains": "number 1."}
    late = {"fault": "hang", "on": ["submit", "run"], "when": "after", "prompt_contains": "number 2.", "seconds": 4}
    with api(never, late, {"fault": "hang", "on": ["download"], "times": 1}) as gateway:
        arguments = [scenes(tmp_path, 4), str(tmp_path / "store"), gateway.url, version]
        child = warm_python.start("-c", CHILD, *arguments, stdout=subprocess.PIPE)
        try:
            end = time.monotonic() + 60
            while len(gateway.account_state.billed) < 4:
                assert time.monotonic() < end
                time.sleep(0.01)
            child.send_signal(signal.SIGTERM)
            began = time.monotonic()
            stopped = json.loads(child.communicate(timeout=60)[0])
            assert time.monotonic() - began < 25 + 10
        finally:
            child.kill()
            child.wait()
        assert (stopped["stop_reason"], stopped["not_run"]) == ("signal", 0)
        assert stopped["held"] >= 1
        assert stopped["generated"] + stopped["held"] == 4
        ids = sorted((tmp_path / "store" / "ledger" / "claims").rglob("*.id.json"))
        answered = [record for record in gateway.account_state.billed if "number 1." not in record.body["prompt"]]
        assert {json.loads(path.read_text())["request_id"] for path in ids} == {call.request_id for call in answered}
        mend(gateway)
        result = generate(gateway, tmp_path, 4, api_version=version)
        assert (result.generated, result.generated + result.reused, result.calls) == (stopped["held"], 4, 0)
        assert_paid_once(gateway, 4)
