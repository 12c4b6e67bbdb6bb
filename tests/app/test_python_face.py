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


@pytest.mark.parametrize("name", ["generate", "plan"])
async def test_a_running_loop_gets_its_remedy(name: str, tmp_path) -> None:
    """In a running event loop, as in a notebook, the blocking function refuses and names the other one."""
    with pytest.raises(RefusedError) as refusal:
        getattr(prefect_imagegen, name)(tmp_path / "m.csv", tmp_path / "store", backend="sandbox")
    assert refusal.value.kind == "running_loop"
    assert f"await prefect_imagegen.a{name}(" in refusal.value.remedy


def test_a_plan_counts_and_writes_nothing(tmp_path) -> None:
    """`plan` says what `generate` would do, row errors included, without a key and without writing."""
    manifest = tmp_path / "m.csv"
    manifest.write_text("prompt,seed\na cup,5\na chair,many\na cup,5\n")
    store = tmp_path / "store"
    summary = prefect_imagegen.plan(manifest, store)
    assert isinstance(summary, prefect_imagegen.PlanSummary)
    assert (summary.rows, summary.to_make, summary.counts["identical"], summary.counts["invalid"]) == (3, 1, 1, 1)
    assert "many" in str(summary.errors[0])
    assert not store.exists()


async def test_a_plan_within_a_running_loop(tmp_path) -> None:
    """`aplan` sees what is done already, and refuses what cannot be read."""
    manifest = tmp_path / "m.csv"
    manifest.write_text("prompt\na cup\n")
    result = await prefect_imagegen.agenerate(manifest, tmp_path / "store", backend="sandbox", shard_size=1)
    assert result.generated == 1
    summary = await prefect_imagegen.aplan(manifest, tmp_path / "store", backend="sandbox")
    assert (summary.counts["done"], summary.to_make) == (1, 0)
    with pytest.raises(prefect_imagegen.RefusedError):
        await prefect_imagegen.aplan(tmp_path / "none.csv", tmp_path / "store", backend="sandbox")


@pytest.mark.parametrize(
    ("options", "culprit", "remedy"),
    [
        ({"id_col": "id"}, "'id_col'", "Did you mean 'id_column'?"),
        ({"qqq": 1}, "'qqq'", "id_column, carry"),
        ({"max_attempts": 0}, "max_attempts", "Correct it."),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, object], culprit: str, remedy: str, tmp_path) -> None:
    """An option that does not exist, or with an impossible value, is refused by name, before anything is read."""
    with pytest.raises(RefusedError) as refusal:
        prefect_imagegen.generate(tmp_path / "none.csv", tmp_path / "store", backend="sandbox", **options)
    assert refusal.value.kind == "bad_option"
    assert culprit in str(refusal.value)
    assert remedy in refusal.value.remedy
