"""The flow, on a real Prefect server."""

import asyncio
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    LogFilter,
    LogFilterFlowRunId,
)
from pydantic import SecretStr

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.planning.prepare import RunSpec, prepare
from prefect_imagegen.app.running import registry
from prefect_imagegen.blocks import ImageStore, Segmind
from prefect_imagegen.core.errors import ImagegenError, RefusedError
from prefect_imagegen.flows import agenerate_images, generate_images
from prefect_imagegen.flows.names import artifact_key
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.object_store import close_connections
from tests.support.manifests import manifest_of

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(600)]


def metadata(store: str, run_id: str) -> pa.Table:
    return pq.read_table(f"{store}/runs/{run_id}/metadata")


@pytest.mark.s3
def test_private_references_through_the_flow(s3, tmp_path: Path) -> None:
    """Photographs of the store's own bucket and of a disk reach the API; neither logs nor artifacts tell how."""
    url = s3.url()
    ImageStore(url=url, storage_options=s3.options).save("private", overwrite=True)
    fs = fsspec.filesystem("s3", **s3.options, skip_instance_cache=True)
    bucket, photo = url.removeprefix("s3://"), tmp_path / "here.png"
    for number, colour in enumerate(("navy", "teal", "white", "gold")):
        Image.new("RGB", (96, 96), colour).save(photo)
        fs.pipe_file(f"{bucket}/photos/{number}.png", photo.read_bytes())
    cells = [[f"{url}/photos/{n}.png", "here.png"] for n in range(4)]
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": [f"edit {n}" for n in range(3)] + ["forbidden"], "image_urls": cells}), path)
    refusal = Fault(
        fault="failed", prompt_contains="forbidden", text=f"bad image_urls {url}?X-Amz-Signature=SECRETPART"
    )
    settings = GatewaySettings(allow_loopback=True, faults=FaultScript(faults=[refusal]))
    with EmbeddedGateway(settings) as gateway:
        Segmind(api_key="SG_0123456789abcdef", base_url=gateway.url).save("private", overwrite=True)
        state = generate_images(str(path), "image-store/private", "segmind/private", RunOptions(), return_state=True)
        sent = [address for record in gateway.account_state.billed for address in record.body["image_urls"]]
    close_connections(fs)
    assert (
        len(sent),
        sum("X-Amz-Signature" in address for address in sent),
        sum("/assets/" in address for address in sent),
    ) == (
        6,
        3,
        3,
    )
    assert state.name == "CompletedWithFailures"
    flow_run = state.state_details.flow_run_id

    async def recorded_text() -> str:
        async with get_client() as client:
            logs = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run])), limit=200)
            wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
            artifacts = await client.read_artifacts(artifact_filter=wanted)
            run = await client.read_flow_run(flow_run)
            return " ".join(
                map(str, (*(log.message for log in logs), *(artifact.data for artifact in artifacts), run.parameters))
            )

    text = asyncio.run(recorded_text())
    assert "4 rows" in text
    for secret in ("X-Amz", "SECRETPART", "/assets/", "SG_0123456789abcdef", "writer-secret"):
        assert secret not in text


@pytest.mark.s3
def test_partiprompts_from_parquet_to_s3(s3, partiprompts: Path) -> None:
    """All 1,632 PartiPrompts become images and metadata in S3, over HTTP, through the flow; a rerun calls nothing."""
    url = s3.url()
    ImageStore(url=url, storage_options=s3.options).save("partiprompts", overwrite=True)
    settings = GatewaySettings(engine="static", static_bytes=20_000, api_key=SecretStr("SG_test"))
    with EmbeddedGateway(settings) as gateway:
        Segmind(api_key="SG_test", base_url=gateway.url, max_in_flight=32).save("partiprompts", overwrite=True)
        options = RunOptions(columns={"prompt": ["Prompt"]}, values={"image_format": "jpeg"}, shard_size=128)
        arguments = (str(partiprompts), "image-store/partiprompts", "segmind/partiprompts", options)
        first = generate_images(*arguments)
        second = generate_images(*arguments)
        account_state = gateway.account_state
    assert (first["generated"], first["calls"], first["rows"]) == (1632, 1632, 1632)
    assert (second["reused"], second["calls"]) == (1632, 0)
    assert account_state.statistics()["billed_twice"] == 0
    assert len(account_state.billed) == 1632

    import s3fs  # noqa: PLC0415 - for this test alone

    # Not cached: a shared instance would be collected, sockets open, in the middle of another test.
    fs = s3fs.S3FileSystem(**s3.options, skip_instance_cache=True, use_listings_cache=False)
    assert len(fs.find(f"{url}/images")) == 1632
    table = pq.read_table(f"{url.removeprefix('s3://')}/runs/{first['run_id']}/metadata", filesystem=fs)
    assert table["Prompt"].to_pylist() == pq.read_table(partiprompts)["Prompt"].to_pylist()
    assert set(table["status"].to_pylist()) == {"generated"}
    assert len(set(table["sha256"].to_pylist())) == 1632
    assert set(table.column_names) >= {"Category", "Challenge", "Note"}
    kind = fs.info(f"{url}/{table['image_path'][0]}")["ContentType"]
    assert kind == "image/jpeg"
    close_connections(fs)


