"""Cells of other programs that feed nothing, or that no field can take."""

import pyarrow as pa
import pyarrow.parquet as pq

from tests.inputs.manifests_of_others.conftest import plan


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
