"""Addresses of stores: where things are found again, and those that are refused."""

import asyncio
import secrets

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.store.object_store import open_object_store
from tests.contracts.object_store.conftest import KINDS

pytestmark = pytest.mark.anyio
UNFIT = {
    "s3://bucket/a//b": "//",
    "s3://bucket//a": "//",
    "s3://bucket/a//": "//",
    "gs://bucket/a//b": "//",
    "abfs://container@account.dfs.core.windows.net//b": "//",
    "memory://a//b": "//",
    "memory:///a//b": "//",
    "hdfs:///a//b": "//",
    "s3://bucket/a/./b": "'.'",
    "s3://bucket/a/../b": "'..'",
    "s3://bucket/..": "'..'",
    "memory://./a": "'.'",
    "s3://bucket/a\\b": "backslash",
    "s3://bucket/a?versionId=1": "query",
    "s3://bucket/a?X-Amz-Signature=secret": "query",
    "gs://bucket/a?generation=7": "query",
    "s3:///a": "no bucket",
    "s3://": "no bucket",
    "s3a:// /a": "no bucket",
    "s3://bucket/a::b": "'::'",
    "simplecache::s3://bucket/a": "'::'",
    "/tmp/a::b": "'::'",
    "a::b": "'::'",
    "": "is empty",
    " ": "is empty",
}


@pytest.mark.parametrize("url", UNFIT)
def test_an_address_that_cannot_be_kept_to_is_refused(url) -> None:
    """Where a listing would not find what a put wrote, the address is refused before anything is written."""
    with pytest.raises(RefusedError) as raised:
        open_object_store(url, {"key": "k", "secret": "s"} if url.startswith("s3") else {})
    assert raised.value.kind == "store_url"
    assert UNFIT[url] in raised.value.message
    assert raised.value.remedy
    assert "secret" not in raised.value.message
    if UNFIT[url] == "//":
        assert "one slash" in raised.value.remedy
        assert "moved first" in raised.value.remedy


@pytest.mark.parametrize(
    "url",
    ["{}", "{}/", "{}/a b/ c", "{}/a#b", "{}/a%2Fb", "{}/*[1]", "{}/ä🧀", "{}/...", "{}/.a", "{}/a:b"],
)
async def test_addresses_that_are_fine(root, opened, url) -> None:
    """Blanks, signs and letters of any script are fine in an address, and so are a bucket alone and a slash behind."""
    opened.append(open_object_store(url.replace("{}", root[0]), root[1]))
    assert await written_and_found(opened[-1])


async def written_and_found(store) -> bool:
    """Whether what is created is listed under the same path, and read back."""
    path, data = "ledger/claims/aa/1.json", secrets.token_bytes(8)
    assert await store.create(path, data) is True
    assert await store.create(path, b"other") is False
    listings = [await store.list(prefix) for prefix in ("ledger", "ledger/claims/aa", "")]
    return (
        await store.get(path) == data
        and all(path in [info.path for info in listing] for listing in listings)
        and [info.path for info in listings[1]] == [path]
        and (await store.head(path)).path == path
    )


PREFIXES = st.text(st.sampled_from("ab/./\\ ?#%*[]{}:;~+&=@'\"$<>|ä🧀\u0301\u00a0\t\n\x01\x7f"), max_size=9)


@pytest.mark.parametrize("prefix_kind", KINDS)
def test_what_is_written_is_found_at_any_address(prefix_kind, request, tmp_path) -> None:
    """Whatever the address, what was created is listed under the same path and read back, or the address is refused."""
    s3 = request.getfixturevalue("s3") if prefix_kind == "s3" else None
    options = dict(s3.options) if s3 else {}
    refused: list[str] = []

    @given(PREFIXES)
    @settings(max_examples=60 if prefix_kind == "s3" else 200)
    @example("a//b")
    @example("/a")
    @example("a\\b")
    @example("a?versionId=1")
    @example("a::b")
    @example("../a")
    def check(prefix: str) -> None:
        fresh = secrets.token_hex(6)
        if s3:
            base = f"s3://{s3.bucket}/{fresh}"
        elif prefix_kind == "memory":
            base = f"memory://{fresh}"
        else:
            base = str(tmp_path.joinpath(*fresh))  # deep enough for any '..'
        url = f"{base}/{prefix}{fresh}"
        try:
            store = open_object_store(url, options)
        except RefusedError as error:
            assert error.kind == "store_url"  # noqa: PT017 - what is refused is refused for this
            refused.append(prefix)
            return
        try:
            assert asyncio.run(written_and_found(store))
        finally:
            store.close()

    check()
    assert "a::b" in refused
    assert ("a//b" in refused) is (prefix_kind != "local")


def test_a_local_path_may_begin_at_home(tmp_path, monkeypatch, opened) -> None:
    """A path that begins with ~ lies in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    opened.append(open_object_store("~/store"))
    asyncio.run(opened[0].put("x", b"1"))
    assert (tmp_path / "store" / "x").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("url", "options", "kind"),
    [
        ("nonsense://bucket/x", {}, "store_url"),
        ("gs://bucket/x", {}, "store_extra_missing"),
        ("az://container/x", {"account_name": "a", "account_key": "c2VjcmV0"}, "store_extra_missing"),
    ],
)
def test_an_address_that_cannot_be_opened(url, options, kind) -> None:
    """An unknown protocol or a missing package is refused before anything is tried, with what to install."""
    with pytest.raises(RefusedError) as raised:
        open_object_store(url, options)
    assert raised.value.kind == kind
    assert url in raised.value.message
    assert raised.value.remedy
    assert "c2VjcmV0" not in str(raised.value)


def test_credentials_in_an_address_are_not_shown(opened) -> None:
    """A user part in the store's address is not part of the name that is shown."""
    opened.append(open_object_store("memory://me:the-secret-part@host/x"))
    assert opened[0].url == "memory://host/x"
