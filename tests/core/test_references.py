"""What references are made of: where they lie, what their bytes say, and how they are made fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.reference_pictures import ReferenceFacts
from prefect_imagegen.core.references import (
    BadReferenceError,
    family,
    is_signed,
    locate,
    shown,
    unfit,
)


@pytest.mark.parametrize(
    ("value", "base", "uri"),
    [
        ("photos/a.png", "s3://bucket/m", "s3://bucket/m/photos/a.png"),
        ("../a b#1.png", "s3://bucket/m", "s3://bucket/a b#1.png"),
        ("./a.png", "file:///data/m", "file:///data/m/a.png"),
        ("../../a.png", "file:///data/m", "file:///a.png"),
        ("/data/a.png", "s3://bucket/m", "file:///data/a.png"),
        ("a.png", "https://example.com/m", "https://example.com/m/a.png"),
        ("https://example.com/a.png?x=1", "s3://bucket/m", "https://example.com/a.png?x=1"),
        ("gs://bucket/a.png", "", "gs://bucket/a.png"),
        ("abfs://c/a.png", "", "abfs://c/a.png"),
    ],
)
def test_where_references_lie(value: str, base: str, uri: str) -> None:
    """A URL stays as it is; a path starts from the manifest's folder."""
    assert locate(value, base) == uri


@given(st.text(max_size=40), st.sampled_from(["s3://bucket/m", "file:///data", "https://host/m"]))
def test_no_text_is_too_odd_to_be_placed(value: str, base: str) -> None:
    """Any text is a place or a reason."""
    try:
        found = locate(value, base)
    except BadReferenceError as error:
        found = f"://{error}"
    assert "://" in found


def test_families_signatures_and_what_is_shown() -> None:
    """Spellings of one file system are one; a query is shown of no web URL, and kept in a key of a bucket."""
    assert [family(url) for url in ("s3a://b/x", "gcs://b/x", "abfss://c/x", "/tmp/x", "https://h/x")] == [
        *("s3", "gs", "az", "file", "https")
    ]
    assert is_signed("https://h/x?X-Amz-Signature=1")
    assert not is_signed("https://h/x?size=1")
    assert shown("https://h/x?X-Amz-Signature=1#f") == "https://h/x"
    assert shown("s3://b/what?.png") == "s3://b/what?.png"


def test_what_a_transport_cannot_carry() -> None:
    """A presigned picture goes as it is: a file, or one that has to be changed, is told before anything is called."""
    plain = ReferenceFacts("00", 1, 100, 100, "png")
    turned = ReferenceFacts("00", 1, 100, 100, "jpeg", ("turned upright",))
    assert unfit("s3://b/x", plain, "presign") is None
    assert "cannot be presigned" in (unfit("file:///x", None, "presign") or "")
    assert "turned upright" in (unfit("s3://b/x", turned, "presign") or "")
    assert unfit("s3://b/x", turned, "auto") is None
    assert unfit("file:///x", ReferenceFacts("00", 1, problem="no"), "auto") == "no"
