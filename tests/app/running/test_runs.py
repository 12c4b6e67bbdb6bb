"""Whole runs without Prefect: manifest in, real HTTP, store out. The gateway's records say what was paid."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.status import statuses
from prefect_imagegen.app.planning.prepare import RunSpec, plan_only
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.metadata import METADATA_SCHEMA
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.routes import generation
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from tests.support import warm_python
from tests.support.manifests import manifest_of

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


@VERSIONS
def test_again_calls_nothing_and_an_edit_calls_once(version: str, tmp_path: Path) -> None:
    """The same command again makes zero calls; after one edited row, exactly one."""
    store = tmp_path / "store"
    with EmbeddedGateway(GatewaySettings(price_usd=0.5)) as gateway:
        path = manifest_of(tmp_path, prompt=prompts(10))
        first = generate(gateway, path, str(store), api_version=version)
        assert (first.generated, first.calls, first.cost_usd) == (10, 10, 5.0)
        again = generate(gateway, path, str(store), api_version=version)
        assert (again.reused, again.calls, again.cost_usd) == (10, 0, 0.0)
        edited = manifest_of(tmp_path, prompt=[*prompts(9), "something else"])
        once = generate(gateway, edited, str(store), api_version=version)
        assert (once.generated, once.reused, once.calls) == (1, 9, 1)
        assert gateway.account_state.statistics()["billed_twice"] == 0


def test_metadata_has_every_row_and_column(tmp_path: Path) -> None:
    """Our columns come in order and type, then the manifest's; the first of identical rows carries the cost."""
    store = tmp_path / "store"
    path = manifest_of(
        tmp_path,
        prompt=["a", "b", "a", None],
        sku=pa.array([1, 2, 3, 4], pa.int16()),
        status=["old"] * 4,
        aspect_ratio=["3:2", None, "3:2", None],
    )
    with EmbeddedGateway(GatewaySettings(price_usd=0.25)) as gateway:
        result = generate(gateway, path, str(store), on_invalid="skip", id_column="sku", values={"seed": 5})
    table = metadata(store, result)
    assert table.schema.names[: len(METADATA_SCHEMA)] == METADATA_SCHEMA.names
    assert [table.schema.field(name).type for name in METADATA_SCHEMA.names] == METADATA_SCHEMA.types
    assert table.schema.names[len(METADATA_SCHEMA) :] == ["sku", "manifest_status", "aspect_ratio"]
    assert table.schema.field("sku").type == pa.int16()
    rows = table.to_pylist()
    assert [row["status"] for row in rows] == ["generated", "generated", "reused", "invalid"]
    assert [row["id"] for row in rows] == ["1", "2", "3", None]
    assert [row["cost_usd"] for row in rows] == [0.25, 0.25, 0.0, 0.0]
    assert [row["attempts"] for row in rows] == [1, 1, 0, 0]
    assert (rows[0]["width"], rows[0]["height"], rows[0]["format"]) == (1248, 832, "png")
    assert rows[0]["image_path"] == rows[2]["image_path"]
    assert (store / rows[0]["image_path"]).stat().st_size == rows[0]["size_bytes"]
    assert all(row["sandbox"] for row in rows[:3])
    assert "prompt" in rows[3]["error_message"]
    failures = pq.read_table(store / "runs" / str(result.run_id) / "failures")
    assert failures.schema == table.schema
    assert failures["row_index"].to_pylist() == [3]


@VERSIONS
def test_mixed_faults_end_well(version: str, tmp_path: Path) -> None:
    """With a third of the calls failing in transient ways, every row gets its image and nothing is paid twice."""
    script = rules(
        {"fault": "status", "status": 503, "share": 0.1, "seed": 1},
        {"fault": "status", "status": 429, "share": 0.05, "seed": 2, "seconds": 0},
        {"fault": "status", "status": 500, "share": 0.05, "seed": 3, "on": ["status", "result", "download"]},
        {"fault": "truncated_body", "share": 0.1, "seed": 4, "on": ["download", "run"]},
        {"fault": "disconnect", "share": 0.05, "seed": 5, "on": ["status", "result", "download", "history"]},
        {"fault": "html", "share": 0.05, "seed": 6, "on": ["status", "download"]},
        {"fault": "expired_record", "share": 0.05, "seed": 7, "on": ["submit"]},
        {"fault": "wrong_content_type", "share": 0.1, "seed": 8},
    )
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        result = generate(
            gateway, manifest_of(tmp_path, prompt=prompts(80)), str(tmp_path / "store"), api_version=version
        )
        assert (result.generated, result.failures) == (80, {})
        assert gateway.account_state.statistics()["billed_twice"] == 0