def test_the_flow_shows_itself(tmp_path: Path) -> None:
    """A run ends Completed and leaves progress and summary as artifacts."""
    store = str(tmp_path / "store")
    state = generate_images(manifest_of(tmp_path, prompt=["a", "b"]), store, "sandbox", return_state=True)
    assert (state.name, state.type.value) == ("Completed", "COMPLETED")
    run = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        for kind in ("progress", "failures", "summary"):
            key = artifact_key(kind, store)
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
            assert len(client.read_artifacts(artifact_filter=wanted)) == 1, key
        shown = client.read_flow_run(run)
    assert (shown.name, set(shown.tags)) == (
        "prompts to store",
        {"imagegen", f"imagegen-run:{state.result()['run_id']}"},
    )


def test_stores_do_not_share_artifacts(tmp_path: Path) -> None:
    """Failures of one store are not shown for another; a clean run of the same store renews them."""
    broken, clean = str(tmp_path / "broken"), str(tmp_path / "clean")
    options = RunOptions(on_invalid="skip")
    generate_images(manifest_of(tmp_path, prompt=["a", None]), broken, "sandbox", options, return_state=True)
    generate_images(manifest_of(tmp_path, prompt=["a"]), clean, "sandbox", return_state=True)
    with get_client(sync_client=True) as client:

        def failures(store: str) -> list[str]:
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key("failures", store)]))
            return [str(artifact.data) for artifact in client.read_artifacts(artifact_filter=wanted)]

        (only,) = failures(broken)
        assert "invalid_row" in only
        assert failures(clean) == ["[]"]
        generate_images(manifest_of(tmp_path, prompt=["a"]), broken, "sandbox", return_state=True)
        assert sorted(failures(broken)) == sorted([only, "[]"])


@pytest.mark.anyio
async def test_the_flow_runs_inside_a_loop(tmp_path: Path) -> None:
    """`agenerate_images` is the flow for a running event loop."""
    figures = await agenerate_images(manifest_of(tmp_path, prompt=["a", "b", "b"]), str(tmp_path / "store"), "sandbox")
    assert (figures["generated"], figures["reused"], figures["calls"]) == (2, 1, 2)


def test_rows_without_images_have_their_own_state(tmp_path: Path) -> None:
    """A run with failed rows ends Completed 'CompletedWithFailures', or Failed if the user wants that."""
    script = FaultScript(faults=[Fault(fault="failed", prompt_contains="bad", text="no")])
    with EmbeddedGateway(GatewaySettings(faults=script, api_key=SecretStr("k"))) as gateway:
        Segmind(api_key="k", base_url=gateway.url).save("failing", overwrite=True)
        path, store = manifest_of(tmp_path, prompt=["good", "bad"]), str(tmp_path / "store")
        state = generate_images(path, store, "segmind/failing", return_state=True)
        assert (state.name, state.type.value) == ("CompletedWithFailures", "COMPLETED")
        state = generate_images(path, store, "segmind/failing", fail_on_row_errors=True, return_state=True)
        assert (state.name, state.type.value) == ("Failed", "FAILED")


def test_bad_input_is_refused(tmp_path: Path) -> None:
    """Invalid rows end the flow as Failed, refused, naming the row, and nothing is called or stored."""
    store = tmp_path / "store"
    state = generate_images(manifest_of(tmp_path, prompt=["a", None]), str(store), "sandbox", return_state=True)
    assert (state.name, state.type.value) == ("Failed", "FAILED")
    assert state.message.startswith("refused (invalid_rows): ")
    assert "row 1, column prompt" in state.message
    assert not store.exists()
    with pytest.raises(RefusedError, match="does not exist"):
        generate_images(str(tmp_path / "nothing.parquet"), str(store), "sandbox")


