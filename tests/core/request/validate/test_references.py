"""References of a row: every form of cell, and those that are refused."""

import hashlib

import pytest

from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from tests.core.request.validate.conftest import CUP, URL, only_error, valid, validator


def test_match_input_image_needs_a_reference() -> None:
    """The ratio match_input_image without any reference is an error of the row."""
    row = {**CUP, "aspect_ratio": "match_input_image"}
    assert only_error(row).reason == "it needs at least one reference image"
    assert only_error({**row, "image_urls": [None, ""]}).column == "aspect_ratio"
    assert valid({**row, "image_urls": [URL]}).request.references


@pytest.mark.parametrize(
    ("cell", "urls"),
    [
        (None, []),
        ("", []),
        ([], []),
        (URL, [URL]),
        ([URL, None, "http://example.com/b"], [URL, "http://example.com/b"]),
        (f'["{URL}", "{URL}?v=2"]', [URL, f"{URL}?v=2"]),
        ("https://example.com/ü.png#frag", ["https://example.com/ü.png#frag"]),
        ("https://example.com:8443/a.png?size=3&signal=1", ["https://example.com:8443/a.png?size=3&signal=1"]),
    ],
)
def test_reference_cells_come_in_many_forms(cell, urls) -> None:
    """One URL, a list, JSON text of a list, or nothing: references keep their order and spelling."""
    references = valid({**CUP, "image_urls": cell}).request.references
    assert [reference.value for reference in references] == urls
    assert all(reference.kind == "url" and reference.uri == reference.value for reference in references)


def test_several_columns_feed_references_in_order() -> None:
    """References of several columns come in the order in which the columns were named; empty cells are left out."""
    row = {**CUP, "back": URL, "front": None, "side": [f"{URL}?1", f"{URL}?2"]}
    request = valid(row, columns={"image_urls": ["front", "side", "back"]}).request
    assert [reference.value for reference in request.references] == [f"{URL}?1", f"{URL}?2", URL]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("ftp://host/a.png", "ftp is not supported; a reference is an http(s), s3, gs, az or file URL, or a path"),
        ("data:image/png;base64,AAAA", "image data does not belong into a manifest"),
        ("https:///a.png", "the URL names no host"),
        ("s3://bucket/a.png?X-Amz-Signature=1", "credentials do not belong into a reference"),
        ("../../../a.png", "the path leads out of s3://bucket/manifests"),
        ("s3://bucket/a.png", "s3://bucket/a.png: it was not read"),
        ("https://[::1/a.png", "is no valid URL"),
        (7, "a reference must be a URL or a path"),
        ([URL, {"link": URL}], "the object has none of the fields url, src, uri and path (it has: link)"),
        ('["https://example.com/a.png"', "a reference list in text form must be JSON"),
        ("https://example.com/\ud800", "the text holds half a character (a lone surrogate)"),
    ],
)
def test_an_unusable_reference_is_an_error(cell, reason) -> None:
    """Whatever cannot be read, or is not to be read, is an error of its row."""
    row = {**CUP, "image_urls": cell}
    check = validator(row)
    check.base = "s3://bucket/manifests"
    (error,) = check.validate(0, row)
    assert error.column == "image_urls"
    assert reason in error.reason
    str(error).encode()


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Signature=SECRETPART&X-Amz-Expires=60",
        "x-goog-signature=SECRETPART",
        "sv=2024&sig=SECRETPART",
        "se=2026-01-01&sp=r&sv=SECRETPART",
        "Expires=1&Signature=SECRETPART&AWSAccessKeyId=AKIA",
        "v=1&token=SECRETPART",
    ],
)
def test_a_signed_reference_is_refused_with_its_remedy(query) -> None:
    """A signed URL would change the key at every signing: refused, with the remedy, and never shown."""
    error = only_error({**CUP, "image_urls": f"https://bucket.example.com/a.png?{query}"})
    assert "signed URL" in error.reason
    assert "--reference-identity content" in error.reason
    assert "SECRETPART" not in str(error)


def test_credentials_in_a_reference_are_refused_and_hidden() -> None:
    """A reference with a password is refused, and the password is not repeated."""
    error = only_error({**CUP, "image_urls": "https://me:hunter2@example.com/a.png"})
    assert "user name or password" in error.reason
    assert "hunter2" not in str(error)


def facts(name: str) -> ReferenceFacts:
    return ReferenceFacts(hashlib.sha256(name.encode()).hexdigest(), len(name))


def test_references_in_buckets_and_files_are_known_by_content() -> None:
    """What is no web URL is known by its bytes: the same bytes under another name make the same request."""
    row = {**CUP, "image_urls": ["photos/a.png", "s3://other/b.png", "/data/c.png", URL]}
    check = validator(row, allow_local_references=True)
    check.base = "s3://bucket/manifests"
    uris = check.contents_needed(row)
    assert uris == ["s3://bucket/manifests/photos/a.png", "s3://other/b.png", "file:///data/c.png"]
    check.contents = {uri: facts(str(n)) for n, uri in enumerate(uris)}
    request = check.validate(0, row).request
    assert [reference.tag for reference in request.references] == [{"sha256": facts(n).sha256} for n in "012"] + [
        {"url": URL}
    ]
    check.base, moved = "file:///elsewhere", {**row, "image_urls": ["x/a.png", "b.png", "c.png", URL]}
    check.contents = {uri: facts(str(n)) for n, uri in enumerate(check.contents_needed(moved))}
    assert check.validate(0, moved).request.key == request.key
    check.contents = {uri: facts(f"{n} changed") for n, uri in enumerate(check.contents_needed(moved))}
    assert check.validate(0, moved).request.key != request.key


def test_web_references_by_content() -> None:
    """With `--reference-identity content` web references go by their bytes too, and a signature is no hindrance."""
    signed = f"{URL}?X-Amz-Signature=SECRETPART"
    row = {**CUP, "image_urls": [URL, signed]}
    check = validator(row, reference_identity="content")
    check.contents = {URL: facts("a"), signed: facts("b")}
    assert check.contents_needed(row) == [URL, signed]
    references = check.validate(0, row).request.references
    assert [reference.value for reference in references] == [facts("a").sha256, facts("b").sha256]
    assert [reference.uri for reference in references] == [URL, URL]  # no signature goes into a plan


def test_an_unreadable_reference_is_told_with_its_reason() -> None:
    """A reference that cannot be read makes its row invalid, and is named."""
    row = {**CUP, "image_urls": ["photos/a.png"]}
    check = validator(row)
    check.base, check.contents = "file:///m", {"file:///m/photos/a.png": "it does not exist"}
    (error,) = check.validate(3, row)
    assert (error.row, error.column) == (3, "image_urls")
    assert error.reason == "file:///m/photos/a.png: it does not exist"


def test_many_references_are_a_warning() -> None:
    """More references than other hosts take is a warning, not an error."""
    row = {**CUP, "image_urls": [f"{URL}?{n}" for n in range(5)]}
    check = validator(row)
    assert len(check.validate(0, row).request.references) == 5
    assert ["more than 4 references" in text for text in check.warnings] == [True]
