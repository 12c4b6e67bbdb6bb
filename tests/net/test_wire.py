"""An address is asked for byte for byte as it is written, and no address is too odd to get an answer."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.request.references import BadReferenceError, locate
from prefect_imagegen.net.fetch import ReferenceFetcher
from prefect_imagegen.net.guard import FetchError, FetchPolicy, reach_of_host
from tests.net.conftest import FakeTime, lay_internet, picture, raw_server, target_of, whole

pytestmark = pytest.mark.anyio
PICTURE = picture()


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/a%2Fb.png", "/a%2Fb.png"),
        ("/a%2fb%20c+d.png", "/a%2fb%20c+d.png"),
        ("/%C3%A9/%E9.png", "/%C3%A9/%E9.png"),
        ("/a|b.png?q=x|y", "/a|b.png?q=x|y"),
        ("/a.png?q=%2F&r=%26&s=+&t=%20&u=a=b", "/a.png?q=%2F&r=%26&s=+&t=%20&u=a=b"),
        ("/a.png?q=%7B%22w%22%3A1%7D&r={}[]^`", "/a.png?q=%7B%22w%22%3A1%7D&r={}[]^`"),
        ("/100%.png", "/100%.png"),
        ("/a,b;c=d@e!$&'()*.png", "/a,b;c=d@e!$&'()*.png"),
        ("/unsafe/300x200/https://origin.example/a.jpg?x=1", "/unsafe/300x200/https://origin.example/a.jpg?x=1"),
        ("/fetch/https%3A%2F%2Forigin.example%2Fa.jpg", "/fetch/https%3A%2F%2Forigin.example%2Fa.jpg"),
        ("//double//slash.png", "//double//slash.png"),
        ("/~user/a%7Eb.png", "/~user/a%7Eb.png"),
        # What a request line cannot hold is percent-encoded, and only that.
        ("/my photo.png", "/my%20photo.png"),
        ("/é%20ü.png?q=ß+|", "/%C3%A9%20%C3%BC.png?q=%C3%9F+|"),
        ("/a.png#part", "/a.png"),
        ("", "/"),
        ("?q=1", "/?q=1"),
        # Every client resolves dots before it asks.
        ("/a/../b/./c.png", "/b/c.png"),
        ("/../../a.png", "/a.png"),
        ("/a/..", "/"),
    ],
)
async def test_addresses_go_out_as_they_are_written(written: str, sent: str, fake_time: FakeTime) -> None:
    """No byte of an address is quoted anew: signatures, proxies and stores tell `%2F` from `/` and `|` from `%7C`."""
    targets: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        targets.append(target_of(head))
        writer.write(whole(PICTURE))

    policy = FetchPolicy(allow_loopback=True)
    async with raw_server(answer) as port, ReferenceFetcher(policy, fake_time.records()) as fetcher:
        assert await fetcher.fetch(f"http://127.0.0.1:{port}{written}") == PICTURE
    assert targets == [sent.encode()]


@given(
    st.text(st.characters(codec="ascii", min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#?"), max_size=30),
    st.text(st.characters(codec="ascii", min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=30),
)
def test_any_printable_address_goes_out_as_it_is(path: str, query: str) -> None:
    """Whatever an address is made of, a server reads it as it was written."""
    path = f"/x{path}".replace("/.", "/x.")
    written = f"{path}?q{query}"
    targets: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        targets.append(target_of(head))
        writer.write(whole(PICTURE))

    async def play() -> None:
        policy = FetchPolicy(allow_loopback=True)
        async with raw_server(answer) as port, ReferenceFetcher(policy, FakeTime().records()) as fetcher:
            await fetcher.fetch(f"http://127.0.0.1:{port}{written}")

    asyncio.run(play())
    assert targets == [written.encode()]


LABELS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(("", ".", "..", "a" * 64, "a" * 300, "xn--", "xn--a", "xn--" + "z" * 70, "-a-", "a_b", "ß", "。")),
    st.sampled_from(("[::1", "[::1]", "::1]", "[v1.x]", "[fe80::1%25eth0]", "127.1", "0x7f", "256.256.256.256", "%00")),
)
NASTY = st.builds(
    lambda scheme, user, labels, port, rest: f"{scheme}://{user}{'.'.join(labels)}{port}{rest}",
    st.sampled_from(("http", "https", "HTTP", "hTTps")),
    st.sampled_from(("", "", "", "u:p@", "@", "%40")),
    st.lists(LABELS, max_size=4),
    st.sampled_from(("", "", ":", ":0", ":80", ":65536", ":99999999999", ":-1", ":x", ":٣")),
    st.one_of(st.text(max_size=12), st.sampled_from(("", "/", "/a.png", "?", "#", "\\", "/\x00", "/%", "/\ufeff"))),
)


@given(NASTY)
def test_no_address_is_too_odd(url: str) -> None:
    """Any address gets a picture or a reason, from the manifest to the wire; none raises anything else."""

    async def play() -> None:
        try:
            located = locate(url, "file:///m")
        except BadReferenceError:
            return
        with pytest.MonkeyPatch.context() as patch:
            lay_internet(patch)({}, 9)
            async with ReferenceFetcher(FetchPolicy(), FakeTime().records()) as fetcher:
                with pytest.raises(FetchError):
                    await fetcher.fetch(located)
                # And past `locate`, as the gateway gets its addresses.
                with pytest.raises(FetchError):
                    await fetcher.fetch(url)

    asyncio.run(play())


@pytest.mark.parametrize(
    "url",
    [
        "http://127。0。0。1/",
        "http://①②⑦.0.0.1/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://169。254。169。254/",
        "http://[::\uff11]/",
    ],
)
async def test_other_spellings_of_inner_addresses(url: str, fake_time: FakeTime) -> None:
    """The host that is checked is the host that is connected to, also where it is spelled with odd characters."""
    async with ReferenceFetcher(FetchPolicy(), fake_time.records()) as fetcher:
        with pytest.raises(FetchError) as caught:
            await fetcher.fetch(url)
    assert caught.value.kind == "reference_forbidden"


async def test_hosts_that_are_no_names() -> None:
    """Where a host lies is told, or raised as one of two errors."""
    for host in ("a" * 64, "a..b", "xn--", ""):
        with pytest.raises((OSError, UnicodeError)):
            await reach_of_host(host)
