"""The Python functions: what they take besides text, and where they cannot run."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

import prefect_imagegen
from prefect_imagegen.core.errors import RefusedError

pytestmark = pytest.mark.anyio


def test_paths_may_be_path_objects(tmp_path) -> None:
    """Manifest and store may be given as path objects, and what a manifest carries reaches the metadata."""
    manifest = tmp_path / "set [v2]" / "m.csv"
    manifest.parent.mkdir()
    manifest.write_text("prompt;code;Seed\na cup;007;5\na chair;;6\n")
    result = prefect_imagegen.generate(manifest, tmp_path / "store", backend="sandbox")
    assert (result.generated, result.rows) == (2, 2)
    metadata = pq.read_table(Path(tmp_path, "store", "runs", result.run_id, "metadata"))
    assert metadata["code"].to_pylist() == ["007", None]
    report = Path(tmp_path, "store", "runs", result.run_id, "report.json").read_text()
    assert "--column seed=Seed" in report


def test_json_lines_of_all_sorts_reach_the_metadata(tmp_path) -> None:
    """A column that changes its type along the file, nested and empty objects come through to every part."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"prompt": "a", "x": 1, "y": {}}\n{"prompt": "b", "x": "one", "z": {"a": [{}]}}\n')
    result = prefect_imagegen.generate(manifest, tmp_path / "store", backend="sandbox")
    metadata = pq.read_table(Path(tmp_path, "store", "runs", result.run_id, "metadata"))
    assert [metadata[name].to_pylist() for name in "xyz"] == [["1", "one"], ["{}", None], [None, '{"a": [{}]}']]


async def test_a_running_loop_gets_its_remedy(tmp_path) -> None:
    """In a running event loop, as in a notebook, the blocking function refuses and names the other one."""
    with pytest.raises(RefusedError) as raised:
        prefect_imagegen.generate(tmp_path / "m.csv", tmp_path / "store", backend="sandbox")
    assert (raised.value.kind, "await prefect_imagegen.agenerate" in raised.value.remedy) == ("running_loop", True)
