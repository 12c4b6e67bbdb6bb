"""The deployments, for real: cancelled, tried again, died, and what the alerts say."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.deployments.prefect_yaml.conftest import ROOT, Site
from tests.deployments.terminal import until
from tests.support import warm_python
from tests.support.manifests import numbered

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(600)]


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
