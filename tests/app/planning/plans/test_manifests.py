"""Plans of manifests in any format, of any content; and those that cannot be planned."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_imagegen.app.planning.stored_plan import request_from_json
from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.plan import SHOWN_ERRORS
from prefect_imagegen.inputs.manifests.manifest import Manifest
from tests.app.planning.plans.conftest import (
    MODEL,
    plan,
    tables,
    write,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("table", "options", "kind", "words"),
    [
        ({"text": ["a"]}, {}, "manifest_schema", "--column prompt=text"),
        ({"prompt": ["a"]}, {"columns": {"seed": ["sed"]}}, "manifest_schema", "no column 'sed'"),
        ({"prompt": ["a"]}, {"values": {"step": 4}}, "unknown_field", "Did you mean 'steps'?"),
        ({"prompt": ["a"], "x": [1]}, {"columns": {"guidance": ["x"]}}, "unknown_field", "no field 'guidance'"),
        ({"prompt": []}, {}, "manifest_empty", "has no rows"),
    ],
)
def test_a_manifest_that_cannot_be_planned(tmp_path, table, options, kind, words) -> None:
    """A missing column, an unknown field or an empty manifest is refused with the culprit and the remedy."""
    with pytest.raises(RefusedError) as raised:
        plan(write(tmp_path, table), **options)
    assert raised.value.kind == kind
    assert words in str(raised.value)


def test_a_field_of_a_passed_through_model_is_allowed(tmp_path) -> None:
    """A field that we do not know is sent where a row's model may know it."""
    table = {"prompt": ["a", "b"], "model": [MODEL, "qwen-image"], "x": [1.5, 2.5]}
    rows, _ = plan(write(tmp_path, table), columns={"guidance": ["x"]})
    params = [dict(request_from_json(row["request"]).params) for row in rows]
    assert ["guidance" in fields for fields in params] == [False, True]


def test_csv_and_json_lines_give_the_same_plan(tmp_path) -> None:
    """The same rows as Parquet, CSV and JSON lines are the same requests, numbers as text included."""
    pq.write_table(pa.table({"prompt": ["007", "b"], "name": ["1", "2"], "cfg": [5.5, None]}), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("prompt,name,cfg\n007,1,5.5\nb,2,\n")
    (tmp_path / "m.jsonl").write_text('{"prompt":"007","name":"1","cfg":5.5}\n{"prompt":"b","name":"2"}\n')
    keys = [
        [row["request_key"] for row in plan(Manifest(str(tmp_path / name)), id_column="name")[0]]
        for name in ("m.parquet", "m.csv", "m.jsonl")
    ]
    assert keys[0] == keys[1] == keys[2]
    assert None not in keys[0]


def test_csv_text_fields_are_text(tmp_path) -> None:
    """Every field that a model takes as text is read as text from a CSV, mapped or not."""
    (tmp_path / "m.csv").write_text("words,negative_prompt,avoid\n7,8,9\n")
    manifest = Manifest(str(tmp_path / "m.csv"))
    (row,), _ = plan(manifest, columns={"prompt": ["words"]})
    assert request_from_json(row["request"]).params["negative_prompt"] == "8"
    (row,), _ = plan(manifest, columns={"prompt": ["words"], "negative_prompt": ["avoid"]})
    assert request_from_json(row["request"]).params["negative_prompt"] == "9"


@settings(max_examples=200)
@given(tables(), st.sampled_from(["parquet", "jsonl", "csv"]), st.binary(max_size=4))
def test_no_manifest_raises(tmp_path_factory, table, suffix, junk) -> None:
    """Whatever a manifest holds, each of its rows is planned or told as invalid, or the file is refused by name."""
    path = tmp_path_factory.mktemp("fuzz") / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        rows = [json.dumps(row, default=str) for row in table.to_pylist()]
        lines = rows if suffix == "jsonl" else [",".join(json.dumps(name) for name in table.column_names), *rows]
        path.write_bytes("\n".join(lines).encode(errors="replace") + junk)
    refusal = None
    try:
        rows, summary = plan(Manifest(str(path)))
    except RefusedError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(path) in refusal or "column" in refusal
        return
    assert sum(summary.counts.values()) == summary.rows
    assert len(rows) == summary.rows
    assert len(summary.errors) == min(SHOWN_ERRORS, sum(summary.reasons.values()))
