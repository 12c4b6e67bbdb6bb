"""The deployments, for real: a server, a work pool, a worker, a run from the command line, and a cancellation."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect"]


@dataclass
class Site:
    """A Prefect server with our deployments and a worker; `call` runs Prefect's command line against it."""

    folder: Path
    api: str
    environment: dict[str, str]

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

    def flow_run(self, run_id: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.api}/flow_runs/{run_id}") as answer:
            return json.load(answer)

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment; its id."""
        words = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        said = self.call("deployment", "run", f"generate-images/{deployment}", *words)
        return re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", said)[0]

    def wait(self, run_id: str, *names: str) -> dict[str, Any]:
        """Wait until the run is in one of these states."""
        return until(lambda: (run := self.flow_run(run_id))["state_name"] in names and run, 180)


def until(look: Callable[[], Any], seconds: float) -> Any:
    """What `look` finds, as soon as it finds something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    from socket import socket  # noqa: PLC0415 - for this fixture alone

    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "IMAGEGEN_WORKDIR": str(folder),
        "SEGMIND_API_KEY": "k",
        "COLUMNS": "200",
    }
    running: list[subprocess.Popen[bytes]] = []

    def launch(*words: str) -> None:
        log = (folder / f"{words[0]}.log").open("wb")
        running.append(subprocess.Popen([*PREFECT, *words], cwd=folder, env=environment, stdout=log, stderr=log))
        log.close()

    found = Site(folder, environment["PREFECT_API_URL"], environment)

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"{found.api}/health") as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        launch("server", "start", "--port", str(port))
        until(healthy, 120)
        found.call("work-pool", "create", "imagegen", "--type", "process")
        found.call("deploy", "--all", "--prefect-file", "deployments/prefect.yaml", cwd=ROOT)
        launch("worker", "start", "--pool", "imagegen")
        yield found
    finally:
        for process in reversed(running):
            process.terminate()
        for process in reversed(running):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def manifest(folder: Path, count: int) -> str:
    path = folder / "prompts.parquet"
    pq.write_table(pa.table({"prompt": [f"prompt {number}" for number in range(count)]}), path)
    return str(path)


def test_a_worker_runs_the_deployment(site: Site, tmp_path: Path) -> None:
    """`prefect deployment run` on a process worker makes the images; both deployments are there, one scheduled."""
    run_id = site.start(
        "generate-on-demand", manifest=manifest(tmp_path, 5), store=str(tmp_path / "store"), backend="sandbox"
    )
    assert site.wait(run_id, "Completed", "Failed", "Crashed")["state_name"] == "Completed"
    assert len(list((tmp_path / "store" / "images").rglob("*.png"))) == 5
    request = urllib.request.Request(f"{site.api}/deployments/filter", b"{}", {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        deployments = {one["name"]: one for one in json.load(answer)}
    assert set(deployments) == {"generate-on-demand", "generate-nightly"}
    assert deployments["generate-nightly"]["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    steps = json.dumps([one["pull_steps"] for one in deployments.values()])
    assert str(ROOT) not in steps, "the deploying machine's directory must not be baked in"


def test_cancel_holds_what_was_sent(site: Site, tmp_path: Path) -> None:
    """`prefect flow-run cancel` ends Cancelled; sent rows are held with their ids, and the next run fetches them."""
    path, store = manifest(tmp_path, 30), tmp_path / "store"
    with EmbeddedGateway(GatewaySettings(latency_s=8.0)) as gateway:
        options = {"base_url": gateway.url, "max_in_flight": 6}
        arguments = {"manifest": path, "store": str(store), "backend": "segmind", "options": options}
        run_id = site.start("generate-on-demand", **arguments)
        until(lambda: len(gateway.books.records) >= 6, 120)
        site.call("flow-run", "cancel", run_id)
        site.wait(run_id, "Cancelled")
        sent = len(gateway.books.records)
        assert sent < 30
        (report,) = until(lambda: list(store.glob("runs/*/report.json")), 60)
        figures = json.loads(report.read_text())
        assert figures["stop_reason"] == "signal"
        assert figures["held"] == 6
        gateway.books.settings.latency_s = 0.0
        again = site.start("generate-on-demand", **arguments)
        assert site.wait(again, "Completed", "Failed", "Crashed")["state_name"] == "Completed"
        assert gateway.books.statistics()["billed_twice"] == 0
        assert len(gateway.books.billed) == 30


def test_the_command_line_uses_blocks(site: Site, tmp_path: Path) -> None:
    """`--store image-store/NAME --backend segmind/NAME` take everything from blocks; a missing one is refused."""
    store = tmp_path / "store"
    with EmbeddedGateway(GatewaySettings(api_key=SecretStr("SG_block"))) as gateway:
        code = (
            "from prefect_imagegen.blocks import ImageStore, Segmind\n"
            f"Segmind(api_key='SG_block', base_url={gateway.url!r}, api_version='v1').save('cli')\n"
            f"ImageStore(url={str(store)!r}).save('cli')\n"
        )
        subprocess.run([sys.executable, "-c", code], env=site.environment, check=True, timeout=120)

        def generate(name: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "prefect_imagegen.cli", "generate", manifest(tmp_path, 3), "--json"]
            command += ["--store", name, "--backend", "segmind/cli"]
            return subprocess.run(
                command, env=site.environment, capture_output=True, text=True, check=False, timeout=120
            )

        found = generate("image-store/cli")
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout.splitlines()[-1])["generated"] == 3
        assert gateway.books.calls["run"] == 3
        missing = generate("image-store/nobody")
    assert missing.returncode == 2
    assert "image-store/nobody" in missing.stderr
    assert "prefect block register" in " ".join(missing.stderr.split())
