"""Manifests as streams: Parquet, CSV and JSON lines; files, folders and globs; and what is said of broken ones."""

import secrets
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.io import manifests
from prefect_imagegen.io.manifests import Manifest

ROWS = {"prompt": ["a cup", "Käse 🧀", None], "seed": [1, None, 3], "tags": [["a"], [], None]}
TABLE = pa.table(ROWS)


def parquet(path: Path, table: pa.Table = TABLE, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def read(url, *, text=(), limit=None, **options) -> pa.Table:
    manifest = Manifest(str(url), options or None)
    try:
        return pa.Table.from_batches(list(manifest.windows(text, limit)))
    finally:
        manifest.close()


def refusal(url, **options) -> RefusedError:
    with pytest.raises(RefusedError) as found:
        read(url, **options)
    error = found.value
    assert error.remedy
    assert "Traceback" not in str(error)
    return error


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_a_file_of_no_bytes_is_said_to_be_empty(tmp_path, name) -> None:
    """A file of no bytes is said to be empty, whatever its format."""
    (tmp_path / name).write_bytes(b"")
    error = refusal(tmp_path / name)
    assert error.kind == "manifest_empty"
    assert name in error.message


def test_text_that_looks_like_a_date_is_text(tmp_path) -> None:
    """Prompts and ids of JSON lines that look like dates stay text; other columns keep what they are read as."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"prompt": "2024-01-01", "day": "2024-01-01"}\n{"prompt": "a cup", "day": "2024-01-02"}\n')
    table = read(path, text=["prompt", "id"])
    assert table["prompt"].to_pylist() == ["2024-01-01", "a cup"]
    assert pa.types.is_timestamp(table["day"].type)


# Parquet


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


def test_a_folder_is_its_parquet_files_in_order(tmp_path) -> None:
    """A folder is read for its .parquet files at any depth, in order of names; hidden ones and others are left out."""
    for n, name in enumerate(["a/2.parquet", "a/10.parquet", "b.parquet"]):
        parquet(tmp_path / name, pa.table({"prompt": [name], "n": [n]}))
    parquet(tmp_path / "_temporary" / "x.parquet")
    parquet(tmp_path / ".hidden.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "notes.txt").write_text("x")
    assert read(tmp_path)["prompt"].to_pylist() == ["a/10.parquet", "a/2.parquet", "b.parquet"]


def test_a_hidden_parent_does_not_hide_the_manifest(tmp_path) -> None:
    """Only names inside of the folder are judged: the folder itself may lie below a hidden one."""
    parquet(tmp_path / ".cache" / "_x" / "m" / "a.parquet")
    assert len(read(tmp_path / ".cache" / "_x" / "m")) == 3


def test_a_glob_is_its_files_in_order(tmp_path) -> None:
    """A glob is read for all files that it matches, in order of names, and no folders."""
    for name in ("p-2", "p-1", "q-1"):
        parquet(tmp_path / f"{name}.parquet", pa.table({"prompt": [name]}))
    (tmp_path / "p-3.parquet").mkdir()
    assert read(tmp_path / "p-*.parquet")["prompt"].to_pylist() == ["p-1", "p-2"]


def test_an_empty_file_among_others_is_nothing(tmp_path) -> None:
    """A file without rows among others adds none."""
    parquet(tmp_path / "a.parquet", TABLE.slice(0, 0))
    parquet(tmp_path / "b.parquet")
    assert read(tmp_path).equals(TABLE)


@pytest.mark.parametrize("row_group", [1_000, 40_000, 100_000])
def test_windows_are_bounded(tmp_path, row_group) -> None:
    """However a file is grouped, no window holds more rows than the limit, and every row comes once."""
    rows = 2 * manifests.WINDOW_ROWS + 17
    path = parquet(tmp_path / "m.parquet", pa.table({"prompt": map(str, range(rows))}), row_group_size=row_group)
    sizes, seen = [], []
    for batch in Manifest(str(path)).windows():
        sizes.append(len(batch))
        seen += batch["prompt"].to_pylist()
    assert max(sizes) <= manifests.WINDOW_ROWS
    assert seen == list(map(str, range(rows)))


@pytest.mark.parametrize(
    ("limit", "rows"), [(0, []), (1, [0]), (4, [0, 1, 2, 3]), (6, list(range(6))), (99, list(range(6)))]
)
def test_a_limit_takes_the_first_rows(tmp_path, limit, rows) -> None:
    """A limit takes the first rows, across files; a limit beyond the end takes all."""
    for n in range(3):
        parquet(tmp_path / f"{n}.parquet", pa.table({"prompt": ["x", "y"], "n": [2 * n, 2 * n + 1]}))
    found = list(Manifest(str(tmp_path)).windows(limit=limit))
    assert [n for batch in found for n in batch["n"].to_pylist()] == rows


@pytest.mark.parametrize("limit", [2, 3])
def test_a_limit_does_not_read_on(tmp_path, limit) -> None:
    """Rows beyond the limit are not read, so a broken file there does not matter."""
    parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"broken")
    assert len(read(tmp_path, limit=limit)) == limit


# CSV and JSON lines


def test_csv_prompts_stay_text(tmp_path) -> None:
    """Prompts and ids of a CSV are text, also where they look like numbers, dates or truth values."""
    path = tmp_path / "m.csv"
    path.write_text('prompt,name,steps\n007,1,20\n2024-01-01,01,\ntrue,1e5,4\n"a, ""b""\nc",x,5\n')
    found = read(path, text=["prompt", "name"]).to_pydict()
    assert found["prompt"] == ["007", "2024-01-01", "true", 'a, "b"\nc']
    assert found["name"] == ["1", "01", "1e5", "x"]
    assert found["steps"] == [20, None, 4, 5]


def test_csv_tells_empty_from_absent(tmp_path) -> None:
    """An empty cell of a CSV is not given; a quoted empty one is empty text; the words null and NA are text."""
    path = tmp_path / "m.csv"
    path.write_text('prompt,negative_prompt\na,\nb,""\nc,text\n"null","NA"\n')
    found = read(path, text=["prompt"]).to_pydict()
    assert found["negative_prompt"] == [None, "", "text", "NA"]
    assert found["prompt"] == ["a", "b", "c", "null"]


def test_csv_of_any_script(tmp_path) -> None:
    """A CSV in UTF-8 keeps every script, with or without a byte order mark; a header may be the only line."""
    path = tmp_path / "m.CSV"
    path.write_bytes("\ufeffprompt,n\nKäse 🧀,1\n\u05e9\u05dc\u05d5\u05dd,2\n".encode())
    assert read(path, text=["prompt"])["prompt"].to_pylist() == ["Käse 🧀", "\u05e9\u05dc\u05d5\u05dd"]


@pytest.mark.parametrize("ending", ["jsonl", "ndjson"])
def test_json_lines(tmp_path, ending) -> None:
    """JSON lines keep types, lists and nulls; a missing field is null."""
    path = tmp_path / f"m.{ending}"
    path.write_text('{"prompt": "Käse 🧀", "image_urls": ["https://a/b"], "cfg": 5.5}\n{"prompt": "b", "cfg": null}\n')
    assert read(path).to_pylist() == [
        {"prompt": "Käse 🧀", "image_urls": ["https://a/b"], "cfg": 5.5},
        {"prompt": "b", "image_urls": None, "cfg": None},
    ]


def test_many_text_rows_are_windowed(tmp_path) -> None:
    """A CSV of many rows comes in bounded windows, whole."""
    path = tmp_path / "m.csv"
    rows = manifests.WINDOW_ROWS + 5
    path.write_text("prompt\n" + "".join(f"{n}\n" for n in range(rows)))
    found = list(Manifest(str(path)).windows(["prompt"]))
    assert max(map(len, found)) <= manifests.WINDOW_ROWS
    assert [text for batch in found for text in batch["prompt"].to_pylist()] == list(map(str, range(rows)))


# Object storage


def test_a_manifest_in_memory() -> None:
    """A manifest may lie in any file system that fsspec knows."""
    fs, name = fsspec.filesystem("memory"), secrets.token_hex(6)
    with fs.open(f"/{name}/m.parquet", "wb") as file:
        pq.write_table(TABLE, file)
    assert read(f"memory://{name}/m.parquet").equals(TABLE)
    assert read(f"memory://{name}").equals(TABLE)


@pytest.mark.s3
def test_a_manifest_in_s3(s3, tmp_path) -> None:
    """A manifest in S3 is read as a file, a folder and a glob; what is missing there is named."""
    url = s3.url()
    fs = fsspec.filesystem("s3", **s3.options)
    for n in range(2):
        fs.put_file(str(parquet(tmp_path / f"{n}.parquet", pa.table({"prompt": [f"{n}"]}))), f"{url}/in/{n}.parquet")
    assert read(f"{url}/in/1.parquet", **s3.options)["prompt"].to_pylist() == ["1"]
    for many in (f"{url}/in", f"{url}/in/", f"{url}/in/*.parquet"):
        assert read(many, **s3.options)["prompt"].to_pylist() == ["0", "1"]
    error = refusal(f"{url}/in/9.parquet", **s3.options)
    assert (error.kind, f"{url}/in/9.parquet" in error.message) == ("manifest_not_found", True)
    wrong = refusal(f"{url}/in/1.parquet", **{**s3.options, "secret": "wrong-secret"})
    assert wrong.kind == "manifest_not_found"
    assert "--manifest-storage-option" in wrong.remedy
    assert "wrong-secret" not in str(wrong)


# What cannot be read


@pytest.mark.parametrize("name", ["m.parquet", "folder/m.csv", "p-*.parquet"])
def test_a_missing_manifest_is_named(tmp_path, name) -> None:
    """A manifest that is not there is said by its path."""
    error = refusal(tmp_path / name)
    assert error.kind == "manifest_not_found"
    assert str(tmp_path / name) in error.message
    assert "Check the path" in error.remedy


def test_a_folder_without_parquet_is_named(tmp_path) -> None:
    """A folder that holds no Parquet file is said, with what a folder is read for."""
    (tmp_path / "m.csv").write_text("prompt\na\n")
    error = refusal(tmp_path)
    assert error.kind == "manifest_not_found"
    assert "*.parquet" in error.message


@pytest.mark.parametrize("url", ["nonsense://x/m.parquet", "gs://bucket/m.parquet"])
def test_an_unknown_place_is_named(url) -> None:
    """A protocol that nobody knows, or whose package is missing, is said."""
    error = refusal(url)
    assert error.kind == "manifest_not_found"
    assert url in error.message


def test_a_signed_address_is_not_repeated() -> None:
    """The query of a manifest's address is no part of the message."""
    assert "SECRETPART" not in str(refusal("memory://nowhere/https://x/m.parquet?sig=SECRETPART"))


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_a_manifest_without_rows_is_said(tmp_path, name) -> None:
    """A manifest that has columns but no row is said to have none."""
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet(path, TABLE.slice(0, 0))
    else:
        path.write_text({"m.csv": "prompt,seed\n", "m.jsonl": "\n"}[name])
    error = refusal(path)
    assert error.kind in {"manifest_empty", "manifest_unreadable"}
    assert str(path) in error.message


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_an_empty_file_is_said(tmp_path, name) -> None:
    """A file of zero bytes is said by its name."""
    path = tmp_path / name
    path.write_bytes(b"")
    error = refusal(path)
    assert error.kind in {"manifest_empty", "manifest_unreadable"}
    assert str(path) in error.message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.parquet", b"prompt\na red cup\n"),
        ("m.parquet", b"PAR1" + bytes(100)),
        ("m.parquet", bytes(5000)),
        ("m.csv", b"prompt,seed\na,1\nb,2,3\n"),
        ("m.csv", b"prompt\n\xff\xfe\xfa\n"),
        ("m.jsonl", b'{"prompt": "a"}\n{"prompt": \n'),
        ("m.jsonl", b'[{"prompt": "a"}]'),
        ("m.jsonl", b'{"prompt": "a"}\n{"prompt": 5}\n'),
        ("m.jsonl", b'{"prompt": "a", "image_urls": [null, null]}\n'),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, data) -> None:
    """A file that is not of its format, or broken inside, is said by its name, with its format and all formats."""
    path = tmp_path / name
    path.write_bytes(data)
    error = refusal(path, text=["prompt"])
    assert error.kind == "manifest_unreadable"
    assert str(path) in error.message
    assert path.suffix[1:] in error.message
    assert "Parquet (.parquet), CSV (.csv) or JSON lines (.jsonl)" in error.remedy


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_truncated_parquet_file_is_named(tmp_path, kept) -> None:
    """A Parquet file that ends early is said by its name, among whole ones too."""
    parquet(tmp_path / "a.parquet")
    path = parquet(tmp_path / "b.parquet", pa.table({"prompt": [f"{n}" * 9 for n in range(1000)]}))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    for url in (path, tmp_path):
        error = refusal(url)
        assert error.kind == "manifest_unreadable"
        assert "b.parquet" in error.message