@VERSIONS
def test_no_answer_is_held_not_bought_again(version: str, tmp_path: Path) -> None:
    """Told to hold, a call that got no answer is held; the next run finds it in the history, and pays nothing."""
    script = rules({"fault": "disconnect", "when": "after", "prompt_contains": "number 3"})
    store = str(tmp_path / "store")
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        path = manifest_of(tmp_path, prompt=prompts(6))
        first = generate(gateway, path, store, api_version=version, on_unknown="hold")
        assert (first.generated, first.held, first.failures) == (5, 1, {"unknown": 1})
        assert first.exit_code == 1
        again = generate(gateway, path, store, api_version=version)
        assert (again.reused, again.generated, again.calls) == (5, 1, 0)
        assert again.cost_usd == pytest.approx(0.04019)
        assert len(gateway.account_state.records) == 6


@VERSIONS
def test_a_lost_answer_is_found_in_the_same_run(version: str, tmp_path: Path) -> None:
    """A call that was done, but whose answer was lost, is found in the history, once that knows it, not paid again."""
    script = rules({"fault": "disconnect", "when": "after", "prompt_contains": "number 3"})
    with EmbeddedGateway(GatewaySettings(faults=script, history_lag_s=0.5)) as gateway:
        path = manifest_of(tmp_path, prompt=prompts(6))
        result = generate(gateway, path, str(tmp_path / "store"), api_version=version, history_lag=1.5)
        assert (result.generated, result.calls, result.maybe_paid) == (6, 6, 0)
        assert gateway.account_state.statistics()["billed_twice"] == 0


@VERSIONS
def test_a_call_that_never_arrived_is_sent_again(version: str, tmp_path: Path) -> None:
    """A call that the history does not know after its lag was not accepted: it is sent again, at no risk."""
    script = rules({"fault": "disconnect", "when": "before", "first": 2})
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        path = manifest_of(tmp_path, prompt=prompts(6))
        result = generate(gateway, path, str(tmp_path / "store"), api_version=version, history_lag=0.5)
        assert (result.generated, result.calls, result.maybe_paid) == (6, 8, 0)
        assert len(gateway.account_state.billed) == 6


def test_the_budget_is_a_hard_cap(tmp_path: Path) -> None:
    """The run stops, resumable, when one more image could exceed the cap; the gateway's records agree to the cent."""
    store, path = str(tmp_path / "store"), manifest_of(tmp_path, prompt=prompts(20))
    with EmbeddedGateway(GatewaySettings(price_usd=0.1)) as gateway:
        first = generate(gateway, path, store, max_cost_usd=0.75)
        assert (first.generated, first.not_run, first.stop_reason, first.exit_code) == (7, 13, "budget", 3)
        assert gateway.account_state.charged == pytest.approx(0.7)
        assert first.overshoot_usd == 0.0
        settings = ProviderSettings(base_url=gateway.url, max_in_flight=2)
        summary = asyncio.run(plan_only(RunSpec(path, StoreSettings(store), settings)))
        assert (summary.forecast.images, summary.forecast.measured) == (13, 13)
        assert summary.forecast.low_usd == summary.forecast.high_usd == pytest.approx(1.3)
        again = generate(gateway, path, store, max_cost_usd=5.0)
        assert (again.reused, again.generated, again.paid) == (7, 13, 13)
        assert len(gateway.account_state.billed) == 20


