"""Manifests as other programs write them; what pandas, polars and DuckDB read from the same file is the yardstick."""

import csv
import datetime as dt
import decimal
import io
import json
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_imagegen.app.planning.plan import Planner
from prefect_imagegen.app.planning.stored_plan import request_from_json
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.plan import PlanSummary
from prefect_imagegen.core.request.manifest import ManifestOptions
from prefect_imagegen.inputs.manifests.manifest import Manifest

CASES = Path(__file__).parents[1] / "data" / "cases"
ROWS = [
    {"sku": "00042", "prompt": 'a "red" cup, on oak', "seed": 7, "cfg": 4.5, "go_fast": True, "note": "NA"},
    {"sku": "00043", "prompt": "Käse 🧀\nzweite Zeile", "seed": 2**53 + 1, "cfg": 5.0, "go_fast": False, "note": ""},
    {"sku": "1e5", "prompt": "a chair; beech", "seed": None, "cfg": None, "go_fast": None, "note": None},
]


def plan(path, *, limit=None, **options) -> tuple[list[dict], PlanSummary]:
    """All rows of a plan, with their carried columns under their own names, and its summary."""
    manifest = Manifest(str(path))
    planner = Planner(manifest, ManifestOptions(**options), LedgerView.empty(), shard_size=64, limit=limit)
    try:
        rows = [row for table in planner.windows() for row in table.to_pylist()]
    finally:
        planner.close()
    for row in rows:
        row["carried"] = {name: row[f"c_{at}"] for at, name in enumerate(planner.summary.carried)}
        row["params"] = dict(request_from_json(row["request"]).params) if row["request"] else None
    return rows, planner.summary


def asked(rows) -> list[tuple]:
    """What the rows ask for, seeds of their own only."""
    return [(row["prompt"], row["params"]["cfg"], row["params"]["go_fast"]) for row in rows]


def refusal(path, **options) -> RefusedError:
    with pytest.raises(RefusedError) as raised:
        plan(path, **options)
    assert raised.value.remedy
    return raised.value


ASKED = [(ROWS[0]["prompt"], 4.5, True), (ROWS[1]["prompt"], 5, False), (ROWS[2]["prompt"], 5, True)]


def by_duckdb(query: str) -> list[dict]:
    """The rows that DuckDB finds."""
    with duckdb.connect() as connection:
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def write_pandas(folder: Path, form: str) -> Path:
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    types = {"seed": "Int64", "cfg": "Float64", "go_fast": "boolean"}
    frame = pd.DataFrame({name: pd.array(cells, dtype=types.get(name, "string")) for name, cells in columns.items()})
    path = folder / f"m.{form.partition(' ')[0]}"
    if form == "parquet":
        frame.to_parquet(path)
    elif form == "jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        quoting = csv.QUOTE_ALL if "quoted" in form else csv.QUOTE_MINIMAL
        separator = ";" if "semicolons" in form else ","
        frame.to_csv(path, index=False, quoting=quoting, sep=separator, encoding="utf-8-sig")
    return path


def write_polars(folder: Path, form: str) -> Path:
    frame = pl.DataFrame(ROWS)
    path = folder / f"m.{form.partition(' ')[0]}"
    if form == "parquet":
        frame.write_parquet(path)
    elif form == "jsonl":
        frame.write_ndjson(path)
    else:
        style = "always" if "quoted" in form else "necessary"
        frame.write_csv(path, quote_style=style, separator=";" if "semicolons" in form else ",")
    return path


def write_duckdb(folder: Path, form: str) -> Path:
    path = folder / f"m.{form.partition(' ')[0]}"
    table = pa.Table.from_pylist(ROWS)
    how = {"parquet": "FORMAT parquet", "jsonl": "FORMAT json"}.get(form, "FORMAT csv, HEADER")
    how += ", FORCE_QUOTE *" if "quoted" in form else ""
    how += ", DELIMITER ';'" if "semicolons" in form else ""
    with duckdb.connect() as connection:
        connection.register("rows", table)
        connection.execute(f"COPY rows TO '{path}' ({how})")
    return path


@pytest.mark.parametrize("write", [write_pandas, write_polars, write_duckdb])
@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "csv quoted", "csv semicolons"])
def test_tables_of_data_frames_are_read(tmp_path, write, form) -> None:
    """What pandas, polars and DuckDB write in any of the formats asks for the same images, and codes stay codes."""
    rows, summary = plan(write(tmp_path, form))
    assert asked(rows) == ASKED
    assert [row["seed"] for row in rows[:2]] == [7, 2**53 + 1]
    assert [row["carried"]["sku"] for row in rows] == ["00042", "00043", "1e5"]
    assert rows[0]["carried"]["note"] == "NA"
    assert (summary.counts["new"], summary.counts["invalid"]) == (3, 0)


