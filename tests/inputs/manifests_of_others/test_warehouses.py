"""Manifests of warehouses and lakes: their types, folders and parts."""

import datetime as dt
import decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.core.errors import RefusedError
from tests.inputs.manifests_of_others.conftest import CASES, by_duckdb, plan, refusal


@pytest.mark.parametrize(
    ("kind", "convert"),
    [
        (pa.decimal128(38, 0), decimal.Decimal),
        (pa.decimal128(10, 2), decimal.Decimal),
        (pa.uint64(), int),
        (pa.int16(), int),
        (pa.float64(), float),
        (pa.string(), str),
        (pa.large_string(), str),
        (pa.string_view(), str),
        (pa.dictionary(pa.int32(), pa.string()), str),
    ],
    ids=str,
)
def test_numbers_of_warehouses_are_numbers(tmp_path, kind, convert) -> None:
    """Seeds, steps and ids are the same, in whatever type a warehouse holds its numbers."""
    columns = {name: pa.array([convert(7), convert(20)], kind) for name in ("seed", "steps", "code")}
    if pa.types.is_decimal(kind) and kind.scale:
        columns["cfg"] = pa.array([decimal.Decimal("4.50"), decimal.Decimal(5)], kind)
    pq.write_table(pa.table({"prompt": ["a", "b"], **columns}), tmp_path / "m.parquet")
    rows, summary = plan(tmp_path / "m.parquet", id_column="code")
    assert [(row["seed"], row["params"]["steps"]) for row in rows] == [(7, 7), (20, 20)]
    assert [float(row["id"]) for row in rows] == [7, 20]
    assert not summary.errors
    if "cfg" in columns:
        assert [row["params"]["cfg"] for row in rows] == [4.5, 5]


def test_times_truths_and_ids_of_warehouses(tmp_path) -> None:
    """Timestamps, dates and truth values are carried as they are; as ids they are their text."""
    day, moment = dt.date(2026, 8, 1), dt.datetime(2026, 8, 1, 12, 30, tzinfo=dt.UTC)
    truths = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0], pa.int8()))
    table = pa.table({"prompt": ["a"], "day": [day], "at": [moment], "go_fast": truths, "wrong": [moment]})
    pq.write_table(table, tmp_path / "m.parquet")
    for column, text in (("day", "2026-08-01"), ("at", "2026-08-01 12:30:00+00:00")):
        (row,), _ = plan(tmp_path / "m.parquet", id_column=column)
        assert (row["id"], row["params"]["go_fast"], row["carried"]["day"]) == (text, False, day)
    (row,), summary = plan(tmp_path / "m.parquet", columns={"seed": ["wrong"]})
    assert (row["state"], str(summary.errors[0])[:24]) == ("invalid", "row 0, column wrong: the")


def test_decimals_of_a_real_export() -> None:
    """Decimals of a warehouse are 7, 20 and 4.5."""
    rows, _ = plan(CASES / "c12_numbers.parquet", id_column="id")
    assert [(row["id"], row["seed"], row["params"]["steps"], row["params"]["cfg"]) for row in rows] == [
        ("1001", 7, 20, 4.5),
        ("1002", 8, 30, 5),
    ]


def write_spark(folder: Path) -> list[str]:
    """A folder as Spark's partitioned writer leaves it; the prompts in order."""
    for day, prompts in (("2026-01-01", ["a", "b"]), ("2026-01-02", ["c"])):
        part = folder / f"day={day}" / "region=A%2FB"
        part.mkdir(parents=True)
        name = "part-00000-7d3e8f1c-0000-4000-8000-000000000000.c000.snappy.parquet"
        pq.write_table(pa.table({"prompt": prompts}), part / name, compression="snappy")
        (part / f".{name}.crc").write_bytes(b"crc\0\0\0\2\0")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / "._SUCCESS.crc").write_bytes(b"crc\0\0\0\2\0")
    return ["a", "b", "c"]


def test_a_folder_of_spark_is_read_as_duckdb_reads_it(tmp_path) -> None:
    """A partitioned folder of Spark is its rows with the partitions as columns, as DuckDB reads it."""
    prompts = write_spark(tmp_path / "out")
    rows, _ = plan(tmp_path / "out")
    assert [row["prompt"] for row in rows] == prompts
    query = f"FROM read_parquet('{tmp_path}/out/**/*.parquet', hive_partitioning = true, hive_types_autocast = 0)"
    ours = [row["carried"] | {"prompt": row["prompt"]} for row in rows]
    assert ours == sorted(by_duckdb(query), key=lambda row: row["prompt"])


