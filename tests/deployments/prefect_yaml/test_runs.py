"""The deployments, for real: runs from the command line, their secrets, and what is refused."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.store.object_store import close_connections
from tests.deployments.prefect_yaml.conftest import PREFECT, ROOT, Site
from tests.deployments.terminal import until
from tests.support import planted, warm_python
from tests.support.command import MODULE
from tests.support.manifests import numbered

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]


def test_a_worker_runs_the_deployment(site: Site, tmp_path: Path) -> None:
    """`prefect deployment run` on a process worker makes the images; both deployments are there, one scheduled."""
    parameters = {"manifest": numbered(tmp_path, 5), "store": str(tmp_path / "store"), "backend": "sandbox"}
    run_id = site.start_by_command("generate-on-demand", **parameters)
    assert site.wait(run_id, "Completed", "Failed", "Crashed")["state_name"] == "Completed"
    assert len(list((tmp_path / "store" / "images").rglob("*.png"))) == 5
    (told,) = until(lambda: site.finished(run_id), 60)
    assert (told["state"], told["stop_reason"], told["counts"]["generated"]) == ("Completed", None, 5)
    deployments = {one["name"]: one for one in site.post("/deployments/filter", {})}
    assert set(deployments) == {"generate-on-demand", "generate-nightly"}
    assert deployments["generate-nightly"]["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    steps = json.dumps([one["pull_steps"] for one in deployments.values()])
    assert str(ROOT) not in steps, "the deploying machine's directory must not be baked in"


_BLOCKS = """
import json, sys
from prefect_imagegen.blocks import ImageStore, Segmind
key, url, store, options = json.loads(sys.stdin.read())
Segmind(api_key=key, base_url=url).save("planted", overwrite=True)
ImageStore(url=store, storage_options=options).save("planted", overwrite=True)
"""


@pytest.mark.s3
def test_a_deployed_run_tells_no_secret(site: Site, tmp_path: Path, s3) -> None:
    """No secret of blocks, references or answers stands in the server's database, in logs, in processes or the store.

    The API repeats in an error, and at last refuses with, all that it was sent.
    """
    secrets = {**planted.PLANTED, "the secret of the store": "writer-secret"}
    echo = Fault(fault="failed", prompt_contains="forbidden", text=planted.ECHO)
    settings = GatewaySettings(api_key=SecretStr(planted.KEY), allow_loopback=True, faults=FaultScript(faults=[echo]))
    store, rows = s3.url(), tmp_path / "rows.parquet"
    with planted.PictureHost() as host, EmbeddedGateway(settings) as gateway:
        pq.write_table(host.table(), rows)
        given = json.dumps([planted.KEY, gateway.url, store, s3.options])
        assert warm_python.run("-c", _BLOCKS, env=site.environment, said=given).returncode == 0
        options = {"reference_identity": "content", "allow_private_references": True, "keep_references": True}
        parameters = {"store": "image-store/planted", "backend": "segmind/planted"}
        run_id = site.start("generate-on-demand", manifest=str(rows), options=options, **parameters)
        lines: dict[bytes, str] = {}

        def ended() -> Any:
            lines.update({line: name for name, line in planted.command_lines(os.getpid())})
            return (run := site.flow_run(run_id))["state_type"] in ("COMPLETED", "FAILED", "CRASHED") and run

        assert until(ended, 180)["state_name"] == "CompletedWithFailures"
        assert len(gateway.account_state.billed) == len(planted.SIGNED)
        rule = Fault(fault="json_error", status=401, body={"error": planted.ECHO})
        gateway.account_state.settings.faults = FaultScript(faults=[rule])
        last = site.start("generate-on-demand", manifest=numbered(tmp_path, 1), **parameters)
        assert "stopped (auth)" in site.wait(last, "Completed", "Failed", "Crashed")["state"]["message"]
    address = f"https://h/a.csv?sig={planted.PLANTED['the signature of a manifest']}"
    refused = site.start("generate-on-demand", manifest=address, **parameters)
    ended_state = site.wait(refused, "Completed", "Failed", "Crashed")["state"]
    assert "refused (secret_in_parameters)" in ended_state["message"]

    def logs(run: str) -> list[str]:
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
        return [line["message"] for line in site.post("/logs/filter", wanted)]

    for run in (run_id, last, refused):
        until(lambda run=run: any("Finished in state" in line for line in logs(run)), 60)
    parameters_of = json.dumps(site.flow_run(refused)["parameters"])
    assert planted.leaks([("its parameters", parameters_of.encode())]), "only who starts a run can keep it out of there"
    said = [("a state", json.dumps(ended_state).encode()), ("the logs", " ".join(logs(refused)).encode())]
    assert planted.leaks(said, secrets) == []
    # What Prefect itself was told as a parameter stands in its database: all the others must not.
    del secrets["the signature of a manifest"]
    assert planted.leaks(planted.files_of(site.folder), secrets) == []
    assert any(b"worker" in line for line in lines), lines
    assert planted.leaks([(name, line) for line, name in lines.items()], secrets) == []
    fs = fsspec.filesystem("s3", **s3.options, skip_instance_cache=True, use_listings_cache=False)
    stored = list(planted.objects_of(fs, store.removeprefix("s3://")))
    close_connections(fs)
    assert any("/images/" in name for name, _ in stored)
    assert planted.leaks(stored, planted.PLANTED | {"the secret of the store": "writer-secret"}) == []


def test_a_store_that_would_vanish_is_refused(site: Site, tmp_path: Path) -> None:
    """A deployed run whose store is a relative path is refused before any call: its folder may go with the run."""
    run_id = site.start("generate-on-demand", manifest=numbered(tmp_path, 1), store="images", backend="sandbox")
    ended = site.wait(run_id, "Completed", "Failed", "Crashed")
    assert ended["state_name"] == "Failed"
    assert "refused (fleeting_store): The store images is a relative path" in ended["state"]["message"]
    assert not (site.folder / "images").exists()


def test_deploying_without_the_workers_folder_fails(site: Site) -> None:
    """`prefect deploy` names the variable that is not set; nothing is deployed with its literal text."""
    environment = {name: value for name, value in site.environment.items() if name != "IMAGEGEN_WORKDIR"}
    before = site.post("/deployments/filter", {})
    deployed = subprocess.run(
        [*PREFECT, "--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert deployed.returncode != 0
    assert "IMAGEGEN_WORKDIR is not set" in deployed.stdout + deployed.stderr
    assert [one["updated"] for one in site.post("/deployments/filter", {})] == [one["updated"] for one in before]


def test_default_retries_do_not_apply(site: Site, tmp_path: Path) -> None:
    """A script's run is executed once where `PREFECT_FLOWS_DEFAULT_RETRIES` is set, whatever it ends as."""
    assert site.environment["PREFECT_FLOWS_DEFAULT_RETRIES"] == "2"
    code = (
        "from prefect import flow\n"
        "from prefect_imagegen.flows import generate_images, agenerate_images\n"
        "assert (generate_images.retries, agenerate_images.retries, flow(lambda: 1).retries) == (0, 0, 2)\n"
        f"state = generate_images('nothing.parquet', {str(tmp_path / 'store')!r}, 'sandbox', return_state=True)\n"
        "print(state.state_details.flow_run_id)\n"
    )
    done = warm_python.run("-c", code, env=site.environment, timeout=120)
    assert done.returncode == 0, done.stderr
    run = site.flow_run(done.stdout.split()[-1])
    assert (run["state_name"], run["state_type"], run["run_count"]) == ("Failed", "FAILED", 1)
    assert run["state"]["message"].startswith("refused (manifest_not_found): ")


