"""Cells of references, as people's tables and programs write them: taken where it is clear, refused where not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.request.reference_cells import path_hint, reference_texts
from prefect_imagegen.core.request.references import BadReferenceError, is_signed, locate, unescaped
from prefect_imagegen.inputs.manifests.manifest import Manifest

A, B = "https://shop.example/a.jpg", "http://cdn.example/b,c.png"
CASES = Path(__file__).parents[2] / "data" / "cases"


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        # One address or path, with quotes, brackets or blanks around it.
        (f"  {A}\n", [A]),
        (f"\ufeff{A}\u200b", [A]),
        (f"\u00a0{A}", [A]),
        (f'"{A}"', [A]),
        (f"'{A}'", [A]),
        (f"<{A}>", [A]),
        (f"“{A}”", [A]),
        (" shoe.jpg", ["shoe.jpg"]),
        ("shoe.jpg\t", ["shoe.jpg"]),
        ("   ", []),
        (float("nan"), []),
        # A comma inside of one address stays; so does an address inside of another.
        (B, [B]),
        ("https://h.example/w_300,h_200/a.jpg", ["https://h.example/w_300,h_200/a.jpg"]),
        (
            "https://proxy.example/300x200/https://o.example/a.jpg",
            ["https://proxy.example/300x200/https://o.example/a.jpg"],
        ),
        ("https://proxy.example/?u=https://o.example/a.jpg", ["https://proxy.example/?u=https://o.example/a.jpg"]),
        ("https://h.example/a.jpg?crop=1,2,3,4&w=5;6", ["https://h.example/a.jpg?crop=1,2,3,4&w=5;6"]),
        ("https://h.example/my photo, edited.jpg", ["https://h.example/my photo, edited.jpg"]),
        (f"{A},", [f"{A},"]),
        # Several addresses.
        *((f"{A}{cut}{B}", [A, B]) for cut in (",", ", ", ";", " ; ", "|", "\n", "\r\n", " ", "\t", ",\n", ",,")),
        (f"{A},{B},{A}", [A, B, A]),
        (f"{A}, {B},", [A, B]),
        (f"{A},{B}?v=2", [A, f"{B}?v=2"]),
        (f"{A};s3://bucket/b.png|file:///c.png", [A, "s3://bucket/b.png", "file:///c.png"]),
        (f'"{A}", "{B}?v=2,x"', [A, f"{B}?v=2,x"]),
        (f"<{A}>\n<{B}>", [A, B]),
        # Paths are not guessed at.
        ("a.jpg,b.jpg", ["a.jpg,b.jpg"]),
        ("photos/a; b.jpg", ["photos/a; b.jpg"]),
        ("[final] shoe.jpg", ["[final] shoe.jpg"]),
        ("(2) shoe.jpg", ["(2) shoe.jpg"]),
        ("{draft} shoe.jpg", ["{draft} shoe.jpg"]),
        # Lists: of Parquet, JSON, Python, NumPy, Postgres, DuckDB. Quoted text is never split.
        ([A, None, "", float("nan"), B], [A, B]),
        ([f"{A}?v=1,{B}"], [f"{A}?v=1,{B}"]),
        (json.dumps([A, f"{B}?v=1", B]), [A, f"{B}?v=1", B]),
        (json.dumps(A), [A]),
        (f"['{A}', '{B}?v=1']", [A, f"{B}?v=1"]),
        (f"['{A}' '{B}']", [A, B]),
        (f"['{A}'\n '{B}']", [A, B]),
        (f"('{A}', '{B}')", [A, B]),
        (f"{{{A},{B}}}", [A, B]),
        (f'{{"{A}","{B}"}}', [A, B]),
        (f"[{A}, {B}]", [A, B]),
        ("[]", []),
        ("{}", BadReferenceError),
        # Objects: Hugging Face, Airtable, Shopify.
        ({"url": A}, [A]),
        ({"id": 7, "SRC": A, "alt": "x"}, [A]),
        ({"bytes": None, "path": "a.png"}, ["a.png"]),
        ({"bytes": None, "path": None}, []),
        ([{"id": "att", "url": A, "filename": "a.jpg", "thumbnails": {"small": {"url": B}}}, {"uri": B}], [A, B]),
        (json.dumps([{"url": A}, {"url": f"{B}?x=1"}]), [A, f"{B}?x=1"]),
        (json.dumps({"src": A}), [A]),
        # Attachments as text, links in Markdown, formulas of spreadsheets.
        (f"a.jpg ({A})", [A]),
        (f"lamp front.jpg ({A}),lamp (2), new.jpg ({B})", [A, B]),
        (f"lamp.jpg ({A}?x=1), b.jpg (https://h.example/b_(1).png)", [f"{A}?x=1", "https://h.example/b_(1).png"]),
        (f"![a lamp]({A})", [A]),
        (f"[a lamp]({A}) [b]({B})", [A, B]),
        (f'=HYPERLINK("{A}","lamp")', [A]),
        (f'=image("{A}")', [A]),
    ],
)
def test_cells_that_are_clear(cell: object, texts: object) -> None:
    """What is clear is taken: in order, each address byte for byte as it was written."""
    if texts is BadReferenceError:
        with pytest.raises(BadReferenceError):
            reference_texts([cell])
    else:
        assert reference_texts([cell]) == texts


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (f"{A}?v=11,{B}?v=22", "one with a ? may go on behind it; give them as a list, as JSON"),
        (f"{A}?v=11, {B}", "one with a ? may go on behind it"),
        (f"{A}?v=1, b.jpg", "one with a ? may go on behind it"),
        (f"[{A}?v=1, {B}]", "one with a ? may go on behind it"),
        (f"photos/a.jpg, {A}", "not each is a whole URL"),
        (f"see {A}", "not each is a whole URL"),
        (f"{A}, https://", "not each is a whole URL"),
        (f"{A} 1x, {B} 2x", "srcset"),
        (f'<img src="{A}">', "markup"),
        (b"\x89PNG", "image data does not belong into a manifest"),
        ({"bytes": b"\x89PNG", "path": "a.png"}, "image data does not belong into a manifest"),
        ("/9j/" + "4AAQSkZJRgABAQAAAQABAAD/" * 9, "image data does not belong into a manifest"),
        ("iVBORw0KGgo" + "AAAANSUhEUgAAAAEAAAABCAYAAAAf" * 9, "image data does not belong into a manifest"),
        ({"link": A}, "the object has none of the fields url, src, uri and path (it has: link)"),
        ("[a.png, b.png]", "must be JSON"),
        ('["a.png"', "must be JSON"),
        ("[1, 2]", "must be a URL or a path"),
        ("[" * 100_000, "must be JSON"),
        ([[[[[[[A]]]]]]], "must be a URL or a path"),
        (7, "must be a URL or a path"),
        (True, "must be a URL or a path"),
        ("a\ud800.png", "half a character"),
    ],
)
def test_cells_that_are_not_clear(cell: object, reason: str) -> None:
    """What is not clear is refused with a remedy, and never taken for less than it may be."""
    with pytest.raises(BadReferenceError) as caught:
        reference_texts([cell])
    assert reason in str(caught.value)


def test_several_columns_are_several_cells() -> None:
    """Each column is a cell of its own: the remedy for addresses with a query is a true one."""
    assert reference_texts([f"{A}?v=1", None, f"{B}?v=2", f"{A}, {B}"]) == [f"{A}?v=1", f"{B}?v=2", A, B]


PIECE = st.builds(
    lambda scheme, host, rest: f"{scheme}://{host}.example/{rest}",
    st.sampled_from(("http", "https", "s3", "HTTPS")),
    st.text("abc-", min_size=1, max_size=6),
    st.text("ab/.-_~%20,;|()!", max_size=12).map(lambda rest: f"{rest.strip(',;|')}x.png"),
)


@given(st.lists(PIECE, min_size=1, max_size=5), st.sampled_from((",", ", ", ";", "|", "\n", " ", " | ", ",\n")))
def test_several_addresses_come_out_as_they_went_in(pieces: list[str], cut: str) -> None:
    """Any addresses without a query that are joined come out one by one, whatever they have in them."""
    assert reference_texts([cut.join(pieces)]) == pieces
    assert reference_texts([pieces]) == pieces
    assert reference_texts([json.dumps(pieces)]) == pieces


@given(st.lists(PIECE, min_size=2, max_size=4), st.data())
def test_no_address_is_lost_in_a_query(pieces: list[str], data: st.DataObject) -> None:
    """A cell with a query before another address is refused; in a list each item is whole."""
    position = data.draw(st.integers(0, len(pieces) - 2))
    pieces = [f"{piece}?v={n}" if n == position else piece for n, piece in enumerate(pieces)]
    with pytest.raises(BadReferenceError):
        reference_texts([", ".join(pieces)])
    assert reference_texts([pieces]) == pieces


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.floats()
        | st.integers()
        | st.text(max_size=30)
        | st.binary(max_size=4)
        | st.text("[]{}()<>\"',;|:/ ?htps=x\n", max_size=40),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.just("url"), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_no_cell_is_too_odd(cell: object) -> None:
    """Any cell is references that can be placed, or a reason."""
    try:
        texts = reference_texts([cell])
        places = [locate(text, "file:///m") for text in texts]
    except BadReferenceError as error:
        assert str(error)  # noqa: PT017 - the reason is what is looked at
    else:
        assert all("://" in place for place in places)


_HUGE_CELLS = """
from prefect_imagegen.core.request.reference_cells import path_hint, reference_texts
from prefect_imagegen.core.request.references import BadReferenceError, locate, unescaped
for text in (" ", ",", "a ", "(a://", "(a", '"', "a://b ", "<", "[", "{", " ;|", "a?, ", "&amp;", "\\\\", "(a://)"):
    huge = "x" + text * (100_000 // len(text))
    for cell in (huge, huge[1:], f"https://h.example/{huge}"):
        try:
            for place in reference_texts([cell])[:1]:
                unescaped(locate(place, "file:///m"))
                path_hint(place)
        except BadReferenceError:
            pass
"""


def test_huge_cells_are_read_in_one_go(cpu_limited: Callable[[str], None]) -> None:
    """Cells of a hundred thousand signs are read in one go, whatever they are full of: they come from outside."""
    cpu_limited(_HUGE_CELLS)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https:/host/a.png", "begin with https://"),
        ("ttps://host/a.png"[1:], ""),
        ("www.shop.example/a.png", "begin with https://"),
        ("shop.com/a.png", "begin with https://"),
        ("https%3A%2F%2Fshop.com%2Fa.png", "begin with https://"),
        ("a.jpg, b.jpg", "if these are several, give them as a list"),
        ("photos\\a.jpg", "written with /"),
        ("photos/a.jpg", ""),
    ],
)
def test_what_may_be_wrong_with_a_path(text: str, hint: str) -> None:
    """A path that leads nowhere gets the likely reason with it."""
    message = path_hint(text)
    assert hint in message
    assert bool(message) == bool(hint)


@pytest.mark.parametrize(
    ("value", "uri"),
    [
        ("//cdn.shopify.com/s/files/a.png?v=1", "https://cdn.shopify.com/s/files/a.png?v=1"),
        ("//data/a.png", "file:////data/a.png"),
        ("HTTPS://Shop.example/A.png", "https://Shop.example/A.png"),
        ("S3://bucket/a.png", "s3://bucket/a.png"),
        (f"{A}?x=1&amp;y=2", f"{A}?x=1&amp;y=2"),
        (f"https://{'a' * 63}.example/a.png", f"https://{'a' * 63}.example/a.png"),
        ("https://shop.example./a.png", "https://shop.example./a.png"),
        ("https://my_bucket.example/a.png", "https://my_bucket.example/a.png"),
    ],
)
def test_spellings_of_addresses(value: str, uri: str) -> None:
    """An address stays byte for byte as it is, for it is what a request is known by; only schemes are made plain."""
    assert locate(value, "file:///m") == uri


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (f"https://{'a' * 64}.example/a.png", "empty or too long"),
        ("https://shop..example/a.png", "empty or too long"),
        ("https://.example/a.png", "empty or too long"),
        (f"https://{'.'.join(['abcdefgh'] * 40)}/a.png", "empty or too long"),
        ("https://shop.example:65536/a.png", "port"),
        ("https://shop.example:x/a.png", "port"),
        ("http://[::1", "no valid URL"),
        ("\x01https://shop.example/a.png", "no valid URL"),
    ],
)
def test_hosts_that_cannot_be(value: str, reason: str) -> None:
    """A host that no name service can be asked for, and a port that cannot be, are told as what they are."""
    with pytest.raises(BadReferenceError, match=reason):
        locate(value, "file:///m")


def test_an_address_out_of_html() -> None:
    """`&amp;` is asked for as `&`, and a signature behind it is seen."""
    assert unescaped(f"{A}?a=1&amp;b=2&#38;c=3&amp;amp;d=4&x=%26amp%3B") == f"{A}?a=1&b=2&c=3&d=4&x=%26amp%3B"
    assert unescaped("file:///a&amp;b.png") == "file:///a&amp;b.png"
    assert is_signed(f"{A}?a=1&amp;X-Amz-Signature=x")


@pytest.mark.parametrize(
    ("name", "column", "counts"),
    [
        ("c01_shop.csv", "Images", [2, 1, 0]),
        ("c01_separators.csv", "image_urls", [2, 2, 2, 2, None]),
        ("c01_versioned.csv", "image_urls", [None, None]),
        ("c23_lead.csv", "image_urls", [1]),
        ("c23_tab.csv", "image_urls", [1]),
        ("c24_attachments.csv", "Attachments", [2]),
    ],
)
def test_tables_of_real_people(name: str, column: str, counts: list[int | None]) -> None:
    """Exports of shops and of Airtable give as many references as they list, or are refused (None)."""
    manifest = Manifest(str(CASES / name), {})
    ((_, schema),) = manifest.schemas([column])
    cells = [cell for window in manifest.windows(schema, [column]) for cell in window.column(column).to_pylist()]
    manifest.close()
    for cell, count in zip(cells, counts, strict=True):
        if count is None:
            with pytest.raises(BadReferenceError, match="give them as a list"):
                reference_texts([cell])
        else:
            texts = reference_texts([cell])
            assert len(texts) == count
            assert all(text == text.strip() for text in texts)
