"""JSON lines: fields that appear late, and broken lines."""

import json

import pytest

from prefect_imagegen.inputs.manifests import manifest as manifests
from tests.inputs.manifests.conftest import read, refusal, windows


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
