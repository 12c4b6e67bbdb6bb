"""Picture hosts have bad days: busy is not wrong, and nothing but the picture itself is ever taken for it."""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.web_answers import judge_body, judge_status
from prefect_imagegen.net.client import USER_AGENT
from prefect_imagegen.net.fetch import ReferenceFetcher
from prefect_imagegen.net.guard import FetchError, FetchPolicy
from tests.net.conftest import START, FakeTime, picture, raw_server, whole

pytestmark = pytest.mark.anyio
PICTURE = picture()
LOCAL = FetchPolicy(allow_loopback=True, timeout=5.0)
PASSING = ("429", "503", "502", "504", "500", "520", "cut", "cut chunk", "reset", "hang up", "reset in body")
PACKED = "br" if find_spec("brotli") is None else "zstd"
LASTING = ("404", "403", "html", "json", "empty", "no http", "too large")


HALF = len(PICTURE) // 2
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKS = [PICTURE[start : start + 999] for start in range(0, len(PICTURE), 999)]
WRITTEN = {
    "good": whole(PICTURE),
    "chunked": CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in CHUNKS) + b"0\r\n\r\n",
    "cut": whole(PICTURE)[:-HALF],
    "cut chunk": CHUNKED + b"40\r\n" + PICTURE[:64] + b"\r\n",
    "reset": b"",
    "hang up": b"",
    "reset in body": whole(PICTURE)[:-HALF],
    "html": whole(b"<!DOCTYPE html><html><title>Sign in</title></html>", "content-type: text/html"),
    "json": whole(b'{"error": "no such thing"}'),
    "empty": whole(b""),
    "no http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "packed": whole(b"\x0b\x02\x80hello\x03", f"content-encoding: {PACKED}"),
    "too large": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
}
"""What a server writes, by kind of answer; a number is an HTTP status."""
TWICE = ("reset", "hang up")
"""Where not even a status comes, the HTTP library asks once more by itself."""


async def misbehave(kind: str, writer: asyncio.StreamWriter) -> None:
    """One answer of a kind."""
    if kind.isdigit():
        writer.write(whole(b"<html>sorry</html>", status=f"{kind} Sorry"))
    elif kind == "slow":
        for position in range(0, len(WRITTEN["good"]), 1000):
            writer.write(WRITTEN["good"][position : position + 1000])
            await writer.drain()
            await asyncio.sleep(0)
    else:
        writer.write(WRITTEN[kind])
    if kind.startswith("reset"):
        await writer.drain()
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)


