"""Which files a folder, a glob or a name means."""

import pyarrow as pa
import pytest

from tests.inputs.manifests.conftest import TABLE, parquet, read, refusal, windows


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
