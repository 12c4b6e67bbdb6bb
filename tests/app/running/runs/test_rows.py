"""Whole runs without Prefect: the end of every row, and what the gateway says was paid for it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.metadata import METADATA_SCHEMA
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.app.running.runs.conftest import VERSIONS, generate, metadata, prompts, rules
from tests.support.manifests import manifest_of


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
