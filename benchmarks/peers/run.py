"""This project beside its peers, against one gateway: speed, memory, and what crashes, storms and hung calls cost.

    python benchmarks/peers/run.py [--images 400] [--peer NAME]

Every peer gets a virtual environment of its own beside this file (made on the first run, ignored by git). The gateway
(engine `static`: distinct JPEGs of 130 kB) runs in a process of its own and counts what it bills. A case that a peer
does not finish in time says so.
"""

import argparse
import base64
import contextlib
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
IN_FLIGHT = 16
LATENCY_S = 0.5
PATIENCE_S = 240.0
STORM = {"fault": "status", "status": 429, "window": [2.0, 32.0], "seconds": 1}
HUNG = {"fault": "hang", "share": 0.01, "seed": 5}


@dataclass(frozen=True)
class Peer:
    """A peer: its script, the packages it needs, and more arguments; `openai`: it needs an OpenAI-compatible route."""

    script: str
    needs: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    openai: bool = False


PEERS = {
    "aiohttp loop": Peer("aiohttp_loop.py", ("aiohttp", "pyarrow")),
    "naive Prefect": Peer("naive_prefect.py", ("prefect>=3.8,<4", "fastapi<0.151", "httpx", "pyarrow")),
    "NeMo Data Designer": Peer("nemo.py", ("data-designer==0.9.6", "pyarrow"), openai=True),
    "prefect-imagegen, v1": Peer("ours.py", (str(ROOT),), ("v1",)),
    "prefect-imagegen, v2": Peer("ours.py", (str(ROOT),), ("v2",)),
}


