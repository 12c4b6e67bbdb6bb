"""Parquet in pieces: the cells are those of the file, and a text that many rows share fills no memory."""

import io
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.inputs.manifests.parquet import parquet_pieces
from prefect_imagegen.inputs.manifests.window import Bounds

TEXTS = st.none() | st.sampled_from(["", "a", "ß" * 40, "x" * 3000])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": TEXTS,
            "image_urls": st.none() | st.lists(TEXTS, max_size=3),
            "data": st.none() | st.binary(max_size=5),
            "facts": st.none() | st.fixed_dictionaries({"a": TEXTS, "b": st.none() | st.lists(TEXTS, max_size=2)}),
            "seed": st.none() | st.integers(0, 9),
            "kind": TEXTS,
        }
    ),
    min_size=1,
    max_size=40,
)
SCHEMA = pa.schema(
    {
        "prompt": pa.string(),
        "image_urls": pa.large_list(pa.string()),
        "data": pa.binary(),
        "facts": pa.struct({"a": pa.large_string(), "b": pa.list_(pa.string())}),
        "seed": pa.int64(),
        "kind": pa.dictionary(pa.int32(), pa.string()),
    }
)


def written(table: pa.Table, **options: object) -> io.BytesIO:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink


@given(
    rows=ROWS,
    names=st.sets(st.sampled_from(SCHEMA.names)),
    size=st.sampled_from([1, 5000, 10**6]),
    row_group_size=st.sampled_from([3, 100]),
    use_dictionary=st.sampled_from([True, False, ["prompt"]]),
    store_schema=st.booleans(),
    limit=st.sampled_from([64, 2**20]),
)
def test_the_pieces_are_the_file(rows, names, size, row_group_size, use_dictionary, store_schema, limit) -> None:
    """Whatever the columns, encodings and bounds: the pieces hold the rows of the file, in its types and its order."""
    options = {"row_group_size": row_group_size, "use_dictionary": use_dictionary, "store_schema": store_schema}
    options |= {"dictionary_pagesize_limit": limit, "write_batch_size": 2, "data_page_size": 64}
    source = written(pa.Table.from_pylist(rows, SCHEMA), **options)
    whole = pq.read_table(source)
    pieces = list(parquet_pieces(source, names, Bounds(7, size)))
    assert sum(map(len, pieces)) == len(rows)
    for name in names:
        assert {str(piece.columns[name].type) for piece in pieces} == {str(whole.schema.field(name).type)}
        assert [cell for piece in pieces for cell in piece.columns[name].to_pylist()] == whole[name].to_pylist()


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.string()), pa.struct({"a": pa.list_(pa.string())})])
def test_a_text_that_many_rows_share_is_unfolded_row_by_row(kind: pa.DataType) -> None:
    """A file of a few kB, in which all rows share a text of megabytes, is read in pieces that fit."""
    text = "x" * 4_000_000
    cell = {"string": text, "list<item: string>": [text], "struct<a: list<item: string>>": {"a": [text, text]}}[
        str(kind)
    ]
    table = pa.table({"prompt": pa.array([cell] * 100, kind)})
    source = written(table, compression="zstd", store_schema=False, dictionary_pagesize_limit=2**30)
    assert source.tell() < 100_000
    for piece in islice(parquet_pieces(source, {"prompt"}, Bounds(32_768, 10_000_000)), 5):
        assert 1 <= len(piece) <= 2
        assert piece.columns["prompt"].nbytes < 20_000_000