@VERSIONS
def test_an_api_that_names_no_cost(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capped run against an API that names no cost stays within the cap, is not slow for ever, and says so."""
    sent, json_answer = generation.answer_body, generation.json_answer

    def costless(data: bytes, kind: str, fault: Fault | None, headers: dict[str, str]) -> Any:
        return sent(data, kind, fault, {name: text for name, text in headers.items() if name != "x-cost"})

    def costless_json(content: dict[str, Any], fault: Fault | None, status: int = 200) -> Any:
        content.get("metrics", {}).pop("cost", None)
        return json_answer(content, fault, status)

    monkeypatch.setattr(generation, "answer_body", costless)
    monkeypatch.setattr(generation, "json_answer", costless_json)
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(40))
    with EmbeddedGateway(GatewaySettings(price_usd=0.01, latency_s=0.2)) as gateway:
        result = generate(gateway, path, str(store), api_version=version, max_cost_usd=0.9)
        assert (result.stop_reason, result.generated, result.assumed_price) == ("budget", 22, True)
        assert gateway.account_state.max_in_flight > 2
        assert metadata(store, result)["cost_usd"].null_count == 22
    folder = store / "runs" / str(result.run_id)
    assert json.loads((folder / "report.json").read_text())["assumed_price"] is True
    assert "cap held against an assumed price" in (folder / "report.md").read_text()


def test_answered_5xx_after_the_work_is_found_in_the_history(tmp_path: Path) -> None:
    """A 503 that hides accepted work costs one look into the history, not a second image."""
    script = rules({"fault": "status", "status": 503, "when": "after"})
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        result = generate(gateway, manifest_of(tmp_path, prompt=prompts(4)), str(tmp_path / "store"))
        assert (result.generated, result.calls, result.maybe_paid) == (4, 4, 0)
        assert len(gateway.account_state.billed) == 4
    with EmbeddedGateway(GatewaySettings(faults=rules({"fault": "status", "first": 2}))) as gateway:
        result = generate(gateway, manifest_of(tmp_path, prompt=["x"]), str(tmp_path / "other"))
        assert (result.generated, result.calls, result.maybe_paid) == (1, 3, 2)


def test_limits_of_trying_again(tmp_path: Path) -> None:
    """503 is tried five times, 500 three times; permanent failures stay failed without a call; others are retried."""
    script = rules(
        {"fault": "status", "status": 500, "prompt_contains": "number 0"},
        {"fault": "status", "status": 503, "prompt_contains": "number 1"},
        {"fault": "failed", "prompt_contains": "number 2", "text": "Prompt was rejected by content policy"},
    )
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(4))
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        first = generate(gateway, path, str(store), max_failure_rate=1.0)
        rows = metadata(store, first).to_pylist()
        assert [row["attempts"] for row in rows] == [3, 5, 1, 1]
        kinds = [row["error_kind"] for row in rows]
        assert kinds == ["server_error", "unavailable", "content_policy", None]
        second = generate(gateway, path, str(store), max_attempts=1)
        rows = metadata(store, second).to_pylist()
        assert [row["attempts"] for row in rows] == [1, 1, 0, 0]
        assert [row["status"] for row in rows] == ["failed", "failed", "failed", "reused"]


def test_a_model_that_is_gone_fails_alone(tmp_path: Path) -> None:
    """404 for a model fails its rows after one call; rows of other models go on."""
    models = ["flux-2-klein-9b", "no-such-model", "no-such-model", "no-such-model"]
    path = manifest_of(tmp_path, prompt=prompts(4), model=models)
    with EmbeddedGateway(GatewaySettings()) as gateway:
        result = generate(gateway, path, str(tmp_path / "store"), max_in_flight=1)
        assert (result.generated, result.failures) == (1, {"model_unavailable": 3})
        assert result.calls == 2


def test_a_key_revoked_in_mid_run_stops_it(tmp_path: Path) -> None:
    """401 stops the run with exit code 3; the same command with a good key finishes it, nothing paid twice."""
    path, store = manifest_of(tmp_path, prompt=prompts(8)), str(tmp_path / "store")
    settings = GatewaySettings(faults=rules({"fault": "status", "status": 401, "every": 4, "times": 1}))
    with EmbeddedGateway(settings) as gateway:
        first = generate(gateway, path, store, max_in_flight=1)
        assert (first.stop_reason, first.exit_code, first.generated, first.not_run) == ("auth", 3, 3, 5)
        assert generate(gateway, path, store).generated == 5
        assert gateway.account_state.statistics()["billed_twice"] == 0


def test_too_many_failures_stop_the_run(tmp_path: Path) -> None:
    """When more than half of at least twenty rows failed, the rest is not asked for."""
    script = rules({"fault": "failed", "share": 0.9})
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        result = generate(gateway, manifest_of(tmp_path, prompt=prompts(200)), str(tmp_path / "store"), max_in_flight=4)
    assert result.stop_reason == "too_many_failures"
    assert result.not_run > 150


def test_nothing_moves_until_the_deadline(tmp_path: Path) -> None:
    """An endpoint that only answers 429 stops the run at the deadline; such calls do not count as attempts."""
    script = rules({"fault": "status", "status": 429, "seconds": 0})
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        result = generate(gateway, manifest_of(tmp_path, prompt=["a"]), str(tmp_path / "store"), deadline=2.0)
    assert (result.stop_reason, result.not_run) == ("deadline", 1)


def test_a_black_image_is_stored_and_flagged(tmp_path: Path) -> None:
    """A decodable but blank image counts as delivered, and carries the flag `blank`."""
    with EmbeddedGateway(GatewaySettings(faults=rules({"fault": "black_image"}))) as gateway:
        result = generate(gateway, manifest_of(tmp_path, prompt=["a"]), str(tmp_path / "store"))
    assert (result.generated, result.flagged) == (1, 1)
    assert metadata(tmp_path / "store", result)["flags"].to_pylist() == [["blank"]]


def test_sandbox_images_stay_out_of_real_stores(tmp_path: Path) -> None:
    """A store takes images of one kind for ever."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "store.json").write_text('{"format": 1, "kind": "real"}')
    with EmbeddedGateway(GatewaySettings()) as gateway, pytest.raises(RefusedError, match="sandbox") as caught:
        generate(gateway, manifest_of(tmp_path, prompt=["a"]), str(store))
    assert caught.value.kind == "store_kind"


def test_in_flight_stays_in_its_limit(tmp_path: Path) -> None:
    """Never more calls at once than asked for, over many shards."""
    with EmbeddedGateway(GatewaySettings(latency_s=0.1)) as gateway:
        path = manifest_of(tmp_path, prompt=prompts(60))
        result = generate(gateway, path, str(tmp_path / "store"), max_in_flight=5, shard_size=4)
        assert result.generated == 60
        assert gateway.account_state.max_in_flight == 5


def test_agenerate_runs_inside_a_loop_on_s3(tmp_path: Path, s3: Any) -> None:
    """`agenerate` works in a running loop, and S3 stores keep the same promises as local ones."""
    store, path = StoreSettings(s3.url(), s3.options), manifest_of(tmp_path, prompt=prompts(12))

    async def twice() -> list[RunResult]:
        return [await prefect_imagegen.agenerate(path, store, backend="sandbox") for _ in range(2)]

    first, second = asyncio.run(twice())
    assert (first.generated, second.reused, second.calls) == (12, 12, 0)


CHILD = """
import sys
import prefect_imagegen
from prefect_imagegen.providers.settings import ProviderSettings
from pydantic import SecretStr

prefect_imagegen.generate(
    sys.argv[1], sys.argv[2], backend=ProviderSettings(base_url=sys.argv[3], api_key=SecretStr("k")),
    api_version=sys.argv[4], max_in_flight=8,
)
"""


@VERSIONS
def test_kill_in_mid_run(version: str, tmp_path: Path) -> None:
    """After kill -9, the same command pays for nothing twice: ids are fetched, calls without an answer are held."""
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(60))
    with EmbeddedGateway(GatewaySettings(latency_s=0.3)) as gateway:
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        process = warm_python.start("-c", CHILD, path, store, gateway.url, version, env=environment)
        end = time.monotonic() + 60
        while len(gateway.account_state.billed) < 20:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (died,) = asyncio.run(statuses(StoreSettings(str(store))))
        assert died.state == "abandoned"
        result = generate(gateway, path, str(store), api_version=version)
        statistics = gateway.account_state.statistics()
    assert statistics["billed_twice"] == 0
    assert result.generated + result.reused + result.held == 60
    if version == "v2":
        # Held are at most the calls whose answer was on the wire when the process died.
        assert result.held <= 8
    images = [file for file in (store / "images").rglob("*") if file.is_file() and not file.name.startswith(".tmp-")]
    assert len(images) == 60 - result.held