def test_damaged_pages_are_named(tmp_path) -> None:
    """A Parquet file whose footer is whole but whose pages are not is said by its name."""
    path = parquet(tmp_path / "m.parquet", pa.table({"prompt": [f"{n}" * 9 for n in range(1000)]}), compression="zstd")
    data = bytearray(path.read_bytes())
    data[40:400] = b"\xff" * 360
    path.write_bytes(bytes(data))
    assert "m.parquet" in refusal(path).message


def test_files_that_lack_a_column_are_named(tmp_path) -> None:
    """A file that lacks a column of the files before it is said by file and column."""
    parquet(tmp_path / "a.parquet", pa.table({"prompt": ["x"], "seed": [1]}))
    parquet(tmp_path / "b.parquet", pa.table({"prompt": ["y"]}))
    error = refusal(tmp_path)
    assert error.kind == "manifest_schema"
    assert "b.parquet" in error.message
    assert "'seed'" in error.message
    assert "same columns" in error.remedy


def test_files_of_other_types_are_named(tmp_path) -> None:
    """A column that cannot be read in the type of the files before it is a difference of schemas."""
    parquet(tmp_path / "a.parquet", pa.table({"prompt": ["x"], "n": [1]}))
    parquet(tmp_path / "b.parquet", pa.table({"prompt": ["y"], "n": ["one"]}))
    assert refusal(tmp_path).kind == "manifest_schema"


def test_files_may_differ_in_what_can_be_cast(tmp_path) -> None:
    """Columns in another order, of a narrower type, or more of them, are no difference that matters."""
    parquet(tmp_path / "a.parquet", pa.table({"prompt": ["x"], "n": pa.array([1], pa.int64())}))
    parquet(tmp_path / "b.parquet", pa.table({"more": [0], "n": pa.array([2], pa.int8()), "prompt": ["y"]}))
    assert read(tmp_path).to_pydict() == {"prompt": ["x", "y"], "n": [1, 2]}
