"""Manifests as streams: Parquet, CSV and JSON lines; files, folders and globs; and what is said of broken ones."""

import bz2
import csv
import gzip
import io
import json
import lzma
import secrets
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.request.manifest_types import join_schemas
from prefect_imagegen.inputs.manifests import manifest as manifests
from prefect_imagegen.inputs.manifests.manifest import Manifest
from prefect_imagegen.inputs.manifests.window import Window

ROWS = {"prompt": ["a cup", "Käse 🧀", None], "seed": [1, None, 3], "tags": [["a"], [], None]}
TABLE = pa.table(ROWS)


def parquet(path: Path, table: pa.Table = TABLE, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def windows(url, *, limit=None, wanted=("prompt",), needed=None, **options) -> Iterator[Window]:
    """All windows, with the columns of all files joined."""
    manifest = Manifest(str(url), options or None)
    try:
        schema = join_schemas(manifest.schemas(wanted, limit))
        yield from manifest.windows(schema, needed, limit)
    finally:
        manifest.close()


def read(url, **options) -> pa.Table:
    """All rows, as the metadata would carry them."""
    chunks = list(windows(url, **options))
    names = chunks[0].schema.names
    return pa.concat_tables(pa.table({name: window.column(name) for name in names}) for window in chunks)


def refusal(url, **options) -> RefusedError:
    with pytest.raises(RefusedError) as raised:
        read(url, **options)
    error = raised.value
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
    """Text of JSON lines that looks like a date stays text."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"prompt": "2024-01-01", "day": "2024-01-01"}\n{"prompt": "a cup", "day": "2024-01-02"}\n')
    table = read(path)
    assert table["prompt"].to_pylist() == ["2024-01-01", "a cup"]
    assert table["day"].to_pylist() == ["2024-01-01", "2024-01-02"]


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


# CSV and JSON lines


def test_csv_cells_are_text(tmp_path) -> None:
    """Every cell of a CSV comes back byte for byte, whatever it looks like."""
    path = tmp_path / "m.csv"
    path.write_text('prompt,name,n\n007,1,20\n2024-01-01,01,\ntrue,1e5,12345678901234567890\n"a, ""b""\nc", x ,NA\n')
    assert read(path).to_pydict() == {
        "prompt": ["007", "2024-01-01", "true", 'a, "b"\nc'],
        "name": ["1", "01", "1e5", " x "],
        "n": ["20", None, "12345678901234567890", "NA"],
    }


def test_csv_tells_empty_from_absent(tmp_path) -> None:
    """An empty cell of a CSV is not given; a quoted empty one is empty text; the words null and NA are text."""
    path = tmp_path / "m.csv"
    path.write_text('prompt,negative_prompt,x\na,,\nb,"","y,"",z"\nc,text,""\n"null","NA",NaN\n')
    columns = read(path).to_pydict()
    assert columns["negative_prompt"] == [None, "", "text", "NA"]
    assert columns["prompt"] == ["a", "b", "c", "null"]
    assert columns["x"] == [None, 'y,",z', "", "NaN"]


def test_words_for_a_missing_value_feed_nothing(tmp_path) -> None:
    """NA or NULL without quotes is null in columns that say so, and carried as it is; in quotes it is the word."""
    path = tmp_path / "m.csv"
    path.write_text('prompt,a,b\nx,NA,NA\ny,"NULL",NULL\nz,"NA,",nan\n')
    (window,) = windows(path)
    assert [row["a"] for row in window.cells(["a", "b"], ["a"])] == [None, "NULL", "NA,"]
    assert [row["b"] for row in window.cells(["a", "b"], ["a"])] == ["NA", "NULL", "nan"]
    assert window.column("a").to_pylist() == ["NA", "NULL", "NA,"]
    assert window.null_words(["a", "b"]) == {"a": (1, "m.csv, line 2"), "b": (3, "m.csv, line 2")}
    path.write_text('prompt,a\n\\N,\\N\n"\\N",<NA>\n')
    (window,) = windows(path)
    cells = [tuple(row.values()) for row in window.cells(["prompt", "a"], ["prompt", "a"])]
    assert cells == [(None, None), ("\\N", None)]


def test_csv_of_any_script(tmp_path) -> None:
    """A CSV in UTF-8 keeps every script, with or without a byte order mark; a header may be the only line."""
    path = tmp_path / "m.CSV"
    path.write_bytes("\ufeffprompt,n\nKäse 🧀,1\n\u05e9\u05dc\u05d5\u05dd,2\n".encode())
    assert read(path)["prompt"].to_pylist() == ["Käse 🧀", "\u05e9\u05dc\u05d5\u05dd"]


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
    chunks = list(windows(path))
    assert max(map(len, chunks)) <= manifests.WINDOW_ROWS
    assert [text for window in chunks for text in window.column("prompt").to_pylist()] == list(map(str, range(rows)))
    assert chunks[-1].place(4) == f"m.csv, line {rows + 1}"


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
        ("m", b"prompt\na red cup\n"),
        ("m.txt", b"a red cup\n"),
        ("m.parquet.csv", b"PAR1" + bytes(100)),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, data) -> None:
    """A file that is not of its format, or broken inside, is said by its name, with its format and all formats."""
    path = tmp_path / name
    path.write_bytes(data)
    error = refusal(path)
    assert error.kind == "manifest_unreadable"
    assert str(path) in error.message
    assert "as parquet" in error.message
    assert "Parquet (.parquet), CSV (.csv) or JSON lines (.jsonl)" in error.remedy


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_parquet_file_is_named(tmp_path, share) -> None:
    """A Parquet file that ends early is said by its name, among whole ones too."""
    parquet(tmp_path / "a.parquet")
    path = parquet(tmp_path / "b.parquet", pa.table({"prompt": [f"{n}" * 9 for n in range(1000)]}))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
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


# Which files


def test_an_existing_name_is_no_glob(tmp_path) -> None:
    """A file or folder that exists is itself, whatever its brackets mean in a glob; globs work inside of it."""
    folder = tmp_path / "set [v2]"
    parquet(folder / "m.parquet")
    (tmp_path / "list [final].csv").write_text("prompt\na\n")
    (folder / "x.csv").write_text("prompt\nb\n")
    assert read(folder).equals(TABLE)
    assert read(tmp_path / "list [final].csv")["prompt"].to_pylist() == ["a"]
    assert read(folder / "*.csv")["prompt"].to_pylist() == ["b"]


def test_a_file_url_may_be_escaped(tmp_path) -> None:
    """A file URL is read with per cent signs, without, and with the host localhost."""
    parquet(tmp_path / "a b" / "m.parquet")
    parquet(tmp_path / "100%25" / "m.parquet")
    spelled = (tmp_path / "a b" / "m.parquet").as_uri()
    assert "%20" in spelled
    for url in (spelled, f"file://{tmp_path}/a b/m.parquet", spelled.replace("file://", "file://localhost")):
        assert read(url).equals(TABLE)
    assert read(f"file://{tmp_path}/100%25/m.parquet").equals(TABLE)


def test_parts_without_ending_are_parquet(tmp_path) -> None:
    """Files of a folder without a known ending are read if they begin like Parquet."""
    for name in ("20260701_144951_00037_v74wa", "part-00000", "part-00001-0a.c000", "x.snappy"):
        parquet(tmp_path / name, pa.table({"prompt": [name]}))
    (tmp_path / "README").write_text("nothing")
    (tmp_path / "empty").write_bytes(b"")
    assert len(read(tmp_path)) == 4


def test_partition_folders_are_columns(tmp_path) -> None:
    """Folders named k=v, as Hive and Spark write them, are columns of text."""
    parquet(tmp_path / "day=2026-01-01" / "shop=A%2FB" / "part-0.parquet", pa.table({"prompt": ["x"]}))
    parquet(tmp_path / "day=__HIVE_DEFAULT_PARTITION__" / "part-1.parquet", pa.table({"prompt": ["y"]}))
    parquet(tmp_path / "_day=5" / "part-2.parquet", pa.table({"prompt": ["z"], "_day": ["own"]}))
    expected = {
        "prompt": ["z", "x", "y"],
        "_day": ["own", None, None],
        "day": [None, "2026-01-01", None],
        "shop": [None, "A/B", None],
    }
    assert read(tmp_path).to_pydict() == expected
    assert read(tmp_path / "*" / "*.parquet")["day"].to_pylist() == [None, None]
    (window, *_) = windows(tmp_path / "day*" / "*" / "*.parquet")
    assert next(iter(window.cells(["day", "seed"]))) == {"day": "2026-01-01", "seed": None}


@pytest.mark.parametrize(
    ("log", "kind_of_table"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table"),
        ("metadata/00000-5f.metadata.json", "an Iceberg table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
    ],
)
def test_a_table_with_a_log_is_refused(tmp_path, log, kind_of_table) -> None:
    """The files of a table with a log hold deleted rows too: table, subfolder, file and glob are refused."""
    table = tmp_path / "lake" / "t"
    parquet(table / "data" / "day=1" / "part-0.parquet")
    (table / log).parent.mkdir(parents=True)
    (table / log).write_text("{}")
    part = table / "data" / "day=1" / "part-0.parquet"
    for url in (table, tmp_path, table / "data", part.parent, part, table / "data" / "*" / "*.parquet"):
        error = refusal(url)
        assert error.kind == "manifest_table"
        assert (str(table) in error.message, kind_of_table in error.message) == (True, True)
        assert "snapshot" in error.remedy


def test_a_folder_named_metadata_is_no_table(tmp_path) -> None:
    """A folder named metadata, or metadata of another kind, does not make an Iceberg table."""
    parquet(tmp_path / "m.parquet")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "notes.json").write_text("{}")
    assert len(read(tmp_path)) == len(read(tmp_path / "m.parquet")) == 3


def test_what_spark_leaves_beside_its_parts_is_no_part(tmp_path) -> None:
    """Markers and checksums are left out, in a folder and by a glob that does not name them."""
    parquet(tmp_path / "part-00000-5f.snappy.parquet")
    (tmp_path / ".part-00000-5f.snappy.parquet.crc").write_bytes(b"crc")
    (tmp_path / "_SUCCESS").write_bytes(b"")
    (tmp_path / "._SUCCESS.crc").write_bytes(b"crc")
    assert read(tmp_path).equals(TABLE)
    assert read(tmp_path / "*").equals(TABLE)


@pytest.mark.parametrize(
    ("name", "data", "format_name"),
    [
        ("m.xlsx", b"PK\x03\x04" + bytes(30), "a spreadsheet"),
        ("m.ods", b"PK\x03\x04" + bytes(30), "a spreadsheet"),
        ("m.csv", b"PK\x03\x04" + bytes(30), "a spreadsheet"),
        ("m.xls", b"\xd0\xcf\x11\xe0" + bytes(30), "a spreadsheet"),
        ("m.feather", b"ARROW1" + bytes(30), "an Arrow"),
        ("m.avro", b"Obj\x01" + bytes(30), "an Avro"),
        ("m", b"SQLite format 3\0" + bytes(30), "an SQLite"),
    ],
)
def test_files_of_other_programs_are_named(tmp_path, name, data, format_name) -> None:
    """A spreadsheet, an archive or a file of another format is called by its name, with what to do."""
    (tmp_path / name).write_bytes(data)
    error = refusal(tmp_path / name)
    assert error.kind == "manifest_unreadable"
    assert format_name in error.message
    assert str(tmp_path / name) in error.message


def test_csv_files_of_a_folder_are_hinted_at(tmp_path) -> None:
    """A folder without Parquet but with CSV says the glob that reads them."""
    (tmp_path / "m.csv").write_text("prompt\na\n")
    error = refusal(tmp_path)
    assert f"{tmp_path}/*.csv" in error.message
    assert read(f"{tmp_path}/*.csv*")["prompt"].to_pylist() == ["a"]


def test_a_parquet_file_named_csv_is_parquet(tmp_path) -> None:
    """What begins and ends like Parquet is read as such, whatever its name says."""
    assert read(parquet(tmp_path / "m.csv")).equals(TABLE)


# Bounds


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


# Texts


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, bz2.compress, lzma.compress, lambda data: pa.Codec("zstd").compress(data).to_pybytes()],
)
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_compressed_text_is_read(tmp_path, pack, name) -> None:
    """CSV and JSON lines may be compressed, whatever their name says."""
    data = b"prompt,x\na,1\n" if name == "m.csv" else b'{"prompt": "a", "x": "1"}\n'
    for suffix in ("", ".gz"):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(pack(data))
        assert read(path).to_pydict() == {"prompt": ["a"], "x": ["1"]}


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: data[:30] + b"\xff" * 20 + data[50:]])
def test_damaged_compression_is_named(tmp_path, damage) -> None:
    """A compressed file that is cut off or damaged is refused with its name."""
    path = tmp_path / "m.csv.gz"
    path.write_bytes(damage(gzip.compress(b"prompt\n" + secrets.token_hex(500).encode())))
    assert ("damaged" in refusal(path).message, str(path) in refusal(path).message) == (True, True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_encodings_with_a_mark_are_read(tmp_path, encoding, name) -> None:
    """UTF-8 is read with and without its mark, UTF-16 and UTF-32 by theirs."""
    text = "prompt,x\r\nKäse 🧀,ü\r\n" if name == "m.csv" else '{"prompt": "Käse 🧀", "x": "ü"}\n'
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read(tmp_path / name).to_pydict() == {"prompt": ["Käse 🧀"], "x": ["ü"]}


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("prompt\nok\nKäse\n".encode("cp1252"), 3),
        (b"prompt\r\n" + b"ok\r\n" * 5000 + "Käse".encode("cp1252"), 5002),
        ("prompt\nok\n".encode("utf-16-le"), 1),
        (b"prompt\nok\na\0b\n", 3),
        ("prompt\nKäse\n".encode("utf-16")[:-1], 2),
    ],
)
def test_other_encodings_are_refused_with_their_line(tmp_path, data, line) -> None:
    """Text that is not UTF-8, or holds NUL bytes, is refused with file, line and how to save it."""
    path = tmp_path / "m.csv"
    path.write_bytes(data)
    error = refusal(path)
    assert error.kind == "manifest_unreadable"
    assert (str(path) in error.message, f"line {line}:" in error.message) == (True, True)
    assert "UTF-8" in error.remedy


@pytest.mark.parametrize(
    ("text", "names", "first"),
    [
        ("id;prompt;seed\n1;a chair, oak;7\n", ["id", "prompt", "seed"], ["1", "a chair, oak", "7"]),
        ("prompt\tx\na, b\t1;2\n", ["prompt", "x"], ["a, b", "1;2"]),
        ("prompt|x\na|b\n", ["prompt", "x"], ["a", "b"]),
        ('"a;b",prompt\n1,x;y\n', ["a;b", "prompt"], ["1", "x;y"]),
        ('"a,b";prompt\n1;x,y\n', ["a,b", "prompt"], ["1", "x,y"]),
        ("prompt;size, cm;seed\na;5, 6;7\n", ["prompt", "size, cm", "seed"], ["a", "5, 6", "7"]),
        ("text,a;b\nx,y\n", ["text", "a;b"], ["x", "y"]),
        ("prompt\na; b, c\n".replace(",", ""), ["prompt"], ["a; b c"]),
        ("sep=;\r\nprompt;x\r\na;1\r\n", ["prompt", "x"], ["a", "1"]),
        ('"sep=,"\nprompt;y,x\na,1\n', ["prompt;y", "x"], ["a", "1"]),
        ("sep=#\nprompt#x\na#\n", ["prompt", "x"], ["a", None]),
        ("\n\nprompt,x\n\na,1\n\n", ["prompt", "x"], ["a", "1"]),
        ('"pro\nmpt",x\na,1\n', ["pro\nmpt", "x"], ["a", "1"]),
        ("prompt,x\ra,1\r", ["prompt", "x"], ["a", "1"]),
        ('prompt,x\r"a\nb",1\r', ["prompt", "x"], ["a\nb", "1"]),
        ("prompt,x\r\r\na,1\r\r\n", ["prompt", "x"], ["a", "1"]),
        ('prompt,5" pipe\na,1\nb,2\n', ["prompt", '5" pipe'], ["a", "1"]),
        ('prompt;5" pipe\na;the 3" one\nb;2\n', ["prompt", '5" pipe'], ["a", 'the 3" one']),
    ],
)
def test_the_separator_is_seen_in_the_header(tmp_path, text, names, first) -> None:
    """Commas, semicolons, tabs and bars are told apart by the header, quotes respected, or by a line sep=."""
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode())
    table = read(path)
    assert (table.column_names, list(table.to_pylist()[0].values())) == (names, first)


def test_a_quote_within_a_name_opens_nothing(tmp_path) -> None:
    """No row is taken for a part of the header, and a header of many lines is read in time that grows with it."""
    rows = "".join(f"row {number},{number}\n" for number in range(20_000))
    (tmp_path / "a.csv").write_text(f'prompt,5" pipe\n{rows}')
    assert read(tmp_path / "a.csv").num_rows == 20_000
    (tmp_path / "b.csv").write_text(f'prompt,"{rows}"\na,1\n')
    started = time.process_time()
    assert read(tmp_path / "b.csv").column_names == ["prompt", rows]
    assert time.process_time() - started < 2


def test_the_ending_tells_what_is_usual(tmp_path) -> None:
    """A .tsv file has tabs, unless its header says otherwise."""
    (tmp_path / "a.tsv").write_text("x, y\tz\n1\t2\n")
    (tmp_path / "b.tsv").write_text("prompt,z\n1,2\n")
    assert read(tmp_path / "a.tsv").column_names == ["x, y", "z"]
    assert read(tmp_path / "b.tsv").column_names == ["prompt", "z"]


@pytest.mark.parametrize(
    ("text", "line", "words", "remedy"),
    [
        ("a;b|c\n1;2|3\n", 1, "semicolons (;) or bars (|)", "commas"),
        ("prompt,seed\na,1\nb,2,3\n", 3, "the header has 2 cells, and the row that begins here 3: 'b,2,3'", "Quote"),
        ('prompt,seed\n"a\nb",1\n\nc\n', 5, "the header has 2 cells, and the row that begins here 1: 'c'", "Quote"),
        ('prompt,seed\na,1\n"b,2\nc,3\n', 3, "the quote that opens here is never closed", "Close it"),
        ('prompt,seed\n"a\nb","2\nc\n', 3, "the quote that opens here is never closed", "Close it"),
        ('prompt,seed\n"say \\"hi\\" now",1\n', 2, "text follows a closing quote", "twice"),
        ('prompt,seed\n"say ""hi,1\nb,2\n', 2, "the quote that opens here is never closed", "Close it"),
        ('prompt,"see ""d\na,1\n', 1, "the quote that opens here is never closed", "Close it"),
        ("prompt,seed\na\rb,1\n", 2, "a carriage return", "Quote the cell"),
        ("prompt,seed\ra,1\r\nb,2\r\n", 3, "lines end in several ways", "Quote the cell"),
        ('prompt,seed\na,1\n"b",2\n"c" d,3\n', 4, "text follows a closing quote", "twice"),
    ],
)
def test_broken_csv_is_named_with_its_line(tmp_path, text, line, words, remedy) -> None:
    """What is wrong in a CSV is said with file, line, the text there, and how to mend it."""
    path = tmp_path / "m.csv"
    path.write_text(text)
    error = refusal(path)
    assert error.kind == "manifest_unreadable"
    assert (str(path) in error.message, f"line {line}: " in error.message) == (True, True)
    assert words in error.message
    assert remedy in error.remedy


def test_a_row_without_end_is_refused_early(tmp_path, monkeypatch) -> None:
    """A quote that nothing closes does not swallow the file: a row has a largest size."""
    monkeypatch.setattr("prefect_imagegen.inputs.manifests.text.MAX_RECORD", 100_000)
    (tmp_path / "m.csv").write_text('prompt,x\na,1\nb,"' + "lorem\n" * 100_000)
    error = refusal(tmp_path / "m.csv")
    assert ("line 3:" in error.message, "100,000 characters" in error.message) == (True, True)
    (tmp_path / "m.jsonl").write_text('{"prompt": "' + "x" * 200_000 + '"}\n')
    assert "line 1:" in refusal(tmp_path / "m.jsonl").message


def test_large_cells_are_read(tmp_path) -> None:
    """A cell of several megabytes is read whole."""
    large = secrets.token_hex(2_000_000)
    (tmp_path / "m.csv").write_text(f'prompt,x\na,"{large}\n"\n')
    assert read(tmp_path / "m.csv")["x"].to_pylist() == [f"{large}\n"]


def test_what_spreadsheets_leave_empty_is_nothing(tmp_path) -> None:
    """Rows and columns without anything in them are left out, and said with their number and first place."""
    path = tmp_path / "m.csv"
    path.write_text("prompt,seed,,\na,7,,\n,,,\nb,8,,x\nc,9,,\n\n,,,\nd,1,,,,\n")
    manifest = Manifest(str(path))
    schema = join_schemas(manifest.schemas())
    (window,) = manifest.windows(schema)
    assert window.column("prompt").to_pylist() == ["a", "b", "c", "d"]
    assert [window.place(row) for row in range(4)] == [f"m.csv, line {line}" for line in (2, 4, 5, 8)]
    assert manifest.remarks.texts() == {
        "rows without any value are left out (first: m.csv, line 3)": 2,
        "cells below an empty header cell are left out; give their column a name (first: m.csv, line 4)": 1,
    }


def test_quotes_after_a_blank_are_noticed(tmp_path) -> None:
    """A quote after a blank is text, as every reader takes it; that is said once."""
    (tmp_path / "m.csv").write_text('prompt,x\na, "b"\n"c, ""d""",e\nf, "g"\n')
    manifest = Manifest(str(tmp_path / "m.csv"))
    (window,) = manifest.windows(join_schemas(manifest.schemas()))
    assert window.column("x").to_pylist() == [' "b"', "e", ' "g"']
    ((text, count),) = manifest.remarks.texts().items()
    assert ("blank" in text, "line 2" in text, count) == (True, True, 2)


# JSON lines


def test_a_field_may_first_appear_in_the_last_line(tmp_path) -> None:
    """Columns are those of all lines, and a column's type is one that holds all its values."""
    rows = [{"prompt": "a", "n": 1, "mixed": 1, "big": 1, "nan": None}] * 50
    rows += [{"prompt": "b", "n": 2.5, "mixed": "x", "big": 2**70, "nested": {"a": [{}]}, "late": True, "none": None}]
    rows += [{"prompt": "c", "mixed": [1, None], "texts": ["x", None], "nested": {}}]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read(path)
    assert {name: str(table[name].type) for name in table.column_names} == {
        "prompt": "string",
        "n": "double",
        "mixed": "string",
        "big": "string",
        "nan": "null",
        "nested": "string",
        "late": "bool",
        "none": "null",
        "texts": "list<item: string>",
    }
    assert table.slice(49).to_pydict() == {
        "prompt": ["a", "b", "c"],
        "n": [1.0, 2.5, None],
        "mixed": ["1", "x", "[1, null]"],
        "big": ["1", str(2**70), None],
        "nan": [None] * 3,
        "nested": [None, '{"a": [{}]}', "{}"],
        "late": [None, True, None],
        "none": [None] * 3,
        "texts": [None, None, ["x", None]],
    }


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', 2, "it is no JSON"),
        ('[{"prompt": "a"}]', 1, "no JSON object, but a list"),
        ('{\n "prompt": "a"\n}\n', 1, "it is no JSON"),
        ('{"prompt": "a"}\n\n"b"\n', 3, "no JSON object, but a text"),
        ('{"prompt": "a"} {"prompt": "b"}\n', 1, "it is no JSON"),
        ('{"prompt": "a", "x": 1, "x": 2}\n', 1, "'x' occurs twice"),
        ('{"prompt": "a", "x": 1e999}\n', 1, "larger than a float"),
        ('{"prompt": "a", "x": Infinity}\n', 1, "Infinity is no JSON"),
        ('{"prompt": "a", "x": "\\ud800"}\n', 1, "half a character"),
        ('{"prompt": "a", "\\ud800": 1}\n', 1, "half a character"),
        ('{"prompt": "a"}\n{"x": ' + "[" * 100_000 + "]" * 100_000 + "}\n", 2, "nested too deeply"),
    ],
)
def test_broken_json_lines_are_named(tmp_path, text, line, words) -> None:
    """A line that is no object, or cannot be read without loss, is said with file, line and what is wrong."""
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    error = refusal(path)
    assert error.kind == "manifest_unreadable"
    assert ("m.jsonl" in error.message, f"line {line}" in error.message) == (True, True)
    assert words in error.message