def test_two_runs_at_once(tmp_path: Path) -> None:
    """Rows that another living run works on are left to it, and reused when it has made them; nothing is called."""
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(8))
    with EmbeddedGateway(GatewaySettings(latency_s=3.0)) as gateway:
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        other = warm_python.start("-c", CHILD, path, store, gateway.url, "v2", env=environment)
        try:
            end = time.monotonic() + 60
            while len(gateway.account_state.records) < 8:
                assert time.monotonic() < end
                time.sleep(0.02)
            result = generate(gateway, path, str(store))
            assert (result.calls, result.failures, result.reused) == (0, {}, 8)
            assert result.cost_usd == 0
            assert other.wait(60) == 0
        finally:
            other.kill()
            other.wait()
        again = generate(gateway, path, str(store))
        assert (again.reused, again.calls) == (8, 0)
        assert len(gateway.account_state.billed) == 8


def test_a_store_that_gives_way_stops_the_run(tmp_path: Path) -> None:
    """If images cannot be stored the run stops, resumable; what was delivered is fetched again, not bought again."""
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(6))
    store.mkdir()
    (store / "images").write_text("in the way")
    with EmbeddedGateway(GatewaySettings()) as gateway:
        first = generate(gateway, path, str(store), max_in_flight=2, deadline=2.0)
        assert (first.stop_reason, first.exit_code, first.generated) == ("store", 3, 0)
        assert first.held >= 1
        assert first.held + first.not_run == 6
        (store / "images").unlink()
        again = generate(gateway, path, str(store))
        assert again.generated == 6
        assert len(gateway.account_state.billed) == 6


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    """If only the metadata cannot be written, the run ends stopped, with its figures, and the next one has it all."""
    store, path = tmp_path / "store", manifest_of(tmp_path, prompt=prompts(3))
    settings = GatewaySettings()
    with EmbeddedGateway(settings) as gateway:
        ticks = iter(range(10**9))

        def clock() -> float:
            # Called for every request, so the obstacle is there before the run is finished.
            for run in store.glob("runs/*"):
                if not (run / "metadata").exists():
                    (run / "metadata").write_text("in the way")
            return 1_800_000_000.0 + next(ticks)

        settings.clock = clock
        first = generate(gateway, path, str(store), deadline=3.0)
        assert (first.stop_reason, first.generated, first.calls) == ("store", 3, 3)
        assert (first.paid, first.maybe_paid) == (3, 0)
        settings.clock = time.time
        again = generate(gateway, path, str(store))
        assert (again.reused, again.calls) == (3, 0)


def test_held_rows_are_fetched_by_the_next_run_of_the_same_process(tmp_path: Path) -> None:
    """A run that has ended is not taken for a living one: its sent rows are fetched by their ids, at no cost."""
    store, path = str(tmp_path / "store"), manifest_of(tmp_path, prompt=prompts(3))
    with EmbeddedGateway(GatewaySettings(latency_s=1.5)) as gateway:
        first = generate(gateway, path, store, deadline=0.5)
        assert first.failures == {"submitted": 3}
        again = generate(gateway, path, store)
        assert (again.generated, again.calls) == (3, 0)
        assert again.cost_usd > 0
        assert len(gateway.account_state.billed) == 3
