"""What the documents tell operators to do, done to the letter: each block of them is run as it stands, in order.

The server is on PostgreSQL, where the machine has it, and asks for a password.
"""

import base64
import json
import os
import re
import shutil
import signal
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.store.object_store import close_connections
from tests.deployments import postgres
from tests.deployments.terminal import Terminal, section, until
from tests.support import prefect_homes
from tests.support.ports import free_port
from tests.support.seaweedfs import S3Server

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
GUIDES, DEPLOYMENTS = ROOT / "docs" / "guides", ROOT / "deployments" / "README.md"
SCHEDULES, RUN_BOOK = GUIDES / "schedules.md", GUIDES / "operations.md"
_LONG_S = 40.0
"""An image takes longer than commands on a busy machine take to stop the run."""
_DATABASE = "postgresql+asyncpg://prefect:PASSWORD@db.example.com:5432/prefect"


@dataclass
class Place:
    """A machine on which somebody follows the documents."""

    terminal: Terminal
    gateway: EmbeddedGateway
    api: str

    @property
    def worker_folder(self) -> Path:
        return self.terminal.folder / "srv"

    @property
    def store(self) -> Path:
        return self.worker_folder / "images"

    def follow(self, path: Path, heading: str, **words: str) -> list[str]:
        """Run all blocks of a section; what each printed."""
        return [self.terminal.follow(block, **words) for block in section(path, heading)]

    def ask(self, path: str, content: Any = None) -> Any:
        """Call Prefect's API, with the password that the shell has."""
        secret = self.terminal.environment.get("PREFECT_API_AUTH_STRING", "")
        headers = {"authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"} if secret else {}
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.api}{path}", data, headers | {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        try:
            return self.ask("/health") is True
        except OSError:
            return False

    def ended(self, run_id: str) -> dict[str, Any]:
        """Wait until a flow run has ended."""

        def look() -> Any:
            run = self.ask(f"/flow_runs/{run_id}")
            return run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") and run

        return until(look, 200)

    def warnings(self, run_id: str) -> list[str]:
        """The warnings in the log of a flow run."""
        wanted = {"logs": {"flow_run_id": {"any_": [run_id]}, "level": {"ge_": 30}}}
        return [log["message"] for log in self.ask("/logs/filter", wanted)]

    def start_run(self) -> str:
        """Start a run of the deployment, by the command of the run-book."""
        _, again = section(RUN_BOOK, "A run that died")
        return run_id_in(self.terminal.follow(again))


def run_id_in(text: str) -> str:
    """The id of the flow run that a command has printed."""
    (found,) = set(re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", text))
    return str(found)


def write_manifest(path: Path, count: int, what: str) -> None:
    pq.write_table(pa.table({"prompt": [f"{what} {number}" for number in range(count)]}), path)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, prefect_tables: Path) -> Iterator[Callable[..., Place]]:
    """Makes places; the servers and workers that were started there end with the tests."""
    with ExitStack() as stack:

        def make(**more: str) -> Place:
            folder, port = tmp_path_factory.mktemp("place"), free_port()
            prefect_homes.furnish(folder / "home", prefect_tables)
            (folder / "srv").mkdir()
            shutil.copytree(ROOT / "deployments", folder / "deployments")
            gateway = stack.enter_context(EmbeddedGateway(GatewaySettings()))
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
            environment |= {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
                "PREFECT_HOME": str(folder / "home"),
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_SERVER_API_PORT": str(port),
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                "PREFECT_IMAGEGEN_CACHE": str(folder / "cache"),
                "SEGMIND_BASE_URL": gateway.url,
                "COLUMNS": "200",
            }
            changes = {"/srv/imagegen": str(folder / "srv"), ":4200": f":{port}"}
            terminal = Terminal(folder, environment | more, changes)
            stack.callback(terminal.close)
            return Place(terminal, gateway, f"http://127.0.0.1:{port}/api")

        make.stack = stack
        yield make


@pytest.fixture(scope="module")
def place(places: Any) -> Place:
    """Where deployments/README.md was followed up to its third step, on PostgreSQL and with a password."""
    found: Place = places()
    url = f"sqlite+aiosqlite:///{found.terminal.folder}/prefect.db"
    if postgres.programs() is not None:
        url = places.stack.enter_context(postgres.serving())
    found.terminal.changes = {**found.terminal.changes, _DATABASE: url}
    found.follow(DEPLOYMENTS, "Server settings that matter", PASSWORD="x-y-z")
    server, setup, worker, _ = section(DEPLOYMENTS, "Deployments")[:4]
    found.terminal.follow(server)
    until(found.is_up, 120)
    found.terminal.follow(setup)
    found.terminal.follow(worker)
    write_manifest(found.worker_folder / "prompts.parquet", 5, "first")
    return found