def test_the_command_line_uses_blocks(site: Site, tmp_path: Path) -> None:
    """`--store image-store/NAME --backend segmind/NAME` take everything from blocks; a missing one is refused."""
    store = tmp_path / "store"
    with EmbeddedGateway(GatewaySettings(api_key=SecretStr("SG_block"))) as gateway:
        code = (
            "from prefect_imagegen.blocks import ImageStore, Segmind\n"
            f"Segmind(api_key='SG_block', base_url={gateway.url!r}, api_version='v1').save('cli')\n"
            f"ImageStore(url={str(store)!r}).save('cli')\n"
        )
        assert warm_python.run("-c", code, env=site.environment, timeout=120).returncode == 0

        def generate(name: str) -> subprocess.CompletedProcess[str]:
            words = ("generate", numbered(tmp_path, 3), "--json", "--store", name, "--backend", "segmind/cli")
            return warm_python.run("-m", MODULE, *words, env=site.environment, timeout=120)

        found = generate("image-store/cli")
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout.splitlines()[-1])["generated"] == 3
        assert gateway.account_state.calls["run"] == 3
        missing = generate("image-store/nobody")
    assert missing.returncode == 2
    assert "image-store/nobody" in missing.stderr
    assert "prefect block register" in " ".join(missing.stderr.split())
