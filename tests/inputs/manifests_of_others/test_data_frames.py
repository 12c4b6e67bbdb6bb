"""Manifests of pandas, polars and DuckDB; what they read from the same file is the yardstick."""

import csv
import json
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tests.inputs.manifests_of_others.conftest import by_duckdb, plan

ROWS = [
    {"sku": "00042", "prompt": 'a "red" cup, on oak', "seed": 7, "cfg": 4.5, "go_fast": True, "note": "NA"},
    {"sku": "00043", "prompt": "Käse 🧀\nzweite Zeile", "seed": 2**53 + 1, "cfg": 5.0, "go_fast": False, "note": ""},
    {"sku": "1e5", "prompt": "a chair; beech", "seed": None, "cfg": None, "go_fast": None, "note": None},
]


def asked(rows) -> list[tuple]:
    """What the rows ask for, seeds of their own only."""
    return [(row["prompt"], row["params"]["cfg"], row["params"]["go_fast"]) for row in rows]


ASKED = [(ROWS[0]["prompt"], 4.5, True), (ROWS[1]["prompt"], 5, False), (ROWS[2]["prompt"], 5, True)]


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
