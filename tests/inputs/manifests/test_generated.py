"""Whatever other writers make of a table, CSV and JSON lines give it back."""

import csv
import io
import json

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tests.inputs.manifests.conftest import read, refusal, windows

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