def serve(faults: str) -> None:
    """Serve the gateway, and its v1 as an OpenAI route on a second port; a line on stdin asks for the counters."""
    import httpx

    from prefect_imagegen.gateway.faults import FaultScript
    from prefect_imagegen.gateway.server import EmbeddedGateway
    from prefect_imagegen.gateway.settings import GatewaySettings

    script = FaultScript.model_validate({"faults": json.loads(faults)})
    settings = GatewaySettings(engine="static", static_bytes=130_000, latency_s=LATENCY_S, faults=script)
    limits = httpx.Limits(max_connections=None)
    with EmbeddedGateway(settings) as gateway, httpx.Client(timeout=None, limits=limits) as client:

        class OpenAI(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name is http.server's
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                body = {"prompt": request["prompt"], "image_format": "jpeg"}
                answer = client.post(f"{gateway.url}/v1/flux-2-klein-9b", json=body, headers={"x-api-key": "k"})
                data = answer.content
                if answer.status_code == 200:
                    data = json.dumps({"data": [{"b64_json": base64.b64encode(data).decode()}]}).encode()
                self.send_response(answer.status_code)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        adapter = ThreadingHTTPServer(("127.0.0.1", 0), OpenAI)
        adapter.daemon_threads = True
        threading.Thread(target=adapter.serve_forever, daemon=True).start()
        print(json.dumps([gateway.url, f"http://127.0.0.1:{adapter.server_address[1]}/v1"]), flush=True)
        for _ in sys.stdin:
            print(json.dumps(gateway.account_state.statistics()), flush=True)
    os._exit(0)  # hung calls would keep their threads


class Server:
    """The process of the gateway."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.urls: list[str] = json.loads(process.stdout.readline())  # type: ignore[union-attr]

    def statistics(self) -> dict[str, int]:
        """The gateway's counters so far."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        statistics: dict[str, int] = json.loads(self._process.stdout.readline())
        return statistics


@contextlib.contextmanager
def server(*faults: dict[str, Any]) -> Iterator[Server]:
    """Run a gateway in a process of its own."""
    command = [sys.executable, __file__, "--serve", json.dumps(faults)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


def python_of(peer: Peer) -> Path:
    """The interpreter of a peer's own environment, made on the first call. Raises CalledProcessError."""
    folder = HERE / f".venv-{Path(peer.script).stem}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *peer.needs], check=True, capture_output=True)
        (folder / "ready").touch()
    return python


def wrapped(command: list[str]) -> None:
    """Run a command to its end and print seconds, CPU seconds and peak memory of its processes."""
    started = time.monotonic()
    code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {"seconds": time.monotonic() - started, "cpu": used.ru_utime + used.ru_stime, "rss": used.ru_maxrss / 1e3}
    print(json.dumps(figures | {"code": code}))


def start(peer: Peer, manifest: Path, folder: Path, server: Server) -> "subprocess.Popen[str]":
    """Start a peer in a process group of its own."""
    command = [str(python_of(peer)), str(HERE / peer.script), str(manifest), server.urls[peer.openai], str(folder)]
    command += [str(IN_FLIGHT), *peer.arguments]
    environment = os.environ | {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment |= {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", "DO_NOT_TRACK": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, "--wrap", json.dumps(command)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def end(process: "subprocess.Popen[str]") -> dict[str, float] | None:
    """Seconds, CPU seconds and memory that a process used; None if it does not end in time."""
    try:
        return dict(json.loads(process.communicate(timeout=PATIENCE_S)[0]))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None


def run(
    peer: Peer, images: int, *faults: dict[str, Any], kill: bool = False
) -> tuple[dict[str, float] | None, dict[str, int]]:
    """Run one case: what the peer used, and the gateway's counters; with `kill` it is killed halfway and restarted."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, server(*faults) as gateway:
        folder = Path(name)
        write_manifest(folder / "prompts.parquet", images)
        process = start(peer, folder / "prompts.parquet", folder, gateway)
        if kill:
            while gateway.statistics()["billed"] < images / 2:
                assert process.poll() is None, "ended before it could be killed"
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            process = start(peer, folder / "prompts.parquet", folder, gateway)
        return end(process), gateway.statistics()


def write_manifest(path: Path, images: int) -> None:
    """Write a manifest of distinct prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": [f"scene number {n}" for n in range(images)]}), path)


def measure(peer: Peer, images: int) -> dict[str, str]:
    """Measure one peer: its row of the table."""
    small = run(peer, IN_FLIGHT)[0]
    plain, statistics = run(peer, images)
    if plain is None or small is None or plain["code"] or statistics["billed"] < images:
        return {"images/s": f"n/a: {statistics['billed']} of {images} images, exit {plain and plain['code']}"}
    # The time that a peer needs to start does not count as its speed.
    seconds, cpu = plain["seconds"] - small["seconds"] + LATENCY_S, plain["cpu"] - small["cpu"]
    row = {
        "start s": f"{small['seconds'] - LATENCY_S:.1f}",
        "images/s": f"{images / seconds:.1f}",
        "CPU ms/image": f"{1000 * cpu / (images - IN_FLIGHT):.1f}",
        "peak RSS MB": f"{plain['rss']:.0f}",
    }
    killed, statistics = run(peer, images, kill=True)
    row["paid twice after kill -9"] = f"{statistics['billed_twice']} of {images}" if killed else "n/a: no end"
    storm, statistics = run(peer, images, STORM)
    missing = images - statistics["billed"]
    row["lost to a 30 s storm"] = f"{storm['seconds'] - plain['seconds']:.0f} s" if storm else f"> {PATIENCE_S:.0f} s"
    row["lost to a 30 s storm"] += f", {missing} images" if missing > 0 else ""
    hung, _ = run(peer, images, HUNG)
    row["makespan, 1 % hung"] = f"{hung['seconds'] / plain['seconds']:.1f} x" if hung else f"> {PATIENCE_S:.0f} s"
    return row


def main() -> None:
    """Measure all peers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--peer", choices=list(PEERS), action="append")
    parser.add_argument("--serve")
    parser.add_argument("--wrap")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
    if options.wrap:
        wrapped(json.loads(options.wrap))
        return
    print(
        f"{options.images} images, {LATENCY_S} s latency, {IN_FLIGHT} in flight, JPEG 130 kB; {os.cpu_count()} cores, "
        f"Python {platform.python_version()}\n"
    )
    columns: list[str] = []
    for name in options.peer or PEERS:
        try:
            row = measure(PEERS[name], options.images)
        except subprocess.CalledProcessError as error:
            row = {"images/s": f"n/a: cannot be installed: {error.stderr.decode()[-200:].strip()}"}
        if not columns:
            columns = list(row)
            print(f"| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
        print(f"| {name} | {' | '.join(row.get(column, '') for column in columns)} |", flush=True)


if __name__ == "__main__":
    main()
