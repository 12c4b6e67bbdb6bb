"""The time that faults cost: a run against an API that misbehaves, as a ratio to the same run without faults.

    python benchmarks/chaos.py [--rows 4000] [--case chaos] [--api-version v2]

The gateway (engine `static`) runs in a process of its own. `chaos` is benchmarks/chaos.json: a fifth of the calls go
wrong in all ways that the fault script knows, with 5 s of 429 storms. `hung submits` never get an answer, one of a
hundred; `hung jobs` are accepted, and take ten minutes, one of a hundred: those are left to the next run.
The gateway's own records say what was billed twice.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.gateway.faults import load_faults
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.providers.settings import ProviderSettings

IN_FLIGHT = 64
LATENCY_S = 2.0
CASES: dict[str, list[dict[str, Any]]] = {
    "no faults": [],
    "chaos": json.loads((Path(__file__).parent / "chaos.json").read_text())["faults"],
    "hung submits": [{"fault": "hang", "share": 0.01, "when": "after"}],
    "hung jobs": [{"fault": "hang", "share": 0.01, "when": "during", "seconds": 600}],
}
OUTAGES_S = {"chaos": 5.0}


def serve(script: str) -> None:
    """Serve until stdin is closed, then print the counters."""
    settings = GatewaySettings(engine="static", static_bytes=20_000, latency_s=LATENCY_S, faults=load_faults(script))
    with EmbeddedGateway(settings) as gateway:
        print(gateway.url, flush=True)
        sys.stdin.read()
        print(json.dumps(gateway.account_state.statistics()), flush=True)


@contextlib.contextmanager
def gateway(folder: str, case: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Run a gateway in a process of its own: its URL, and its counters, which are filled in when it has ended."""
    script = Path(folder) / "faults.json"
    script.write_text(json.dumps({"faults": CASES[case]}))
    command = [sys.executable, __file__, "--serve", str(script)]
    statistics: dict[str, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().strip(), statistics
        process.stdin.close()
        statistics |= json.loads(process.stdout.read())


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--case", choices=list(CASES), action="append", help="only these, beside the one without")
    parser.add_argument("--api-version", choices=["v1", "v2"], default="v2")
    parser.add_argument("--serve")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    print(
        f"{options.rows} rows, {options.api_version}, {LATENCY_S} s latency, {IN_FLIGHT} in flight; "
        f"{os.cpu_count()} cores, Python {platform.python_version()}\n"
    )
    print(f"{'case':14} {'seconds':>8} {'ratio':>6} {'images':>7} {'held':>5} {'calls':>6} {'billed twice':>13}")
    base = 0.0
    for case in CASES:
        if base and options.case and case not in options.case:
            continue
        with tempfile.TemporaryDirectory() as folder:
            manifest = f"{folder}/prompts.parquet"
            pq.write_table(pa.table({"prompt": [f"scene {n}" for n in range(options.rows)]}), manifest)
            with gateway(folder, case) as (url, statistics):
                started = time.monotonic()
                result = prefect_imagegen.generate(
                    manifest,
                    f"{folder}/store",
                    backend=ProviderSettings(base_url=url, api_key=SecretStr("k"), max_in_flight=IN_FLIGHT),
                    api_version=options.api_version,
                    history_lag=5.0,
                    deadline=30.0,
                    max_attempts=10,
                    values={"image_format": "jpeg"},
                )
                seconds = time.monotonic() - started
        base = base or seconds
        ratio = (seconds - OUTAGES_S.get(case, 0.0)) / base
        print(
            f"{case:14} {seconds:8.1f} {ratio:6.2f} {result.generated:7} {result.held:5} {result.calls:6} "
            f"{statistics['billed_twice']:13}",
            flush=True,
        )


if __name__ == "__main__":
    main()