def test_credits_stop_the_run(tmp_path: Path) -> None:
    """Without credits the flow ends Failed, stopped; with new credits the same call finishes, nothing paid twice."""
    settings = GatewaySettings(credits=0.1, price_usd=0.04, api_key=SecretStr("k"))
    path, store = manifest_of(tmp_path, prompt=list("abcdef")), str(tmp_path / "store")
    with EmbeddedGateway(settings) as gateway:
        Segmind(api_key="k", base_url=gateway.url).save("poor", overwrite=True)
        state = generate_images(path, store, "segmind/poor", return_state=True)
        assert (state.name, state.type.value) == ("Failed", "FAILED")
        assert state.message.startswith("stopped (credits): ")
        assert "balance" in state.message
        with pytest.raises(ImagegenError):
            generate_images(path, store, "segmind/poor", RunOptions(max_in_flight=1))
        settings.credits = 100.0
        figures = generate_images(path, store, "segmind/poor")
        assert figures["not_run"] == 0
        assert len(gateway.account_state.billed) == 6
        assert gateway.account_state.statistics()["billed_twice"] == 0


def test_a_global_concurrency_limit_caps_calls(tmp_path: Path) -> None:
    """Calls in flight never exceed the named limit; its slots are free again at the end; a missing one is refused."""
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="imagegen-test", limit=3))
    path, store = manifest_of(tmp_path, prompt=[f"p{number}" for number in range(24)]), str(tmp_path / "store")
    with EmbeddedGateway(GatewaySettings(latency_s=0.05, api_key=SecretStr("k"))) as gateway:
        Segmind(api_key="k", base_url=gateway.url).save("limited", overwrite=True)
        figures = generate_images(
            path, store, "segmind/limited", RunOptions(shard_size=6), concurrency_limit="imagegen-test"
        )
        assert figures["generated"] == 24
        assert gateway.account_state.max_in_flight <= 3
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name("imagegen-test").active_slots == 0
    state = generate_images(path, store, "sandbox", concurrency_limit="nobody", return_state=True)
    assert state.message.startswith("refused (limit_not_found): ")
    assert "prefect gcl create nobody" in state.message


def test_parameters_hold_no_secret(tmp_path: Path, s3) -> None:
    """What Prefect stores of a flow run names blocks, never keys or storage options."""
    ImageStore(url=s3.url(), storage_options=s3.options).save("private", overwrite=True)
    state = generate_images(manifest_of(tmp_path, prompt=["a"]), "image-store/private", "sandbox", return_state=True)
    assert state.name == "Completed"

    async def stored() -> str:
        async with get_client() as client:
            run = await client.read_flow_run(state.state_details.flow_run_id)
            return run.model_dump_json()

    assert "writer-secret" not in asyncio.run(stored())


def test_a_run_is_executed_once(tmp_path: Path) -> None:
    """A flow run that finds its run begun, or planned by a process that is gone, plans anew and names its parent."""
    path, store = manifest_of(tmp_path, prompt=["a", "b"]), tmp_path / "store"
    spec = RunSpec(path, StoreSettings(str(store)), ProviderSettings("sandbox"))
    planned_run = asyncio.run(prepare(spec))
    figures = []
    for _ in range(2):
        registry.planned_runs[planned_run.run_id] = planned_run
        figures.append(generate_images(path, str(store), "sandbox", run_id=planned_run.run_id))
    figures.append(generate_images(path, str(store), "sandbox", run_id="of-another-process"))
    assert figures[0]["run_id"] == planned_run.run_id
    assert [run_figures["calls"] for run_figures in figures] == [2, 0, 0]
    parents = [
        json.loads((store / "runs" / run_figures["run_id"] / "run.json").read_text())["parent_run_id"]
        for run_figures in figures
    ]
    assert parents == [None, planned_run.run_id, "of-another-process"]


@flow
def nightly(path: str, store: str) -> dict[str, Any]:
    """A user's own sync flow around ours."""
    return generate_images(path, store, "sandbox")


def test_as_a_subflow(tmp_path: Path) -> None:
    """A user's own sync flow can call ours."""
    figures = nightly(manifest_of(tmp_path, prompt=["a"]), str(tmp_path / "store"))
    assert figures["generated"] == 1