def test_other_tables_of_a_folder_are_told(tmp_path) -> None:
    """Tables of a folder that are no Parquet are not read, and a warning names them; descriptions in JSON are none."""
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "a.parquet")
    for name in ("more.csv", "more.jsonl", "dataset_info.json", "_hidden.csv"):
        (tmp_path / name).write_text("prompt\nb\n")
    rows, summary = plan(tmp_path)
    assert [row["prompt"] for row in rows] == ["a"]
    assert [text for text in summary.warnings if text.endswith("are not: more.csv, more.jsonl")]


def test_a_partition_may_feed_a_field(tmp_path) -> None:
    """A partition folder that is named like a field feeds it."""
    for seed in (7, 8):
        (tmp_path / f"seed={seed}").mkdir()
        pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / f"seed={seed}" / "p.parquet")
    rows, _ = plan(tmp_path)
    assert [row["seed"] for row in rows] == [7, 8]


def test_parts_of_trino_are_read() -> None:
    """Parts without an ending are read."""
    rows, _ = plan(CASES / "c32_noext")
    assert [row["prompt"] for row in rows] == ["prompt 0.0", "prompt 0.1", "prompt 1.0", "prompt 1.1"]


def test_a_delta_table_is_refused() -> None:
    """A Delta table is refused with its remedy, and so is a file of it."""
    for path in (CASES / "c06_table", CASES / "c06_table" / "part-00000-0a.c000.snappy.parquet"):
        error = refusal(path)
        assert (error.kind, "Delta" in error.message, "snapshot" in error.remedy) == ("manifest_table", True, True)


def test_later_files_may_have_more_columns() -> None:
    """What only a later file has (references, a ratio) counts; a first part of nulls joins any type."""
    rows, summary = plan(CASES / "c04_parts")
    assert [row["carried"] for row in rows] == [{"aspect_ratio": ratio} for ratio in (None, None, "16:9", "4:5")]
    assert {error.column for error in summary.errors} == {"image_urls"}  # nothing reads the pictures here
    rows, summary = plan(CASES / "c34_nulls")
    assert (rows[3]["seed"], {error.column for error in summary.errors}) == (5, {"image_urls"})


def test_pictures_inside_the_table_are_left_out(tmp_path) -> None:
    """Columns of bytes, as data sets hold their pictures, are not carried, which is said once; asked for, they are."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": bytes(1000), "path": f"{n}.png"} for n in range(3)], kind)
    thumbs = [b"x", None, b"y"]
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "image": pictures, "thumb": thumbs}), tmp_path / "m.parquet")
    rows, summary = plan(tmp_path / "m.parquet")
    assert [row["carried"] for row in rows] == [{}, {}, {}]
    ((text, count),) = summary.warnings.items()
    assert ("'image', 'thumb'" in text, "--carry" in text, count) == (True, True, 3)
    rows, summary = plan(tmp_path / "m.parquet", carry=["thumb"])
    assert [row["carried"] for row in rows] == [{"thumb": thumb} for thumb in thumbs]
    assert ["'thumb'" in text for text in summary.warnings] == [False]
    rows, summary = plan(tmp_path / "m.parquet", carry=["image", "thumb"])
    assert (rows[1]["carried"]["image"]["path"], dict(summary.warnings)) == ("1.png", {})


def test_integers_of_128_bits_are_named(tmp_path: Path) -> None:
    """Integers of 128 bits, which polars knows and Arrow does not, are refused by the names of their columns."""
    table = pl.DataFrame({"prompt": ["a", "b"], "stock": pl.Series([1, 2], dtype=pl.Int128), "key": [b"x" * 16] * 2})
    table = table.with_columns(
        pl.struct(pl.col("stock").alias("inner")).alias("box"),
        pl.concat_list("stock").alias("list"),
        pl.col("stock").cast(pl.UInt128).alias("more"),
        pl.col("stock").cast(pl.Decimal(38, 2)).alias("price"),
    )
    path = tmp_path / "wide.parquet"
    table.write_parquet(path)
    with pytest.raises(RefusedError) as caught:
        plan(path)
    assert caught.value.kind == "manifest_unreadable"
    assert "wide.parquet" in caught.value.message
    assert "more than 64 bits (Int128) in 'stock', 'box', 'list', 'more'." in caught.value.message
    assert caught.value.remedy == "Write that column as text, or as integers of 64 bits."
    table.select("prompt", pl.col("stock").cast(pl.Int64)).write_parquet(path)
    assert plan(path)[1].rows == 2
