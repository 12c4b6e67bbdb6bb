"""A Prefect server, a work pool and a worker, with the deployments of this repository."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deployments.terminal import until
from tests.support import prefect_homes
from tests.support.ports import free_port

ROOT = Path(__file__).parents[3]
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