def test_a_json_array_gets_its_remedy(tmp_path) -> None:
    """A file that is one JSON array is refused with the command that makes lines of it; .json may hold lines."""
    (tmp_path / "m.json").write_text('[{"prompt": "a"}]')
    assert "jq -c '.[]'" in refusal(tmp_path / "m.json").remedy
    (tmp_path / "m.json").write_text('{"prompt": "a"}\n{"prompt": "b", "x": NaN}\n')
    assert read(tmp_path / "m.json").to_pydict() == {"prompt": ["a", "b"], "x": [None, None]}


# Whatever is written comes back

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    [
        "",
        '"',
        '""',
        "NA",
        "007",
        "a,b",
        "x;y",
        " ",
        '"quoted"',
        "a\nb",
        "a\r\nb",
        "sep=,",
        "\ufeff",
        "1e5",
        "\x85",
        "\u2028",
    ]
)


@st.composite
def csv_tables(draw) -> tuple[list[str], list[list[str]], dict]:
    """A header, rows of text, and a dialect of `csv.writer`."""
    names = draw(
        st.lists(CELL.filter(lambda name: name.strip("\ufeff \t\r\n\x85\u2028")), min_size=1, max_size=4, unique=True)
    )
    names = ["prompt", *[name for name in names if name.strip() and name != "prompt"]]
    width = len(names)
    rows = draw(st.lists(st.lists(CELL, min_size=width, max_size=width), min_size=1, max_size=6))
    dialect = {
        "delimiter": draw(st.sampled_from(",;\t|")),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n"])),
    }
    return names, rows, dialect


