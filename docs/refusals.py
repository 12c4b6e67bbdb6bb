"""The page of refusals, made by running the program: `python docs/refusals.py` writes it, a test compares it.

Every case is a folder of files and one command. What the command prints stands on the page, with the folder's path,
the ports and the times of the machine that ran it left out.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import SecretStr

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings

PAGE = Path(__file__).parent / "guides" / "refusals.md"
HEAD = """# When the program says no

<!-- snippets: compared by tests/cli/test_refusals.py -->

The refusals that people meet most, each made by running the command below it. All of them end with exit code 2, before
anything is written or spent. This page is made by `python docs/refusals.py`; a test holds it against the program.
"""
PLAN = "plan {} --store out"
ONE_ROW = {"prompts.csv": "prompt\na red mug\n"}
Maker = Callable[[Path], object]


@dataclass(frozen=True)
class Refusal:
    """A case: what it is, the files it needs (text, bytes, or what makes one), and the command's arguments."""

    title: str
    command: str
    files: dict[str, str | bytes | Maker] = field(default_factory=dict)
    shown: str | None = None
    """The file that the page shows; None: none."""
    environment: dict[str, str] = field(default_factory=dict)
    gateway: GatewaySettings | None = None
    """An API that listens; its address stands for `{api}` in the command."""


def parquet(**columns: list[object]) -> Maker:
    """Make a Parquet file of these columns."""
    return lambda path: pq.write_table(pa.table(columns), path)


def csv(title: str, text: str | bytes, *options: str) -> Refusal:
    """A CSV file that `plan` refuses."""
    command = " ".join([PLAN.format("products.csv"), *options])
    return Refusal(title, command, {"products.csv": text}, "products.csv" if isinstance(text, str) else None)


CASES = [
    Refusal("The manifest is not there", PLAN.format("prompts.parquet")),
    csv("No column of prompts", "id,description\n1,a red mug\n"),
    csv("Values that a field cannot have", "prompt,seed,steps\na red mug,seven,4\na blue mug,7,400\n,7,4\n"),
    csv("A mapping to a column that is not there", "id,text\n1,a red mug\n", "--column prompt=txt"),
    csv("A file that is not UTF-8", "prompt\na caf\u00e9\n".encode("cp1252")),
    csv("A quote that is never closed", 'id,prompt\n1,"a red mug\n2,a blue mug\n'),
    csv("A row with too many cells", "id,prompt\n1,a red mug, on a table\n"),
    csv("Several rows of one id", "sku,prompt\nA1,a red mug\nA1,a blue mug\n", "--id-column sku"),
    csv("A reference that is not there", "prompt,image_urls\non a beach,mug.jpg\n"),
    Refusal(
        "A reference that is no picture",
        PLAN.format("products.csv"),
        {"products.csv": "prompt,image_urls\non a beach,mug.jpg\n", "mug.jpg": "<html>Please sign in</html>"},
        "products.csv",
    ),
    csv(
        "Several addresses that cannot be told apart",
        'prompt,image_urls\non a beach,"https://cdn.example.com/a.jpg?v=1,https://cdn.example.com/b.jpg?v=2"\n',
    ),
    csv(
        "A signed address",
        "prompt,image_urls\non a beach,https://b.s3.amazonaws.com/a.jpg?X-Amz-Signature=0123\n",
    ),
    csv("An address of a private network", "prompt,image_urls\non a beach,http://192.168.1.5/a.jpg\n"),
    Refusal(
        "Files of a folder that do not fit together",
        PLAN.format("parts"),
        {
            "parts/a.parquet": parquet(prompt=["a red mug"], seed=[7]),
            "parts/b.parquet": parquet(prompt=["a blue mug"], seed=[["seven"]]),
        },
    ),
    Refusal(
        "A table that has a log",
        PLAN.format("table"),
        {"table/part-0.parquet": parquet(prompt=["a red mug"]), "table/_delta_log/00000000000000000000.json": "{}\n"},
    ),
    Refusal("A workbook", PLAN.format("prompts.xlsx"), {"prompts.xlsx": b"PK\x03\x04" + bytes(64)}),
    Refusal(
        "A broken line of JSON", PLAN.format("p.jsonl"), {"p.jsonl": '{"prompt": "a mug"}\n{"prompt": "a\n'}, "p.jsonl"
    ),
    Refusal("A value that no field takes", "plan prompts.csv --store out --set stepps=4", ONE_ROW),
    Refusal("No API key", "generate prompts.csv --store out", ONE_ROW),
    Refusal(
        "A key that the API does not take",
        "generate prompts.csv --store out --base-url {api}",
        ONE_ROW,
        environment={"SEGMIND_API_KEY": "an-old-key"},
        gateway=GatewaySettings(api_key=SecretStr("the-key")),
    ),
    Refusal(
        "A cap of nothing",
        "generate prompts.csv --store out --base-url {api} --max-cost-usd 0",
        ONE_ROW,
        environment={"SEGMIND_API_KEY": "the-key"},
        gateway=GatewaySettings(api_key=SecretStr("the-key")),
    ),
    Refusal("A pool without workers", "generate prompts.csv --store out --backend pool", ONE_ROW),
]


def run(case: Refusal) -> tuple[int, str]:
    """Exit code and printed text of a case, in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for file, content in case.files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8", newline="")
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)
        if case.gateway is None:
            return _call(case, folder, case.command)
        with EmbeddedGateway(case.gateway) as api:
            return _call(case, folder, case.command.format(api=api.url))


def run_program(words: list[str], folder: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run prefect-imagegen; the test of this page has a quicker way to start it."""
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "prefect_imagegen.cli.main", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _call(case: Refusal, folder: Path, command: str) -> tuple[int, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    environment = kept | {"HOME": str(folder), "COLUMNS": "100", "DO_NOT_TRACK": "1"} | case.environment
    done = run_program(command.split(), folder, environment)
    text = (done.stdout + done.stderr).replace(str(folder), "/data").rstrip()
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    return done.returncode, "\n".join(line.rstrip() for line in text.splitlines())


def page() -> str:
    """The whole page. Raises RuntimeError where a case is not refused."""
    parts = [HEAD]
    for case in CASES:
        code, text = run(case)
        if code != 2 or "Traceback" in text:
            raise RuntimeError(f"{case.title}: exit code {code}\n{text}")
        parts.append(f"## {case.title}\n")
        if case.shown:
            content = case.files[case.shown]
            parts.append(f"`{case.shown}`:\n\n```text\n{str(content).rstrip()}\n```\n")
        command = case.command.format(api="http://127.0.0.1:PORT")
        parts.append(f"```console\n$ prefect-imagegen {command}\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if "--json" in sys.argv:
        print(json.dumps({case.title: run(case) for case in CASES}, indent=1))  # noqa: T201 - a script
    else:
        PAGE.write_text(page(), encoding="utf-8")