@given(st.lists(st.sampled_from(PASSING), max_size=6), st.sampled_from(("good", "slow", "chunked", *LASTING)))
def test_what_a_host_does_to_one_picture(troubles: list[str], end: str) -> None:
    """After up to four bad answers of any kind the fifth one counts, and busy is never said to be wrong."""

    async def play() -> None:
        answers = iter([*(kind for kind in troubles for _ in range(1 + (kind in TWICE))), end])
        asked = 0

        async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await misbehave(next(answers, end), writer)

        async with raw_server(answer) as port, ReferenceFetcher(LOCAL, FakeTime().records()) as fetcher:
            url = f"http://127.0.0.1:{port}/a.png"
            if len(troubles) >= 5:
                with pytest.raises(FetchError) as caught:
                    await fetcher.fetch(url)
                assert caught.value.kind == "reference_busy"
                assert asked == 5 + sum(kind in TWICE for kind in troubles[:5])
                assert "again later" in caught.value.remedy
            elif end in LASTING:
                with pytest.raises(FetchError) as caught:
                    await fetcher.fetch(url)
                assert caught.value.kind != "reference_busy"
                assert asked == len(troubles) + 1 + sum(kind in TWICE for kind in troubles)
            else:
                assert await fetcher.fetch(url) == PICTURE
                assert asked == len(troubles) + 1 + sum(kind in TWICE for kind in troubles)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("404", "it does not exist"),
        ("410", "gone for good"),
        ("401", "asks for a login"),
        ("403", "signature has expired"),
        ("418", "status 418"),
        ("html", "it is a web page, no picture"),
        ("json", "it is JSON, no picture"),
        ("empty", "it is empty"),
        ("no http", "does not answer in HTTP"),
        ("packed", "packs its answer as"),
        ("too large", "more than 33554432 bytes"),
    ],
)
async def test_what_is_wrong_is_named(kind: str, words: str, fake_time: FakeTime) -> None:
    """An address that is wrong is said to be so after one request, in words that help."""
    asked = 0

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await misbehave(kind, writer)

    async with raw_server(answer) as port, ReferenceFetcher(LOCAL, fake_time.records()) as fetcher:
        with pytest.raises(FetchError) as caught:
            await fetcher.fetch(f"http://127.0.0.1:{port}/a.png?key=secret")
    assert words in str(caught.value)
    assert (asked, fake_time.slept) == (1, [])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("after", "slept"),
    [
        ("7", 7.0),
        (format_datetime(START + timedelta(seconds=30), usegmt=True), 30.0),
        ("0", 1.0),
        ("soon", 0.5),  # cannot be read: our own back-off
        ("", 0.5),
    ],
)
async def test_what_a_host_asks_for_is_obeyed(after: str, slept: float, fake_time: FakeTime) -> None:
    """Retry-After counts as seconds and as a date, and keeps everybody from the host, not one reference alone."""
    limited = True

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal limited
        writer.write(whole(b"", f"retry-after: {after}", status="429 Slow") if limited else whole(PICTURE))
        limited = False

    records = fake_time.records()
    async with raw_server(answer) as port, ReferenceFetcher(LOCAL, records) as fetcher:
        assert await fetcher.fetch(f"http://127.0.0.1:{port}/a.png") == PICTURE
    assert [seconds for seconds in fake_time.slept if seconds] == [slept]


async def test_who_asks_for_an_hour_is_left_for_later(fake_time: FakeTime) -> None:
    """A pause beyond the bound is not waited for: the reference is busy at once."""
    asked = 0

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(whole(b"", "retry-after: 3600", status="503 Later"))

    async with raw_server(answer) as port, ReferenceFetcher(LOCAL, fake_time.records()) as fetcher:
        with pytest.raises(FetchError, match="again later") as caught:
            await fetcher.fetch(f"http://127.0.0.1:{port}/a.png")
    assert (caught.value.kind, asked, fake_time.slept) == ("reference_busy", 1, [])


async def test_a_host_that_stays_busy_is_let_be(fake_time: FakeTime) -> None:
    """After three references in a row a busy host is asked no more, and after a minute once again."""
    asked = 0
    is_busy = True

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(whole(b"", status="503 Later") if is_busy else whole(PICTURE))

    policy = FetchPolicy(allow_loopback=True, at_once=1)
    async with raw_server(answer) as port, ReferenceFetcher(policy, fake_time.records()) as fetcher:
        urls = [f"http://127.0.0.1:{port}/{n}.png" for n in range(300)]
        ends = await asyncio.gather(*map(fetcher.fetch, urls), return_exceptions=True)
        assert Counter(getattr(end, "kind", "?") for end in ends) == {"reference_busy": 300}
        assert asked <= 15
        before, is_busy = asked, False
        fake_time.seconds += 61.0
        assert await asyncio.gather(*map(fetcher.fetch, urls)) == [PICTURE] * 300
        assert asked == before + 300


async def test_one_broken_picture_is_not_a_busy_host(fake_time: FakeTime) -> None:
    """Pictures that fail inside of their host one after the other say nothing of its others."""

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"", status="500 Oops") if b"broken" in head else whole(PICTURE))

    async with raw_server(answer) as port, ReferenceFetcher(LOCAL, fake_time.records()) as fetcher:
        urls = [f"http://127.0.0.1:{port}/broken-{n}.png" for n in range(8)]
        ends = await asyncio.gather(*map(fetcher.fetch, urls), return_exceptions=True)
        assert [getattr(end, "kind", "?") for end in ends] == ["reference_busy"] * 8
        assert await fetcher.fetch(f"http://127.0.0.1:{port}/fine.png") == PICTURE