def test_the_deployments_page(place: Place) -> None:
    """A run by the page's commands is cancelled by them; what was sent is fetched by the next, and paid once."""
    *_, run = section(DEPLOYMENTS, "Deployments")[:4]
    start, cancel = run.code.strip().splitlines()
    write_manifest(place.worker_folder / "prompts.parquet", 12, "page")
    place.gateway.account_state.settings.latency_s = _LONG_S
    run_id = run_id_in(place.terminal.follow(type(run)("bash", start)))
    until(lambda: place.gateway.account_state.records, 120)
    place.terminal.follow(type(run)("bash", cancel), FLOW_RUN_ID=run_id)
    assert place.ended(run_id)["state_name"] == "Cancelled"
    place.gateway.account_state.settings.latency_s = 0.0
    (printed,) = place.follow(DEPLOYMENTS, "Options of a run")
    assert place.ended(run_id_in(printed))["state_name"] == "Completed"
    assert place.gateway.account_state.statistics()["billed_twice"] == 0
    assert len(list(place.store.glob("images/*/*.png"))) == 12


def test_the_alerts_page(place: Place) -> None:
    """The shipped automations are taken as they are, with the id of a block for notifications put in."""
    kind = next(one for one in place.ask("/block_types/filter", {}) if one["slug"] == "slack-webhook")
    wanted = {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
    schema = place.ask("/block_schemas/filter", wanted)[0]
    content = {"name": "ops", "data": {"url": "https://hooks.slack.com/services/none"}}
    made = place.ask("/block_documents/", content | {"block_type_id": kind["id"], "block_schema_id": schema["id"]})
    alerts = place.terminal.folder / "deployments" / "alerts.yaml"
    alerts.write_text(alerts.read_text().replace(str(uuid.UUID(int=0)), made["id"]))
    place.follow(DEPLOYMENTS, "Alerts")
    assert {one["name"] for one in place.ask("/automations/filter", {})} == {
        "imagegen-failed",
        "imagegen-crashed",
        "imagegen-silent",
    }


def test_limits_and_their_slots(place: Place) -> None:
    """A limit is made and used by the page's commands; slots that leaked are given back by those of the run-book."""
    write_manifest(place.worker_folder / "prompts.parquet", 4, "limit")
    (printed,) = place.follow(DEPLOYMENTS, "Calls across flow runs")
    run_id = re.findall(r"flow-run/([0-9a-f-]{36})", printed)[-1]
    assert place.ended(run_id)["state_name"] == "Completed"
    limit = place.ask("/v2/concurrency_limits/segmind")
    assert (limit["limit"], limit["active_slots"]) == (32, 0)
    place.ask("/v2/concurrency_limits/increment", {"names": ["segmind"], "slots": 7, "mode": "concurrency"})
    settings, reset = section(RUN_BOOK, "Slots of concurrency limits")
    assert settings in section(DEPLOYMENTS, "Server settings that matter")
    assert "7" in place.terminal.follow(reset, LIMIT="segmind")
    assert place.ask("/v2/concurrency_limits/segmind")["active_slots"] == 0


def _stored_ids(place: Place) -> list[Path]:
    """The request ids that the store's claims have."""
    return list(place.store.glob("ledger/claims/*/*/*.id.json"))


def test_the_run_book(place: Place) -> None:
    """A dead run, a planned stop of a worker, a new key and a higher cap: its commands do what it says of them."""
    gateway = place.gateway
    write_manifest(place.worker_folder / "prompts.parquet", 12, "book")
    look, again = section(RUN_BOOK, "A run that died")
    before = len(gateway.account_state.billed)
    gateway.account_state.settings.latency_s = 8.0
    ids_before = len(_stored_ids(place))
    place.start_run()
    # A call whose id is not stored yet would rightly be held afterwards.
    until(lambda: len(_stored_ids(place)) == ids_before + 12, 120)
    worker = place.terminal.standing[-1]
    worker.kill()  # the machine is gone: nobody tells the server
    worker.wait()
    beats = sorted(place.store.glob("runs/*/heartbeat.json"))
    died = json.loads(beats[-1].read_text())
    os.kill(died["pid"], signal.SIGKILL)
    gateway.account_state.settings.latency_s = 0.0
    worker_block = section(DEPLOYMENTS, "Deployments")[2]
    place.terminal.follow(worker_block)
    assert place.ended(run_id_in(place.terminal.follow(again)))["state_name"] == "Completed"
    assert len(gateway.account_state.billed) - before == 12

    gateway.account_state.settings.latency_s = _LONG_S
    write_manifest(place.worker_folder / "prompts.parquet", 12, "stop")
    asked = len(gateway.account_state.records)
    run_id = place.start_run()
    until(lambda: len(gateway.account_state.records) > asked, 120)
    stop, resume = section(RUN_BOOK, "Stopping a worker")
    place.terminal.follow(stop, FLOW_RUN_ID=run_id)
    assert place.ended(run_id)["state_name"] == "Cancelled"
    place.terminal.end(place.terminal.standing[-1])
    place.terminal.follow(worker_block)
    place.terminal.follow(resume)
    gateway.account_state.settings.latency_s = 0.0
    key, resend = section(RUN_BOOK, "Rotating a key")
    place.terminal.follow(key)
    assert place.ended(place.start_run())["state_name"] == "Completed"
    (report, *_) = sorted(place.store.glob("runs/*/report.json"))
    assert "0 rows" in place.terminal.follow(resend, STORE=str(place.store), RUN=report.parent.name)

    write_manifest(place.worker_folder / "prompts.parquet", 3, "cap")
    (printed,) = place.follow(RUN_BOOK, "Raising a cap")
    assert place.ended(run_id_in(printed))["state_name"] == "Completed"
    assert gateway.account_state.statistics()["billed_twice"] == 0
    until(lambda: "abandoned" in place.terminal.follow(look, STORE=str(place.store)), 120)


def test_the_server_restarts_amid_a_run(place: Place) -> None:
    """A run goes on while the server is away, and ends as if nothing had been; its log tells of it once."""
    write_manifest(place.worker_folder / "prompts.parquet", 64, "restart")
    gateway = place.gateway
    before, gateway.account_state.settings.latency_s = len(gateway.account_state.billed), 1.0
    run_id = place.start_run()
    until(lambda: len(gateway.account_state.billed) > before, 120)
    place.terminal.end(place.terminal.standing[0])
    away_since, gateway.account_state.settings.latency_s = len(gateway.account_state.billed), 15.0
    until(lambda: len(gateway.account_state.billed) >= away_since + 12, 120)
    # The run has to last until it sees the server again, however long that takes to start.
    gateway.account_state.settings.latency_s = 45.0
    place.terminal.follow(section(DEPLOYMENTS, "Deployments")[0])
    until(place.is_up, 120)
    until(lambda: any("is back" in text for text in place.warnings(run_id)), 120)
    gateway.account_state.settings.latency_s = 0.0
    ended = place.ended(run_id)
    assert (ended["state_name"], ended["run_count"]) == ("Completed", 1)
    assert (len(gateway.account_state.billed) - before, gateway.account_state.statistics()["billed_twice"]) == (64, 0)
    said = [text.partition(" since ")[0].partition(", after ")[0] for text in place.warnings(run_id)]
    # Prefect may lose the first, which is said while nobody takes it.
    assert said[-1:] == ["The Prefect server is back"]
    assert said[:-1] in ([], ["The Prefect server cannot be reached"])


def test_the_page_on_schedules(places: Any, s3: S3Server) -> None:
    """The page on schedules, followed in order, ends with images in its bucket, each paid once."""
    system = s3fs.S3FileSystem(**s3.owner_options, skip_instance_cache=True, use_listings_cache=False)
    try:
        if not system.exists("data"):
            system.mkdir("data")
        place = places(
            AWS_ENDPOINT_URL=s3.endpoint,
            AWS_ACCESS_KEY_ID=str(s3.owner_options["key"]),
            AWS_SECRET_ACCESS_KEY=str(s3.owner_options["secret"]),
            AWS_DEFAULT_REGION="us-east-1",
        )
        write_manifest(place.terminal.folder / "prompts.parquet", 6, "readme")
        system.put_file(str(place.terminal.folder / "prompts.parquet"), "data/prompts.parquet")
        printed = ""
        for block in section(SCHEDULES, "On a schedule"):
            printed = place.terminal.follow(block)
            if "server start" in block.code:
                until(place.is_up, 120)
        ended = place.ended(run_id_in(printed))
        assert ended["state_name"] == "Completed", ended["state"]["message"]
        assert len(system.find("images/spring/images")) == 6
        assert len(place.gateway.account_state.billed) == 6
    finally:
        close_connections(system)