@given(csv_tables(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_any_csv_comes_back(tmp_path_factory, table, encoding) -> None:
    """Any table of text that csv.writer writes, in any dialect, comes back byte for byte."""
    names, rows, dialect = table
    sink = io.StringIO()
    sink.write(f"sep={dialect['delimiter']}\n")
    csv.writer(sink, **dialect).writerows([names, *rows])
    path = tmp_path_factory.mktemp("csv") / "m.csv"
    path.write_bytes(sink.getvalue().encode(encoding))
    # What csv.writer leaves without quotes and empty is null for us; a row of nothing else is none.
    quoted = dialect["quoting"] != csv.QUOTE_MINIMAL
    expected = [[cell if cell or quoted else None for cell in row] for row in rows]
    if len(names) == 1:
        expected = rows  # an only cell is always quoted where it is empty
    expected = [row for row in expected if any(cell is not None for cell in row)]
    if any("\r" in cell for row in [names, *rows] for cell in row) and dialect["lineterminator"] == "\n" and not quoted:
        return  # csv.writer leaves such cells without quotes; they are refused or right, never split
    if not expected:
        assert refusal(path).kind == "manifest_empty"
        return
    assert [list(row.values()) for row in read(path).to_pylist()] == expected


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(["prompt", "a", "ü"]), JSON_VALUES, min_size=1), min_size=1, max_size=6),
    st.booleans(),
)
def test_any_json_lines_come_back(tmp_path_factory, rows, ascii_only) -> None:
    """Any rows written as JSON lines come back: as cells unchanged, and carried in one type without loss."""
    path = tmp_path_factory.mktemp("jsonl") / "m.jsonl"
    path.write_bytes("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode())
    (window,) = windows(path)
    names = window.schema.names
    assert list(window.cells(names)) == [{name: row.get(name) for name in names} for row in rows]
    for name in names:
        kind = window.schema.field(name).type
        values = window.column(name).to_pylist()
        for value, row in zip(values, rows, strict=True):
            written = row.get(name)
            if pa.types.is_string(kind) and written is not None and not isinstance(written, str):
                assert json.loads(value) == written
            else:
                assert value == written


def test_a_header_that_never_ends_is_cheap(tmp_path: Path) -> None:
    """A quoted name of a header that goes on over millions of lines, each with quotes, is refused at once."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'"prompt' + b'\n""' * 2_000_000)
    with pytest.raises(RefusedError, match="the quote that opens here is never closed"):
        list(windows(path))


def test_a_header_of_millions_of_names_is_refused(tmp_path: Path) -> None:
    """A first line of megabytes is no header; it is refused before its names are made."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt," + b"a," * 1_000_000 + b"b\n")
    with pytest.raises(RefusedError, match="the header has more than 1,048,576 characters"):
        list(windows(path))


def asking_for(packed: bytes, size: int) -> bytes:
    """An xz file that asks for a dictionary of another size, as a number of the format."""
    start, length = 12, 4 * (packed[12] + 1)
    block = bytearray(packed[start : start + length - 4])
    block[block.index(b"\x21\x01") + 2] = size
    return packed[:start] + block + zlib.crc32(block).to_bytes(4, "little") + packed[start + length :]


def test_an_xz_file_gets_no_gigabytes(tmp_path: Path) -> None:
    """An xz file that asks for 4 GiB of memory is refused; those of usual programs, several in one, are read."""
    packed = lzma.compress(b"prompt\na cup\n", preset=9)
    path = tmp_path / "a.csv.xz"
    path.write_bytes(asking_for(packed, 40))
    with pytest.raises(RefusedError, match="Memory usage limit exceeded"):
        list(windows(path))
    path.write_bytes(packed + bytes(8) + lzma.compress(b"a plate\n"))
    assert [row for window in windows(path) for row in window.columns["prompt"]] == ["a cup", "a plate"]
    path.write_bytes(packed[:-20])
    with pytest.raises(RefusedError, match="damaged"):
        list(windows(path))
