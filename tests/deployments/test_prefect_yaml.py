"""The deployments, for real: a server, a work pool, a worker, a run from the command line, and a cancellation."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import SecretStr

from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.store.object_store import close_connections
from tests.deployments.terminal import until
from tests.support import planted, prefect_homes, warm_python
from tests.support.command import MODULE
from tests.support.manifests import numbered
from tests.support.ports import free_port

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect"]


@dataclass
class Site:
    """A Prefect server with our deployments and a worker; `call` runs Prefect's command line against it."""

    folder: Path
    api: str
    environment: dict[str, str]
    running: list["subprocess.Popen[bytes]"]
    """The server, and the worker last."""

    @property
    def worker(self) -> "subprocess.Popen[bytes]":
        return self.running[-1]

    def launch(self, *words: str) -> None:
        """Start a command of Prefect in the background; the fixture ends it."""
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            self.running.append(
                subprocess.Popen([*PREFECT, *words], cwd=self.folder, env=self.environment, stdout=log, stderr=log)
            )

    def restart_worker(self) -> None:
        self.launch("worker", "start", "--pool", "imagegen")

    def call(self, *words: str, cwd: Path | None = None) -> str:
        found = subprocess.run(
            [*PREFECT, "--no-prompt", *words],
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    def get(self, path: str) -> Any:
        """Ask Prefect's API."""
        return self._answer(f"{self.api}{path}")

    @staticmethod
    def _answer(request: "str | urllib.request.Request") -> Any:
        """What the server answers; while its database is busy that is 503, after which Prefect's client tries again."""
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def flow_run(self, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = self.get(f"/flow_runs/{run_id}")
        return run

    def post(self, path: str, content: Any) -> Any:
        """Call Prefect's API."""
        data = json.dumps(content).encode()
        request = urllib.request.Request(f"{self.api}{path}", data, {"content-type": "application/json"})
        return self._answer(request)

    def retry(self, run_id: str) -> None:
        """Press Retry in the UI: that sets this very state."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        assert self.post(f"/flow_runs/{run_id}/set_state", {"state": state})["status"] == "ACCEPT"

    def finished(self, run_id: str) -> list[dict[str, Any]]:
        """The payloads of our event of a flow run, oldest first."""
        wanted = {"event": {"name": ["prefect-imagegen.run.finished"]}, "order": "ASC"}
        events = self.post("/events/filter", {"filter": wanted, "limit": 50})["events"]
        resource = f"prefect.flow-run.{run_id}"
        return [
            one["payload"]
            for one in events
            if any(related["prefect.resource.id"] == resource for related in one["related"])
        ]

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment as the UI does; its id."""
        wanted = self.get(f"/deployments/name/generate-images/{deployment}")
        return str(self.post(f"/deployments/{wanted['id']}/create_flow_run", {"parameters": parameters})["id"])

    def start_by_command(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment by Prefect's command line; its id."""
        words = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        said = self.call("deployment", "run", f"generate-images/{deployment}", *words)
        return re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", said)[0]

    def wait(self, run_id: str, *names: str) -> dict[str, Any]:
        """Wait until the run is in one of these states."""
        return until(lambda: (run := self.flow_run(run_id))["state_name"] in names and run, 180)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, prefect_tables: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    prefect_homes.furnish(folder / "home", prefect_tables)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the least that Prefect allows
        "PREFECT_FLOWS_DEFAULT_RETRIES": "2",  # not meant for flows that pay: see test_default_retries_do_not_apply
        "IMAGEGEN_WORKDIR": str(folder),
        "SEGMIND_API_KEY": "k",
        "COLUMNS": "200",
    }
    found = Site(folder, environment["PREFECT_API_URL"], environment, [])

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"{found.api}/health") as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        found.launch("server", "start", "--port", str(port))
        until(healthy, 120)
        found.call("work-pool", "create", "imagegen", "--type", "process")
        found.call("deploy", "--all", "--prefect-file", "deployments/prefect.yaml", cwd=ROOT)
        found.restart_worker()
        yield found
    finally:
        for process in reversed(found.running):
            process.terminate()
        for process in reversed(found.running):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


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


def test_cancel_holds_what_was_sent(site: Site, tmp_path: Path) -> None:
    """`prefect flow-run cancel` ends Cancelled; sent rows are held with their ids, and the next run fetches them."""
    path, store = numbered(tmp_path, 30), tmp_path / "store"
    with EmbeddedGateway(GatewaySettings(latency_s=8.0)) as gateway:
        options = {"base_url": gateway.url, "max_in_flight": 6}
        arguments = {"manifest": path, "store": str(store), "backend": "segmind", "options": options}
        run_id = site.start("generate-on-demand", **arguments)
        until(lambda: len(gateway.account_state.records) >= 6, 120)
        site.call("flow-run", "cancel", run_id)
        site.wait(run_id, "Cancelled")
        sent = len(gateway.account_state.records)
        assert sent < 30
        (report,) = until(lambda: list(store.glob("runs/*/report.json")), 60)
        figures = json.loads(report.read_text())
        assert figures["stop_reason"] == "signal"
        assert figures["held"] == 6
        (told,) = until(lambda: site.finished(run_id), 60)
        assert (told["run_id"], told["state"], told["stop_reason"]) == (figures["run_id"], "Cancelled", "signal")
        assert (told["counts"]["rows"], told["counts"]["held"], told["cost_usd"]) == (30, 6, 0.0)
        gateway.account_state.settings.latency_s = 0.0
        again = site.start("generate-on-demand", **arguments)
        assert site.wait(again, "Completed", "Failed", "Crashed")["state_name"] == "Completed"
        assert gateway.account_state.statistics()["billed_twice"] == 0
        assert len(gateway.account_state.billed) == 30


def test_retry_in_the_ui_goes_on_under_the_same_cap(site: Site, tmp_path: Path) -> None:
    """The UI's Retry of a run that stopped at its cap ends at once, without a call, and says what to do instead.

    `PREFECT_FLOWS_DEFAULT_RETRIES`, which the site's worker has, makes nothing run twice.
    """
    store, words = tmp_path / "store", "stopped (budget): one more image could exceed options.max_cost_usd"
    with EmbeddedGateway(GatewaySettings(price_usd=0.04)) as gateway:
        options = {"base_url": gateway.url, "max_cost_usd": 0.5}
        arguments = {"manifest": numbered(tmp_path, 30), "store": str(store), "backend": "segmind", "options": options}
        run_id = site.start("generate-on-demand", **arguments)
        stopped = site.wait(run_id, "Completed", "Failed", "Crashed")
        assert (stopped["state_name"], stopped["state_type"], stopped["run_count"]) == ("Failed", "FAILED", 1)
        assert stopped["state"]["message"].startswith(words)
        assert gateway.account_state.calls["submit"] == 12
        site.retry(run_id)
        until(lambda: site.flow_run(run_id)["run_count"] == 2, 120)
        again = site.wait(run_id, "Completed", "Failed", "Crashed")
        assert (again["state_name"], again["run_count"]) == ("Failed", 2)
        assert "this flow run's cap is used; start a new run to allow more" in again["state"]["message"]
        assert "0.4800 USD over the 2 executions of this flow run" in again["state"]["message"]
        assert gateway.account_state.calls["submit"] == len(gateway.account_state.billed) == 12
        first, second = until(lambda: (told := site.finished(run_id)) and len(told) == 2 and told, 60)
        assert (first["stop_reason"], second["stop_reason"]) == ("budget", "budget")
        assert (first["order"], second["order"]["executions"]) == (None, 2)
        fresh = site.start("generate-on-demand", **arguments)
        assert site.wait(fresh, "Completed", "Failed", "Crashed")["state_name"] == "Failed"
        assert len(gateway.account_state.billed) == 24


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


def test_a_run_whose_process_died_is_marked(site: Site, tmp_path: Path) -> None:
    """The automation on heartbeats marks a run as Crashed whose process was killed; run again, it is paid once."""
    shipped = yaml.safe_load((ROOT / "deployments" / "alerts.yaml").read_text())
    (silent,) = [one for one in shipped["automations"] if one["name"] == "imagegen-silent"]
    silent["trigger"]["within"] = 45
    alerts, store = tmp_path / "alerts.yaml", tmp_path / "store"
    alerts.write_text(yaml.safe_dump({"automations": [silent]}))
    site.call("automation", "create", "--from-file", str(alerts))
    # The worker that started the process would tell of its death: it dies first, as when a machine is gone.
    with EmbeddedGateway(GatewaySettings(latency_s=8.0)) as gateway:
        options = {"base_url": gateway.url, "max_in_flight": 6}
        arguments = {"manifest": numbered(tmp_path, 12), "store": str(store), "options": options}
        run_id = site.start("generate-on-demand", backend="segmind", **arguments)
        until(lambda: len(gateway.account_state.records) >= 6, 120)
        (beat,) = store.glob("runs/*/heartbeat.json")
        site.worker.kill()
        site.worker.wait()
        os.kill(json.loads(beat.read_text())["pid"], signal.SIGKILL)
        ended = site.wait(run_id, "Crashed")
        assert "nothing is paid twice" in ended["state"]["message"]
        site.restart_worker()
        gateway.account_state.settings.latency_s = 0.0
        again = site.start("generate-on-demand", backend="segmind", **arguments)
        assert site.wait(again, "Completed", "Failed", "Crashed")["state_name"] == "Completed"
        assert (len(gateway.account_state.billed), gateway.account_state.statistics()["billed_twice"]) == (12, 0)


def test_the_alerts_fire(site: Site, tmp_path: Path) -> None:
    """Prefect's server takes the automations of alerts.yaml; they fire for a refused run, not for a completed one."""
    shipped = yaml.safe_load((ROOT / "deployments" / "alerts.yaml").read_text())
    for one in shipped["automations"]:
        if one["name"] == "imagegen-silent":  # tried below
            one["enabled"] = False
            continue
        assert {action["type"] for action in one["actions"]} == {"send-notification"}
        one["actions"] = [{"type": "do-nothing"}]  # there is no block to send with
    alerts = tmp_path / "alerts.yaml"
    alerts.write_text(yaml.safe_dump(shipped))
    site.call("automation", "create", "--from-file", str(alerts))

    def fired() -> list[str]:
        wanted = {"event": {"name": ["prefect.automation.triggered"]}}
        events = site.post("/events/filter", {"filter": wanted, "limit": 50})["events"]
        names = (one["resource"]["prefect.resource.name"] for one in events)
        return sorted(name for name in names if name != "imagegen-silent")  # that of another test

    code = f"""
import sys
from prefect_imagegen.flows import generate_images
generate_images(sys.argv[1], {str(tmp_path / "store")!r}, "sandbox", return_state=True)
"""

    def run(path: str) -> None:
        assert warm_python.run("-c", code, path, env=site.environment, timeout=120).returncode == 0

    run(numbered(tmp_path, 2))
    run("nothing.parquet")
    until(lambda: len(fired()) >= 2, 60)
    time.sleep(2)
    assert fired() == ["imagegen-crashed", "imagegen-failed"]


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
