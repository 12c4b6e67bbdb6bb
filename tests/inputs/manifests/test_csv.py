"""CSV manifests: cells, separators, encodings, and what is said of broken ones."""

import bz2
import gzip
import lzma
import secrets
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pytest

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.request.manifest_types import join_schemas
from prefect_imagegen.inputs.manifests.manifest import Manifest
from tests.inputs.manifests.conftest import read, refusal, windows


def test_text_that_looks_like_a_date_is_text(tmp_path) -> None:
    """Text of JSON lines that looks like a date stays text."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"prompt": "2024-01-01", "day": "2024-01-01"}\n{"prompt": "a cup", "day": "2024-01-02"}\n')
    table = read(path)
    assert table["prompt"].to_pylist() == ["2024-01-01", "a cup"]
    assert table["day"].to_pylist() == ["2024-01-01", "2024-01-02"]


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
