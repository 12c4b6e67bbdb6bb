"""The command line as a user meets it: a process of its own, its output, its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import warm_python

MODULE = "prefect_imagegen.cli.main"
FIELDS = (
    *("run_id", "store", "rows", "generated", "reused", "invalid", "failed", "held", "not_run", "flagged", "calls"),
    *("cost_usd", "maybe_paid", "seconds", "stop_reason"),
)
STATES = ("generated", "reused", "invalid", "failed", "held", "not_run")


def users_environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a user whose Prefect home is `prefect-home` in a folder, with no settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SEGMIND_"))}
    return kept | {"PREFECT_HOME": str(folder / "prefect-home"), "DO_NOT_TRACK": "1", "COLUMNS": "200"} | more


def call(*words: object, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command in a folder, in an interpreter that has imported the package; see warm_python.py."""
    ended = warm_python.run("-m", MODULE, *words, cwd=folder, env=users_environment(folder, **environment), timeout=300)
    assert "Traceback" not in ended.stderr + ended.stdout, ended.stderr
    return ended


def call_fresh(*words: object, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The same in a fresh interpreter, for tests of what is imported or of variables that an interpreter reads."""
    ended = subprocess.run(
        [sys.executable, "-m", MODULE, *map(str, words)],
        cwd=folder,
        env=users_environment(folder, **environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in ended.stderr + ended.stdout, ended.stderr
    return ended


def last_line(ended: "subprocess.CompletedProcess[str]") -> dict[str, object]:
    """The JSON object of the last line of --json, with its promised fields and sum."""
    figures: dict[str, object] = json.loads(ended.stdout.splitlines()[-1])
    assert tuple(figures) == FIELDS
    assert sum(figures[state] for state in STATES) == figures["rows"]  # type: ignore[misc]
    return figures


def prompts_parquet(folder: Path, **columns: list[object]) -> Path:
    """A manifest of these columns; without any, of three prompts, two of which are the same."""
    path = folder / "prompts.parquet"
    pq.write_table(pa.table(columns or {"prompt": ["a cup", "a hat", "a cup"]}), path)
    return path
