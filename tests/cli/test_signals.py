"""Signals end a run from the command line, and the same command resumes it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.support import warm_python
from tests.support.command import MODULE, call, prompts_parquet, users_environment


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_home")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ctrl_c", [True, False])
@pytest.mark.parametrize("prefect", ["on", "off"])
def test_a_signal_stops_and_the_same_command_resumes(ctrl_c: bool, prefect: str, tmp_path: Path) -> None:
    """SIGTERM, or Ctrl-C to the process group, exits 3 with sent rows held; the same command does the rest."""
    path = prompts_parquet(tmp_path, prompt=[f"p{number}" for number in range(40)])
    with EmbeddedGateway(GatewaySettings(latency_s=1.0)) as gateway:
        words = ["generate", path, "--store", "out", "--base-url", gateway.url, "--json", "--max-in-flight", "8"]
        words += ["--prefect", prefect]
        process = warm_python.start(
            *("-m", MODULE, *words),
            cwd=tmp_path,
            env=users_environment(tmp_path, SEGMIND_API_KEY="k"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while gateway.account_state.calls["submit"] < 12:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        if ctrl_c:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 3, stderr
        figures = json.loads(stdout.splitlines()[-1])
        assert figures["stop_reason"] == "signal"
        assert figures["held"] > 0
        assert figures["not_run"] > 0
        resumed = call(*words, folder=tmp_path, SEGMIND_API_KEY="k")
        assert resumed.returncode == 0, resumed.stderr
        assert gateway.account_state.statistics()["billed_twice"] == 0
        assert len(gateway.account_state.billed) == 40
