"""The Ray Serve deployment: opt-in (IMAGEGEN_TEST_RAY=1), since Ray takes most of a minute and a gigabyte."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not os.environ.get("IMAGEGEN_TEST_RAY"), reason="opt-in: IMAGEGEN_TEST_RAY=1"),
]
FOLDER = Path(__file__).parents[2] / "deployments" / "ray_serve"
MODEL = "flux-2-klein-9b"


def test_two_replicas_serve_the_api(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Two replicas on the CPU answer v1 calls side by side, in batches, and tell what they applied."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "start.py"
    config.write_text(
        "import signal, sys\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        "import ray\nfrom ray import serve\nfrom gpu_worker import worker\n"
        "ray.init(num_cpus=4, include_dashboard=False, logging_level='ERROR')\n"
        f"serve.start(http_options={{'host': '127.0.0.1', 'port': {port}}})\n"
        f"serve.run(worker({{'model': {str(tiny['distilled'])!r}, 'gpus': '0', 'replicas': '2', 'device': 'cpu',"
        " 'host': '127.0.0.1', 'megapixels': '0.02', 'batch_delay_ms': '300'}))\n"
        "print('serving', flush=True)\n"
        "signal.sigwait([signal.SIGTERM])\nserve.shutdown()\nray.shutdown()\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    environment |= {"PYTHONPATH": str(FOLDER), "RAY_USAGE_STATS_ENABLED": "0"}
    log = tmp_path / "ray.log"
    with log.open("w") as sink:
        process = subprocess.Popen([sys.executable, str(config)], stdout=sink, stderr=sink, env=environment)
    try:
        end = time.monotonic() + 240
        while "serving" not in log.read_text() and time.monotonic() < end:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": "k"}, timeout=60) as client:
            assert client.get("/health").json()["profile"] == "klein-distilled"
            with ThreadPoolExecutor(16) as threads:
                bodies = [{"prompt": f"cup {number}", "seed": number} for number in range(16)]
                answers = list(threads.map(lambda body: client.post(f"/v1/{MODEL}", json=body), bodies))
            assert {answer.status_code for answer in answers} == {200}, log.read_text()
            assert {answer.headers["x-imagegen-engine"] for answer in answers} == {"diffusers"}
            counts = set()
            for _ in range(40):  # replicas answer in turn, each with its own figures
                match = re.search(r"^imagegen_batch_size_count (\S+)", client.get("/metrics").text, re.MULTILINE)
                assert match
                counts.add(float(match[1]))
            assert max(counts) < 16
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
