"""Plans: in which shard each row stands, and what all of it will cost."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core.plan import SHOWN_ERRORS
from prefect_imagegen.inputs.manifests import manifest as manifests
from prefect_imagegen.inputs.manifests.manifest import Manifest
from tests.app.planning.plans.conftest import MODEL, ledger_of, plan, planner, states, write

pytestmark = pytest.mark.anyio


def test_the_summary_counts_what_it_will_cost(tmp_path) -> None:
    """The summary counts rows by state and model, and images to be made by what their price depends on."""
    table = {
        "prompt": ["a", "b", "c", "a", "done"],
        "seed": [7] * 5,
        "model": [None, "flux-2-klein-4b", "x", None, None],
    }
    _, summary = plan(write(tmp_path, table), ledger_of(done="delivered"))
    content = summary.as_dict()
    assert content["counts"] == {
        "new": 3,
        "done": 1,
        "identical": 1,
        "invalid": 0,
        "busy": 0,
        "failed": 0,
        "unsettled": 0,
    }
    assert content["models"] == {MODEL: 3, "flux-2-klein-4b": 1, "x": 1}
    how = "steps=20 sampler=euler references=0"
    assert summary.to_make_by_class == {
        f"{MODEL} {how}": 1,
        f"flux-2-klein-4b {how}": 1,
        "x steps=- sampler=- references=0": 1,
    }


def test_row_errors_are_all_counted_and_some_shown(tmp_path) -> None:
    """All row errors are counted by column and reason; the first of them are kept to be shown."""
    table = {"prompt": ["x", None] * 30, "steps": [0] * 60}
    rows, summary = plan(write(tmp_path, table))
    assert summary.counts["invalid"] == 60
    assert len(summary.errors) == SHOWN_ERRORS
    assert summary.errors[0].row == 0
    assert summary.reasons == {"steps: it must lie in 1 to 100": 60, "prompt: the prompt is missing": 30}
    assert rows[1]["error_message"] == "prompt: the prompt is missing; steps: it must lie in 1 to 100"


def test_identical_rows_share_a_shard_across_windows(tmp_path) -> None:
    """An identical row names the shard of the first such row, in the same window or in one before."""
    rows, summary = plan(
        write(tmp_path, {"prompt": ["a", "b", "c", "a"]}, {"prompt": ["c", "d", "d"]}, {"prompt": ["a", "d", "e"]})
    )
    assert states(rows) == [
        *("new", "new", "new", "identical"),
        *("identical", "new", "identical"),
        *("identical", "identical", "new"),
    ]
    assert [row["shard"] for row in rows] == [0, 0, 1, 0, 1, 2, 2, 0, 2, 3]
    assert summary.shards == 4


def test_windows_of_one_file_are_windows_too(tmp_path, monkeypatch) -> None:
    """A long file is planned window by window, with identical rows found across them."""
    monkeypatch.setattr(manifests, "WINDOW_ROWS", 3)
    prompts = ["a", "b", "c", "a", "d", "b", "e"]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "m.parquet")
    chosen = planner(Manifest(str(tmp_path / "m.parquet")))
    tables = list(chosen.windows())
    assert [len(table) for table in tables] == [3, 3, 1]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["row_index"] for row in rows] == list(range(7))
    assert states(rows) == ["new", "new", "new", "identical", "new", "identical", "new"]
    assert [row["shard"] for row in rows] == [0, 0, 1, 0, 2, 0, 3]


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_shards_have_a_size_and_never_span_parts(tmp_path, size) -> None:
    """No shard is larger than the size, shards are numbered in order, and each lies in one part."""
    tables = [{"prompt": [f"{part}-{n}" for n in range(rows)]} for part, rows in enumerate((5, 1, 4))]
    chosen = planner(write(tmp_path, *tables), shard_size=size)
    parts = [table["shard"].to_pylist() for table in chosen.windows()]
    numbers = [shard for part in parts for shard in part]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(chosen.summary.shards))
    assert max(numbers.count(shard) for shard in numbers) <= size
    assert sum(len(set(part)) for part in parts) == chosen.summary.shards


def test_rows_without_work_fill_no_shard(tmp_path) -> None:
    """Done, identical and invalid rows take no room in a shard."""
    table = {"prompt": ["a", "done", "a", None, "b", "c"], "seed": [7] * 6}
    rows, summary = plan(write(tmp_path, table), ledger_of(done="delivered"))
    assert [row["shard"] for row in rows] == [0, None, 0, None, 0, 1]
    assert summary.shards == 2


def test_nothing_to_do_has_no_shards(tmp_path) -> None:
    """A plan in which all is done has no shards at all."""
    _, summary = plan(write(tmp_path, {"prompt": ["done"], "seed": [7]}), ledger_of(done="delivered"))
    assert (summary.shards, summary.to_make) == (0, 0)
