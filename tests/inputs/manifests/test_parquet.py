"""Parquet manifests, their windows and limits."""

import json
import secrets

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.inputs.manifests import manifest as manifests
from tests.inputs.manifests.conftest import TABLE, parquet, read, refusal, windows


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_a_file_of_no_bytes_is_said_to_be_empty(tmp_path, name) -> None:
    """A file of no bytes is said to be empty, whatever its format."""
    (tmp_path / name).write_bytes(b"")
    error = refusal(tmp_path / name)
    assert error.kind == "manifest_empty"
    assert name in error.message


def test_a_parquet_file_is_read_as_it_is(tmp_path) -> None:
    """All rows of a Parquet file come in order, with their names and types."""
    assert read(parquet(tmp_path / "m.parquet")).equals(TABLE)


def test_a_file_without_ending_is_parquet(tmp_path) -> None:
    """What is neither .csv nor .jsonl is read as Parquet."""
    assert read(parquet(tmp_path / "part-0")).equals(TABLE)


def test_a_file_url_and_a_home_path_are_paths(tmp_path, monkeypatch) -> None:
    """A path may be a file URL, or begin at the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parquet(tmp_path / "m.parquet")
    assert read(f"file://{tmp_path}/m.parquet").equals(read("~/m.parquet"))


@pytest.mark.parametrize("row_group", [1_000, 40_000, 100_000])
def test_windows_are_bounded(tmp_path, row_group) -> None:
    """However a file is grouped, no window holds more rows than the limit, and every row comes once."""
    rows = 2 * manifests.WINDOW_ROWS + 17
    path = parquet(tmp_path / "m.parquet", pa.table({"prompt": map(str, range(rows))}), row_group_size=row_group)
    sizes, prompts = [], []
    for window in windows(path):
        sizes.append(len(window))
        prompts += window.column("prompt").to_pylist()
    assert max(sizes) <= manifests.WINDOW_ROWS
    assert prompts == list(map(str, range(rows)))


@pytest.mark.parametrize(("limit", "rows"), [(1, [0]), (4, [0, 1, 2, 3]), (6, list(range(6))), (99, list(range(6)))])
def test_a_limit_takes_the_first_rows(tmp_path, limit, rows) -> None:
    """A limit takes the first rows, across files; a limit beyond the end takes all."""
    for n in range(3):
        parquet(tmp_path / f"{n}.parquet", pa.table({"prompt": ["x", "y"], "n": [2 * n, 2 * n + 1]}))
    assert read(tmp_path, limit=limit)["n"].to_pylist() == rows


@pytest.mark.parametrize("limit", [2, 3])
def test_a_limit_does_not_read_on(tmp_path, limit) -> None:
    """Rows beyond the limit are not read, so a broken file there does not matter."""
    parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"broken")
    assert len(read(tmp_path, limit=limit)) == limit


def test_columns_of_all_files_count(tmp_path) -> None:
    """The columns of all files are read; a file that lacks one has nulls there."""
    parquet(tmp_path / "a.parquet", pa.table({"prompt": ["x"], "seed": [1]}))
    parquet(tmp_path / "b.parquet", pa.table({"prompt": ["y"], "image_urls": [["u"]]}))
    (tmp_path / "c.csv").write_text("prompt,note\nz,n\n")
    assert read(tmp_path).to_pydict() == {"prompt": ["x", "y"], "seed": [1, None], "image_urls": [None, ["u"]]}
    assert read(tmp_path / "*.*")["note"].to_pylist() == [None, None, "n"]


@pytest.mark.parametrize("later", [pa.array([3], pa.int64()), pa.array(["x"]), pa.array([["x"]]), pa.array([None])])
def test_a_first_part_of_nulls_joins_any_type(tmp_path, later) -> None:
    """A column that is null throughout the first file takes the type of a later one."""
    parquet(tmp_path / "a.parquet", pa.table({"prompt": ["x"], "n": pa.nulls(1)}))
    parquet(tmp_path / "b.parquet", pa.table({"prompt": ["y"], "n": later}))
    assert read(tmp_path)["n"].to_pylist() == [None, *later.to_pylist()]
    assert read(tmp_path)["n"].type == later.type


def test_a_value_that_does_not_fit_is_refused(tmp_path) -> None:
    """A whole number that a double cannot hold is never rounded: the file and the column are said."""
    parquet(tmp_path / "a.parquet", pa.table({"prompt": ["x"], "n": [1.5]}))
    parquet(tmp_path / "b.parquet", pa.table({"prompt": ["y"], "n": [2**53 + 1]}))
    error = refusal(tmp_path)
    assert (error.kind, "b.parquet" in error.message, "'n'" in error.message) == ("manifest_schema", True, True)


def test_files_of_other_types_are_named(tmp_path) -> None:
    """A column that cannot be read in the type of the files before it is a difference of schemas."""
    parquet(tmp_path / "a.parquet", pa.table({"prompt": ["x"], "n": [1]}))
    parquet(tmp_path / "b.parquet", pa.table({"prompt": ["y"], "n": ["one"]}))
    assert refusal(tmp_path).kind == "manifest_schema"


def test_files_may_differ_in_what_can_be_cast(tmp_path) -> None:
    """Columns in another order, of a narrower type, or more of them, are no difference that matters."""
    parquet(tmp_path / "a.parquet", pa.table({"prompt": ["x"], "n": pa.array([1], pa.int64())}))
    parquet(tmp_path / "b.parquet", pa.table({"more": [0], "n": pa.array([2], pa.int8()), "prompt": ["y"]}))
    assert read(tmp_path).to_pydict() == {"prompt": ["x", "y"], "n": [1, 2], "more": [None, 0]}


def test_windows_are_bounded_by_bytes(tmp_path, monkeypatch) -> None:
    """Windows have fewer rows where rows are large: in Parquet by its sizes, in text by the characters read."""
    monkeypatch.setattr(manifests, "WINDOW_BYTES", 100_000)
    rows = [{"prompt": secrets.token_hex(5000), "n": n} for n in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet", row_group_size=25, use_dictionary=False)
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "m.csv").write_text("prompt,n\n" + "".join(f"{row['prompt']},{row['n']}\n" for row in rows))
    for name in ("m.parquet", "m.jsonl", "m.csv"):
        chunks = list(windows(tmp_path / name))
        assert max(window.column("prompt").nbytes for window in chunks) <= 110_000
        assert [int(n) for window in chunks for n in window.column("n").to_pylist()] == list(range(60))
        assert [window.first for window in chunks[:2]] == [0, len(chunks[0])]


def test_columns_that_are_not_needed_are_not_read(tmp_path) -> None:
    """Only the needed columns of a Parquet file are read: damage in another one does not matter."""
    plain = {"compression": "none", "use_dictionary": False}
    pictures = [secrets.token_bytes(2000) for _ in range(100)]
    path = parquet(tmp_path / "m.parquet", pa.table({"prompt": ["x" * 50] * 100, "image": pictures}), **plain)
    data = bytearray(path.read_bytes())
    start = data.index(pictures[0])
    data[start - 24 : start] = b"\xff" * 24
    path.write_bytes(bytes(data))
    assert [len(window) for window in windows(path, needed=["prompt"])] == [100]
    assert "m.parquet" in refusal(path).message


def test_a_limit_bounds_what_is_read(tmp_path, monkeypatch) -> None:
    """With a limit no more rows are decoded than asked for, and no later line of a text file is looked at."""
    path = parquet(tmp_path / "m.parquet", pa.table({"prompt": [f"{n}" for n in range(1000)]}))
    (window,) = windows(path, limit=7)
    assert (len(window), window.columns["prompt"].nbytes < 1000) == (7, True)
    padding = "".join(f'{{"prompt": "{n:09000d}"}}\n' for n in range(5))
    (tmp_path / "m.jsonl").write_text(padding + "broken")
    (tmp_path / "m.csv").write_bytes(b"prompt\n" + b"x" * 9000 + b"\n" + b"y" * 30000 + b'\n\xff"broken')
    assert len(read(tmp_path / "m.jsonl", limit=3)) == 3
    assert len(read(tmp_path / "m.csv", limit=1)) == 1