@pytest.mark.parametrize("form", ["csv", "csv semicolons"])
def test_peers_read_the_same_text(tmp_path, form) -> None:
    """Every cell of a CSV is what pandas, polars and DuckDB read where they are told to read text."""
    path = write_pandas(tmp_path, form)
    separator = ";" if "semicolons" in form else ","
    rows, _ = plan(path, columns={"prompt": ["prompt"]})
    ours = [row["carried"] | {"prompt": row["prompt"]} for row in rows]
    names = list(ours[0])
    by_pandas = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    by_polars = pl.read_csv(path, separator=separator, infer_schema=False)
    query = f"SELECT * FROM read_csv('{path}', all_varchar = true, delim = '{separator}', header = true)"
    assert [{name: row[name] or "" for name in names} for row in ours] == by_pandas[names].to_dict("records")
    assert ours == by_polars.select(names).to_dicts()
    assert [{name: row[name] or "" for name in names} for row in ours] == [
        {name: row[name] or "" for name in names} for row in by_duckdb(query)
    ]


def test_peers_read_the_same_json_lines(tmp_path) -> None:
    """A column of JSON lines that changes its type along the file is read, with the values that DuckDB reads."""
    rows = [{"prompt": f"p{n}", "x": n if n < 50 else f"{n}", "y": {"n": n} if n % 2 else {}} for n in range(60)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned, _ = plan(path)
    assert [row["carried"]["x"] for row in planned] == [str(n) for n in range(60)]
    peers = by_duckdb(f"SELECT x, y FROM read_json('{path}', columns = {{x: 'VARCHAR', y: 'JSON'}})")
    assert [(row["carried"]["x"], json.loads(row["carried"]["y"])) for row in planned] == [
        (row["x"], json.loads(row["y"])) for row in peers
    ]


def test_a_frame_with_its_index_is_read_without_it(tmp_path) -> None:
    """The unnamed index that pandas writes into a CSV is left out, and said."""
    path = tmp_path / "m.csv"
    pd.DataFrame(ROWS).to_csv(path)
    rows, summary = plan(path)
    assert asked(rows) == ASKED
    ((warning, count),) = [(text, n) for text, n in summary.warnings.items() if "header" in text]
    assert ("m.csv, line 2" in warning, count) == (True, 3)


# Warehouses


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


# Lakes


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


# Pictures inside the table


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


# Spreadsheets and shops


def test_nearly_right_headers_are_named_once() -> None:
    """A header that is nearly a field is a warning with the field, the mapping and the rows; a mapping silences it."""
    rows, summary = plan(CASES / "c02_near.csv")
    assert list(summary.warnings.values()) == [1, 1, 1]
    for words in ("--column image_urls=image_url", "--column seed=Seed", "--column aspect_ratio=aspectRatio"):
        assert [words in text for text in summary.warnings].count(True) == 1
    rows, summary = plan(CASES / "c02_near.csv", columns={"seed": ["Seed"], "aspect_ratio": ["aspectRatio"]})
    assert (rows[0]["seed"], rows[0]["params"]["aspect_ratio"], len(summary.warnings)) == (7, "16:9", 1)
    rows, summary = plan(CASES / "c02_spaced.csv", columns={"seed": [" seed"]})
    assert rows[0]["seed"] == 7
    assert ["--column 'image_urls= image_urls'" in text for text in summary.warnings] == [True]


def test_an_empty_near_name_is_no_warning(tmp_path) -> None:
    """A nearly right header without any value below it is not worth a word."""
    (tmp_path / "m.csv").write_text("prompt,Seed\na,\nb,\n")
    assert not plan(tmp_path / "m.csv")[1].warnings


@pytest.mark.parametrize("name", ["c07_semicolon.csv", "c07_semicolon_bom.csv"])
def test_semicolons_are_read(name) -> None:
    """Excel's semicolons are read, and no remedy draws whole lines."""
    rows, _ = plan(CASES / name)
    assert [row["seed"] for row in rows] == [7, 8]
    assert rows[0]["prompt"].startswith("a chair")
    error = refusal(CASES / name, columns={"prompt": ["id;prompt;seed"]})
    assert "it has: id, prompt, seed" in error.message


def test_a_line_that_declares_the_separator_is_obeyed() -> None:
    """A first line sep= is obeyed, and no row."""
    rows, _ = plan(CASES / "c07_sepline.csv")
    assert [(row["prompt"], row["seed"]) for row in rows] == [("a chair", 7)]


def test_codes_come_back_byte_for_byte() -> None:
    """Leading zeros, the words NA and NULL, and numbers of 20 digits are carried as they stand."""
    rows, _ = plan(CASES / "c08_codes.csv")
    assert rows[0]["carried"] == {"gtin": "0012345678905", "sku": "00042", "region": "NA", "brand": "NULL"}
    rows, _ = plan(CASES / "c08_big.csv")
    assert [row["carried"]["order"] for row in rows] == ["12345678901234567890", "12345678901234567891"]


@pytest.mark.parametrize("name", ["c13_objects.jsonl", "c13_objects_nested.jsonl"])
def test_empty_objects_are_carried_as_json(name) -> None:
    """Objects of JSON lines, empty ones too, are carried as JSON text, which every Parquet file can hold."""
    rows, _ = plan(CASES / name)
    assert [json.loads(row["carried"]["meta"]) for row in rows] == (
        [{}] * 3 if name == "c13_objects.jsonl" else [{"source": "x", "extra": {}}] * 3
    )


@pytest.mark.parametrize("name", ["c14_wide.csv", "c14_wide_quoted.csv"])
def test_unicode_text_of_excel_is_read(name) -> None:
    """UTF-16 with its mark is read, with tabs and with commas."""
    rows, _ = plan(CASES / name)
    assert [(row["prompt"], row["seed"]) for row in rows] == [("a chair", 7)]


def test_windows_1252_is_refused_by_name() -> None:
    """A CSV that is no UTF-8 is refused with file, line and how to save it."""
    error = refusal(CASES / "c14_body.csv")
    assert ("c14_body.csv" in error.message, "line 2" in error.message, "UTF-8" in error.remedy) == (True, True, True)


@pytest.mark.parametrize("name", ["c17 [v2]/list.csv", "c17 [v2]/*.csv", "c17_list [final].csv"])
def test_brackets_in_names_are_names(name) -> None:
    """A path that exists is itself, brackets and all."""
    assert [row["prompt"] for row in plan(CASES / name)[0]] == ["a shoe"]


@pytest.mark.parametrize("name", ["c25_columns.csv", "c25_rows.csv"])
def test_blank_rows_and_columns_are_nothing(name) -> None:
    """What a spreadsheet leaves blank at the end is no row and no column; the rows are said once."""
    rows, summary = plan(CASES / name)
    assert [(row["prompt"], row["seed"], row["carried"]) for row in rows] == [("a chair", 7, {}), ("a table", 8, {})]
    assert list(summary.warnings.values()) == [2]


SHOPIFY = """Handle,Title,Body (HTML),Vendor,Tags,Variant SKU,Variant Grams,Image Src,Image Position,SEO Description
chair,Oak Chair,"<p>A ""fine"" chair,
hand-made</p>",Acme,"oak, chair",'00042,2500.0,https://cdn.example.com/a.jpg?v=1,1,an oak chair
chair,,,,,,,https://cdn.example.com/b.jpg?v=2,2,
"""
WOO = (
    '\ufeffID,Type,SKU,Name,Published,"Short description",Images,"Regular price","Meta: _note"\r\n'
    '44,variable,0044,"V-Neck Tee",1,"a tee\\nfolded",https://example.com/1.jpg,20,\r\n'
    '45,simple,"",Hoodie,1,"a ""hoodie""",,"45,50",""\r\n'
)


def test_a_shopify_export_is_read(tmp_path) -> None:
    """An export of Shopify: HTML with line breaks in cells, rows of further images without a prompt, odd codes."""
    (tmp_path / "products.csv").write_text(SHOPIFY)
    error = refusal(tmp_path / "products.csv")
    assert error.remedy.endswith("--column prompt=COLUMN")
    rows, summary = plan(tmp_path / "products.csv", columns={"prompt": ["SEO Description"]})
    assert [row["state"] for row in rows] == ["new", "invalid"]
    assert "products.csv, line 4" in str(summary.errors[0])
    assert rows[0]["carried"]["Body (HTML)"] == '<p>A "fine" chair,\nhand-made</p>'
    assert rows[0]["carried"]["Variant SKU"] == "'00042"
    assert ["'Image Src' looks like image_urls" in text for text in summary.warnings] == [True]


def test_a_woocommerce_export_is_read(tmp_path) -> None:
    """An export of WooCommerce: a byte order mark, CRLF, doubled quotes, prices with commas."""
    (tmp_path / "products.csv").write_bytes(WOO.encode())
    rows, summary = plan(tmp_path / "products.csv", columns={"prompt": ["Short description"]}, id_column="ID")
    assert [(row["id"], row["prompt"]) for row in rows] == [("44", "a tee\\nfolded"), ("45", 'a "hoodie"')]
    assert [row["carried"]["Meta: _note"] for row in rows] == [None, ""]
    assert [row["carried"]["Regular price"] for row in rows] == ["20", "45,50"]
    assert ["'Images' looks like image_urls" in text for text in summary.warnings] == [True]


def test_a_column_may_change_its_look_after_a_megabyte(tmp_path) -> None:
    """A CSV column of whole numbers may hold a decimal, or its first value, after megabytes; it stays text."""
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(["prompt", "price", "late"])
    writer.writerows([[f"{n} " + "x" * 300, n, ""] for n in range(6000)])
    writer.writerow(["last", "19.90", "2026-01-01"])
    (tmp_path / "m.csv").write_text(sink.getvalue())
    rows, summary = plan(tmp_path / "m.csv")
    assert rows[-1]["carried"] == {"price": "19.90", "late": "2026-01-01"}
    assert (rows[0]["carried"], summary.counts["new"]) == ({"price": "0", "late": None}, 6001)


# Errors of rows


def test_a_bad_cell_is_named_with_its_line(tmp_path) -> None:
    """An error of a text file names file, line, column and value; one of several Parquet files, file and row."""
    (tmp_path / "m.csv").write_text('prompt,steps,seed\n"a\nb",20,1\n\nc,many,1\n,20,x\n')
    _, summary = plan(tmp_path / "m.csv")
    assert [str(error) for error in summary.errors] == [
        "row 1 (m.csv, line 5), column steps: it must be a whole number (found 'many')",
        "row 2 (m.csv, line 6), column prompt: the prompt is missing (found nothing)",
        "row 2 (m.csv, line 6), column seed: the seed must be a whole number (found 'x')",
    ]
    for name, steps in (("a", 5), ("b", 500)):
        pq.write_table(pa.table({"prompt": ["x"], "steps": [steps]}), tmp_path / f"{name}.parquet")
    _, summary = plan(tmp_path)
    assert [str(error) for error in summary.errors] == [
        "row 1 (b.parquet, row 0), column steps: it must lie in 1 to 100 (found 500)"
    ]


def test_words_for_nothing_are_said_once(tmp_path) -> None:
    """NA or NULL without quotes is no value of a field, which is said once for each column, and never drawn."""
    (tmp_path / "m.csv").write_text("prompt,seed,negative_prompt,name\na,NA,NULL,NA\nNULL,5,x,b\nc,nan,,c\n")
    rows, summary = plan(tmp_path / "m.csv", id_column="name")
    assert [row["state"] for row in rows] == ["new", "invalid", "new"]
    assert rows[0]["params"]["negative_prompt"] == "low quality, blurry, less details"
    assert (rows[0]["id"], rows[0]["carried"]["negative_prompt"]) == ("NA", "NULL")
    assert {text.partition(":")[0]: count for text, count in summary.warnings.items()} == {
        "column 'seed'": 2,
        "column 'negative_prompt'": 1,
        "column 'prompt'": 1,
    }


def test_fields_that_no_model_describes_are_read_from_csv(tmp_path) -> None:
    """Numbers for a model that we do not know are numbers where the whole column is, else text as it stands."""
    for cells, sent in (
        (["0.5", "007", "NA"], [0.5, 7, None]),
        (["true", "FALSE", ""], [True, False, None]),
        (["1", "high", ""], ["1", "high", None]),
        (["2026-01-01", "x", ""], ["2026-01-01", "x", None]),
    ):
        lines = "".join(f"p{n},m,{cell}\n" for n, cell in enumerate(cells))
        (tmp_path / "m.csv").write_text(f"prompt,model,strength\n{lines}")
        rows, _ = plan(tmp_path / "m.csv", columns={"strength": ["strength"]})
        assert [row["params"].get("strength") for row in rows] == sent


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
