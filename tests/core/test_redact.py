"""Texts from outside are made safe to show and to store."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.redact import MAX_TEXT, redact

KEY = "SG_0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (f"Unauthorized: {KEY} is invalid", "Unauthorized: [key] is invalid"),
        (f"{KEY},{KEY.upper()}", "[key],[key]"),
        ("https://host/a.png?X-Amz-Signature=abc&x=1 gone", "https://host/a.png gone"),
        ('{"url":"https://host/a?sig=abc"}', '{"url":"https://host/a"}'),
        ("https://host/a#token=abc", "https://host/a"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("http://me:hunter2@host:80/a?b=c", "http://host:80/a"),
        ("ftp://me:hun@ter2@host/a", "ftp://host/a"),
        ("http://me:hun/ter2@host/a", "http://host/a"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("401: you sent Authorization: Bearer hunter2-hunter2", "401: you sent Authorization: [secret]"),
        ('{"x-api-key": "hunter2"}', '{"x-api-key": "[secret]"}'),
        ("bad header 'X-API-KEY: hunter2'", "bad header 'X-API-KEY: [secret]'"),
        ("Bearer hunter2.hunter2_x is expired", "Bearer [secret] is expired"),
        ("Basic aHVudGVyMjpodW50ZXIy", "Basic [secret]"),
        ("<SignatureProvided>hunter2=</SignatureProvided>", "<SignatureProvided>[secret]</SignatureProvided>"),
        ("<AWSAccessKeyId>AKIA0</AWSAccessKeyId>", "<AWSAccessKeyId>[secret]</AWSAccessKeyId>"),
        (
            "AWS4-HMAC-SHA256 Credential=AKIA0/2026/s3, SignedHeaders=host, Signature=ab12",
            "AWS4-HMAC-SHA256 Credential=[secret], SignedHeaders=host, Signature=[secret]",
        ),
        (
            "/bucket/a?X-Amz-Credential=AKIA0&X-Amz-Signature=ab",
            "/bucket/a?X-Amz-Credential=[secret]&X-Amz-Signature=[secret]",
        ),
        ("access_token=hunter2&x=1", "access_token=[secret]&x=1"),
        ("the basic shape, the bearer of news", "the basic shape, the bearer of news"),
        ("column 'api_key' and password: it is missing", "column 'api_key' and password: it is missing"),
        ("no such data:image/png;base64,iVBORw0KGgo= here", "no such [data url] here"),
        ("see https://images.segmind.com/assets/me@example.com/images/1.jpg now", "see [asset url] now"),
        ("two\n lines\t and  spaces ", "two lines and spaces"),
        ("half \ud83e", "half ?"),
        ("SG_ is a prefix, a@b.c an address, 1:1 a ratio", "SG_ is a prefix, a@b.c an address, 1:1 a ratio"),
        ("", ""),
    ],
)
def test_secrets_go_and_the_rest_stays(text, safe) -> None:
    """Keys, user parts, queries and asset addresses are taken out; everything else stays readable."""
    assert redact(text) == safe


@given(st.text(st.characters()) | st.text("SG_0:/?@https ", max_size=200))
def test_the_result_can_be_stored(text) -> None:
    """Any text becomes one line of at most 500 characters that a file can hold, and redacting again changes nothing."""
    safe = redact(text)
    assert len(safe) <= MAX_TEXT
    assert safe.splitlines() in ([], [safe])
    safe.encode()


@pytest.mark.parametrize("unit", ["p", "http://", "https://a/assets", "SG_", "://@", "a://b"])
def test_huge_texts_are_cheap(unit) -> None:
    """A text of megabytes is cut before it is searched, so no cell and no page can stall a run."""
    assert len(redact(unit * 1_000_000)) <= MAX_TEXT


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_key_never_survives(before, after) -> None:
    """Whatever stands around an API key, it does not come through."""
    assert KEY not in redact(f"{before} {KEY} {after}")


@pytest.mark.parametrize("key", ["hunter2/hunter2+x", "pool-key-1", "SG_other form"])
def test_a_known_key_never_survives(key: str) -> None:
    """A key that is known goes in each spelling in which servers repeat it, whatever it looks like."""
    for spelling in (key, quote(key, safe=""), base64.b64encode(key.encode()).decode().rstrip("=")):
        assert redact(f"the key {spelling} is not valid", key) == "the key [key] is not valid"
    assert redact("a k is no key", "k") == "a k is no key"


@pytest.mark.parametrize("sign", ["\x1b", "\x9b", "\x07", "\x00", "\x7f", "\u202e", "\u200b", "\ufeff"])
def test_no_text_commands_a_terminal(sign) -> None:
    """Escapes that a terminal obeys, and marks that turn or hide what is written, do not come through."""
    safe = redact(f"a{sign}]0;title{sign}[2Jb")
    assert sign not in safe
    assert safe.startswith("a")
    assert safe.endswith("b")