async def test_no_more_than_so_many_at_once(fake_time: FakeTime) -> None:
    """A host is never asked for more than four pictures at a time, a second host meanwhile for its own."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    others = asyncio.Event()

    def serve(name: str) -> Callable[..., object]:
        async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
            now[name] += 1
            most[name] = max(most[name], now[name])
            if name == "first":
                await others.wait()  # all of the second host's have to come through meanwhile
            writer.write(whole(PICTURE))
            await writer.drain()
            now[name] -= 1

        return answer

    async with (
        raw_server(serve("first")) as first_port,
        raw_server(serve("second")) as two,
        ReferenceFetcher(LOCAL, fake_time.records()) as fetcher,
    ):
        first = asyncio.gather(*(fetcher.fetch(f"http://127.0.0.1:{first_port}/{n}.png") for n in range(30)))
        await asyncio.gather(*(fetcher.fetch(f"http://localhost:{two}/{n}.png") for n in range(30)))
        others.set()
        await first
    assert most["first"] == 4
    assert most["second"] <= 4


async def test_no_answer_in_time(fake_time: FakeTime) -> None:
    """A host that takes the question and says nothing is busy after two tries, not after five."""
    asked = 0
    over = asyncio.Event()

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await over.wait()

    policy = FetchPolicy(allow_loopback=True, timeout=0.05)
    async with raw_server(answer) as port, ReferenceFetcher(policy, fake_time.records()) as fetcher:
        with pytest.raises(FetchError, match="did not answer in time") as caught:
            await fetcher.fetch(f"http://127.0.0.1:{port}/a.png")
        over.set()
    assert (caught.value.kind, asked) == ("reference_busy", 2)


async def test_patience_is_bounded(fake_time: FakeTime) -> None:
    """All tries for one reference together take no longer than the patience allows, whatever the host asks for."""

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"", "retry-after: 50", status="503 Later"))

    async with raw_server(answer) as port, ReferenceFetcher(LOCAL, fake_time.records()) as fetcher:
        with pytest.raises(FetchError):
            await fetcher.fetch(f"http://127.0.0.1:{port}/a.png")
    assert fake_time.seconds <= LOCAL.patience


async def test_we_say_who_we_are(fake_time: FakeTime) -> None:
    """Hosts that turn nameless clients away know us by name and version, and get no cookies of each other."""
    heads: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(whole(PICTURE))

    async with raw_server(answer) as port, ReferenceFetcher(LOCAL, fake_time.records()) as fetcher:
        await fetcher.fetch(f"http://127.0.0.1:{port}/a.png")
    assert f"User-Agent: {USER_AGENT}\r\n".encode() in heads[0]
    assert USER_AGENT.startswith("prefect-imagegen/")
    assert b"aiohttp" not in heads[0].lower()


async def test_names_and_ports_that_lead_nowhere(fake_time: FakeTime) -> None:
    """A name that does not exist is wrong; a port that nobody listens at may be on its way up."""
    async with raw_server(lambda *_: asyncio.sleep(0)) as port:
        pass  # its port is free now
    async with ReferenceFetcher(LOCAL, fake_time.records()) as fetcher:
        with pytest.raises(FetchError, match="is the address right") as caught:
            await fetcher.fetch(f"http://127.0.0.1:{port}/a.png")
        assert caught.value.kind == "reference_busy"


@given(st.integers(100, 999))
def test_every_status_is_judged(status: int) -> None:
    """Every status is a picture's, or has words; what may pass is never said to be wrong."""
    verdict = judge_status(status)
    assert (verdict is None) == (status in (200, 203))
    if verdict is not None:
        assert f"status {status}" in verdict.problem
        assert verdict.is_passing or verdict.remedy


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\n <!doctype HTML><p>hi", "a web page"),
        (b"<!-- x --><html>", "a web page"),
        (b'<?xml version="1.0"?><svg xmlns="x">', "an SVG"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b"%PDF-1.7", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"[]", "JSON"),
        (b"hello", "no picture of a known format"),
    ],
)
def test_what_came_in_place_of_a_picture(data: bytes, kind: str) -> None:
    """What hosts send in place of pictures is known by name."""
    assert kind in judge_body(data).problem
