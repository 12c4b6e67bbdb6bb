"""The walk of docs/extend/column.md, done in a copy of the package: two places, and the column is everywhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.deployments.terminal import section
from tests.support.manifests import manifest_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extend" / "column.md"
PROGRAM = """
import glob, json, sys
import pyarrow.parquet as pq
from pydantic import SecretStr
import prefect_imagegen, tables
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings

with EmbeddedGateway(GatewaySettings(latency_s=0.05)) as gateway:
    settings = ProviderSettings(base_url=gateway.url, api_key=SecretStr("k"))
    for _ in range(2):
        last = prefect_imagegen.generate(sys.argv[1], "store", backend=settings)
column = sys.argv[2]
def values(pattern):
    files = [pq.read_table(path) for path in sorted(glob.glob(pattern))]
    return [row[column] for table in files for row in table.to_pylist()]
print(json.dumps({
    "package": prefect_imagegen.__file__,
    "ledger": values("store/ledger/segments/*.parquet"),
    "results": values("store/runs/*/results/*.parquet"),
    "metadata": values("store/runs/*/metadata/*.parquet"),
    "names": pq.read_schema(glob.glob(f"store/runs/{last.run_id}/metadata/*.parquet")[0]).names,
    "reference": tables.metadata_columns(),
}))
"""


def insert(path: Path, line: str, *, before: str) -> None:
    """Put a line before the only line that begins so."""
    text = path.read_text(encoding="utf-8")
    assert text.count(f"\n{before}") == 1, (path.name, before)
    path.write_text(text.replace(f"\n{before}", f"\n{line.rstrip()}\n{before}"), encoding="utf-8")


def test_a_column_is_two_places(tmp_path: Path) -> None:
    """The page's two lines put a column into ledger, results, metadata and reference, for new and for reused rows."""
    package = tmp_path / "src" / "prefect_imagegen"
    shutil.copytree(
        ROOT / "src" / "prefect_imagegen",
        package,
        ignore=shutil.ignore_patterns("__pycache__", "flows", "tasks", "blocks"),
    )
    (explained,) = section(PAGE, "Where it is explained")
    (known,) = section(PAGE, "Where it is known")
    insert(package / "core" / "ledger" / "events.py", explained.code, before="    request_id: Annotated[")
    insert(package / "providers" / "segmind" / "jobs.py", known.code, before='            "http_status": 200,')
    column = explained.code.split(":")[0].strip()
    assert f'"{column}"' in known.code
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    manifest = manifest_of(tmp_path, prompt=["a", "b"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "src"), str(ROOT / "docs")])}
    words = [sys.executable, "-P", str(program), manifest, column]
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert Path(told["package"]).is_relative_to(package)
    for table, count in (("ledger", 2), ("results", 2), ("metadata", 4)):
        measured = [value for value in told[table] if value is not None]
        assert len(measured) == count, (table, told[table])
        assert all(value > 0.04 for value in measured), (table, measured)
    assert told["names"][told["names"].index("queue_s") + 1] == column
    (sentence,) = [line for line in told["reference"].splitlines() if line.startswith(f"| `{column}` |")]
    assert "seconds that the model worked" in sentence
