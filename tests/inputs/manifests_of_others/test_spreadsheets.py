"""Manifests of spreadsheets and shops: headers, separators, encodings, blanks."""

import csv
import io
import json

import pytest

from tests.inputs.manifests_of_others.conftest import CASES, plan, refusal


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
