"""Workers: real `serve --engine diffusers` processes over a tiny pipeline with random weights."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

_START_S = 90
# The pipeline is so small that threads only slow it down (measured: 14 times slower with two).
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where the extra is not installed there is nothing to test."""
    try:
        import diffusers  # noqa: F401, PLC0415 - only to see whether it is there
        import torch  # noqa: F401, PLC0415
    except ImportError:
        return True
    return None


@dataclass
class Worker:
    """A process that serves, and its base URL."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path

    @property
    def client(self) -> httpx.Client:
        """A client with a key; to be closed."""
        return httpx.Client(base_url=self.url, headers={"x-api-key": "any"}, timeout=60)

    def wait_until_warm(self) -> None:
        """Return when /health says 200."""
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            if httpx.get(f"{self.url}/health").status_code == 200:
                return
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def metric(self, name: str) -> float:
        """One figure of /metrics; 0 if nothing was counted yet."""
        match = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        return float(match[1]) if match else 0.0


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a pipeline of each kind; the name tells the model that it serves."""
    folders = {}
    for kind in ("distilled", "base", "kv"):
        folders[kind] = tmp_path_factory.mktemp("models") / f"tiny-{kind}-klein-9B"
        script = Path(__file__).with_name("tiny_klein.py")
        command = [sys.executable, str(script), str(folders[kind]), kind]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | ENVIRONMENT)
    return folders


@pytest.fixture
def start_worker(tmp_path: Path, tiny: dict[str, Path]) -> Iterator[Callable[..., Worker]]:
    """Start a worker on a free port: `start_worker("distilled", "--max-batch", "2")`. It is ended with the test."""
    workers: list[Worker] = []

    def start(kind: str = "distilled", *options: str, warm: bool = True) -> Worker:
        log = tmp_path / f"worker-{len(workers)}.log"
        command = [sys.executable, "-m", "prefect_imagegen.cli.main", "serve", "--engine", "diffusers"]
        command += ["--model", str(tiny[kind]), "--device", "cpu", "--port", "0", "--megapixels", "0.02", *options]
        with log.open("w") as sink:
            process = subprocess.Popen(command, stderr=sink, stdout=sink, text=True, env=os.environ | ENVIRONMENT)
        end = time.monotonic() + _START_S
        while not (address := re.search(r"http://\S+:\d+", log.read_text())) and time.monotonic() < end:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        assert address, log.read_text()
        worker = Worker(process, address[0].rstrip(","), log)
        workers.append(worker)
        if warm:
            worker.wait_until_warm()
        return worker

    yield start
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGKILL)
        worker.process.wait(30)
