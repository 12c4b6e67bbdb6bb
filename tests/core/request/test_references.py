"""References: where they lie, what their bytes say, and how pictures are changed for the API."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.request.references import (
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
        ("/data/a.png", "file:///m", "file:///data/a.png"),
        ("/data/a.png", "https://example.com/m", "https://example.com/data/a.png"),
        ("../../../../etc/a.png", "https://example.com/m", "https://example.com/etc/a.png"),
        ("a.png", "https://example.com/m", "https://example.com/m/a.png"),
        ("https://example.com/a.png?x=1", "s3://bucket/m", "https://example.com/a.png?x=1"),
        ("gs://bucket/a.png", "", "gs://bucket/a.png"),
        ("abfs://c/a.png", "", "abfs://c/a.png"),
    ],
)
def test_where_references_lie(value: str, base: str, uri: str) -> None:
    """A URL stays as it is; a path starts from the manifest's folder."""
    assert locate(value, base) == uri


ELSEWHERE = ("s3://bucket/m/n", "gs://bucket/m", "az://box/m", "https://host.example/m", "memory://m/n")


@pytest.mark.parametrize("base", ELSEWHERE)
@pytest.mark.parametrize("value", ["file:///etc/passwd", "FILE:///etc/passwd", "file:etc", "/etc/passwd"])
def test_files_of_this_machine_are_for_manifests_of_this_machine(value: str, base: str) -> None:
    """A manifest that lies elsewhere names no file of this machine, unless that is allowed."""
    try:
        uri = locate(value, base)
    except BadReferenceError as error:
        uri = f"refused: {error}"
    assert not uri.startswith("file:")
    if value != "file:etc" and not base.startswith("https"):
        assert "--allow-local-references" in uri
        assert locate(value, base, allow_local=True).startswith("file:///etc/passwd")


@given(
    st.lists(
        st.sampled_from(
            [
                "..",
                ".",
                "",
                "a.png",
                "other-bucket",
                "%2e%2e",
                "%2F",
                "..%2f",
                "\\\\",
                "..\\..",
                "@",
                "host.example",
                "x y",
                ":",
            ]
        ),
        min_size=1,
        max_size=7,
    ),
    st.sampled_from(ELSEWHERE),
)
def test_no_path_leads_out(parts: list[str], base: str) -> None:
    """However a path is spelled, it stays in the manifest's bucket, or at its host, or it is refused."""
    try:
        uri = locate("/".join(parts), base)
    except BadReferenceError:
        return
    if "://" not in "/".join(parts) and not "/".join(parts).startswith("//"):
        assert uri.startswith("/".join(base.split("/")[:3]) + "/")


@pytest.mark.parametrize(
    "value", ["../../other/a.png", "../../../other/a.png", "n/../../../other/m/a.png", "../..", "../../", "/../other/x"]
)
def test_no_way_into_another_bucket(value: str) -> None:
    """A path that climbs above the bucket is refused, wherever it would lead."""
    with pytest.raises(BadReferenceError):
        locate(value, "s3://bucket/m")


@given(st.text(max_size=40), st.sampled_from(["s3://bucket/m", "file:///data", "https://host/m"]))
def test_no_text_is_too_odd_to_be_placed(value: str, base: str) -> None:
    """Any text is a place or a reason."""
    try:
        place = locate(value, base)
    except BadReferenceError as error:
        place = f"://{error}"
    assert "://" in place


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


@pytest.mark.parametrize("name", ["se", "policy", "SE", "token", "a_", "x-amz-", "amp;", "sp"])
def test_long_queries_are_cheap(name: str) -> None:
    """A query of megabytes is looked through once, so no cell can stall a plan."""
    assert is_signed("https://h/a?" + f"&{name}=" * 500_000) == (name in ("token", "x-amz-"))


@pytest.mark.parametrize(("query", "opens"), [("se=1&x=2&sp=r", True), ("sp=r&se=1", False), ("se=1&sp", False)])
def test_signatures_of_two_names(query: str, opens: bool) -> None:
    """Two names that sign together count in their order, whatever stands between."""
    assert is_signed(f"https://h/a?{query}") == opens
    other = query.replace("se=", "Policy=").replace("sp", "Key-Pair-Id")
    assert is_signed(f"https://h/a?{other}") == opens
