"""Pictures lie behind redirects, on other hosts: they are followed, and the guard is asked again at each step."""

import asyncio
import datetime as dt
import ssl
from pathlib import Path

import aiohttp.connector
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.net.fetch import ReferenceFetcher
from prefect_imagegen.net.guard import FetchError, FetchPolicy, reach_of
from tests.net.conftest import FakeTime, lay_internet, picture, raw_server, target_of, whole

pytestmark = pytest.mark.anyio
PICTURE = picture()
PLACES = {
    "shop.example": "93.184.216.34",
    "cdn.example": "93.184.216.35",
    "far.example": "93.184.216.36",
    "office.example": "10.1.2.3",
    "nas.example": "192.168.7.7",
    "metadata.example": "169.254.169.254",
    "self.example": "127.0.0.9",
}


def test_the_places_are_where_they_should_be() -> None:
    """The names of these tests stand for public, private and local addresses."""
    reaches = [reach_of(address) for address in PLACES.values()]
    assert reaches == ["public"] * 3 + ["private"] * 3 + ["loopback"]


def allowed(address: str, policy: FetchPolicy, deepest: int) -> bool:
    """A model of the guard in few words: how deep an address lies, and how deep one may go."""
    depth = {"public": 0, "private": 1, "loopback": 2}[reach_of(address)]
    if depth > deepest or address == "169.254.169.254":
        return False
    return depth == 0 or policy.allow_private or (depth == 2 and policy.allow_loopback)


@given(
    st.lists(st.sampled_from(sorted(PLACES)), min_size=1, max_size=8),
    st.booleans(),
    st.booleans(),
    st.sampled_from((301, 302, 303, 307, 308)),
)
def test_a_maze_of_redirects(walk: list[str], local: bool, private: bool, status: int) -> None:
    """However redirects lead, a picture comes iff no step is forbidden or leads inward, and they are few."""
    policy = FetchPolicy(allow_loopback=local, allow_private=private)
    outcome, deepest = "picture", 2
    for step, name in enumerate(walk):
        if step > policy.max_redirects:
            outcome = "reference_unreachable"
            break
        if not allowed(PLACES[name], policy, deepest):
            outcome = "reference_forbidden"
            break
        deepest = min(deepest, {"public": 0, "private": 1, "loopback": 2}[reach_of(PLACES[name])])
    asked: list[str] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        step = int(target_of(head).removeprefix(b"/"))
        asked.append(walk[step])
        assert f"Host: {walk[step]}\r\n".encode() in head
        if step + 1 == len(walk):
            writer.write(whole(PICTURE))
        else:
            writer.write(whole(b"", f"location: http://{walk[step + 1]}/{step + 1}", status=f"{status} Moved"))

    async def play(lay) -> None:
        async with raw_server(answer) as port:
            lay(PLACES, port)
            async with ReferenceFetcher(policy, FakeTime().records()) as fetcher:
                (end,) = await asyncio.gather(fetcher.fetch(f"http://{walk[0]}/0"), return_exceptions=True)
                assert end == PICTURE if outcome == "picture" else end.kind == outcome

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(play(lay_internet(patch)))
    # What is forbidden is never asked.
    assert all(PLACES[name] != "169.254.169.254" for name in asked)
    assert outcome == "picture" or asked == walk[: len(asked)]


async def test_what_redirects_may_not_do(internet, fake_time: FakeTime) -> None:
    """To nowhere, to no web address, with a password, round and round: each is refused with where it led."""
    ends = {
        b"/nowhere": "",
        b"/file": "file:///etc/passwd",
        b"/user": "http://me:hunter2@cdn.example/a.png",
        b"/broken": "http://[::1",
        b"/port": "http://cdn.example:99999/a.png",
        b"/label": f"http://{'a' * 64}.example/a.png",
        b"/inside": "http://169.254.169.254/latest/meta-data/",
        b"/wide": "http://127。0。0。1/a.png",
        b"/loop": "/loop",
    }

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        location = ends[target_of(head)]
        writer.write(whole(b"", *([f"location: {location}"] if location else []), status="302 Found"))

    async with raw_server(answer) as port:
        internet(PLACES, port)
        policy = FetchPolicy(allow_loopback=True)
        async with ReferenceFetcher(policy, fake_time.records()) as fetcher:
            for path in ends:
                with pytest.raises(FetchError) as caught:
                    await fetcher.fetch(f"http://shop.example{path.decode()}")
                assert caught.value.kind in ("reference_forbidden", "reference_unreachable"), str(caught.value)
                assert "hunter2" not in str(caught.value)
                assert str(caught.value).startswith(f"http://shop.example{path.decode()}")


@pytest.mark.parametrize(
    ("start", "end", "is_followed"),
    [
        ("inside.example:9000", "inside.example:6379", False),
        ("inside.example:9000", "other-inside.example:6379", False),
        ("inside.example", "inside.example:8080", False),
        ("inside.example:9000", "inside.example", False),
        ("inside.example:9000", "10.0.0.7:22", False),
        ("inside.example:9000", "other-inside.example:9000", True),
        ("inside.example:9000", "shop.example:8443", True),
        ("shop.example", "cdn.example:8443", True),
    ],
)
async def test_a_redirect_inside_leads_to_no_other_port(internet, fake_time, start, end, is_followed) -> None:
    """What an address inside of a network redirects to lies at its own port, or is public: no service is knocked at."""
    places = {"inside.example": "10.0.0.5", "other-inside.example": "10.0.0.7"}
    places |= {"shop.example": "93.184.216.34", "cdn.example": "93.184.216.35"}
    asked: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(head)
        writer.write(whole(PICTURE) if len(asked) > 1 else whole(b"", f"location: http://{end}/b", status="302 Found"))

    async with raw_server(answer) as port:
        internet(places, port)
        async with ReferenceFetcher(FetchPolicy(allow_private=True), fake_time.records()) as fetcher:
            (got,) = await asyncio.gather(fetcher.fetch(f"http://{start}/a"), return_exceptions=True)
    assert len(asked) == 1 + is_followed
    assert got == PICTURE if is_followed else got.kind == "reference_forbidden"


async def test_a_relative_redirect_keeps_its_bytes(internet, fake_time: FakeTime) -> None:
    """A redirect is followed byte for byte too, bytes beyond ASCII in its header among them."""
    targets: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        targets.append(target_of(head))
        if len(targets) == 1:
            writer.write(
                b"HTTP/1.1 302 Found\r\nlocation: ../b|c%2Fd/caf\xc3\xa9+x.png?s=a|b%20c\r\ncontent-length: 0\r\n\r\n"
            )
        else:
            writer.write(whole(PICTURE))

    async with raw_server(answer) as port:
        internet(PLACES, port)
        async with ReferenceFetcher(FetchPolicy(), fake_time.records()) as fetcher:
            assert await fetcher.fetch("http://shop.example/x/y/z.png") == PICTURE
    assert targets[1] == b"/x/b|c%2Fd/caf%C3%A9+x.png?s=a|b%20c"


def certificate(folder: Path, *, days: int) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, and ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shop.example")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("shop.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return folder / "cert.pem", folder / "key.pem"


def served_with(folder: Path, *, days: int) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The context of a server, and that of a client that trusts its certificate."""
    cert, key = certificate(folder, days=days)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    return serving, ssl.create_default_context(cafile=str(cert))


async def test_https_never_leads_to_http(
    internet, fake_time: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect from https to http is refused with where it leads; one from https to https is followed."""
    serving, trusting = served_with(tmp_path, days=9)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusting)

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        ends = {b"/down": "http://cdn.example/a.png", b"/on": "https://shop.example/a.png"}
        location = ends.get(target_of(head))
        writer.write(whole(b"", f"location: {location}", status="302 Found") if location else whole(PICTURE))

    async with raw_server(answer, ssl=serving) as port:
        internet(PLACES, port)
        async with ReferenceFetcher(FetchPolicy(), fake_time.records()) as fetcher:
            assert await fetcher.fetch("https://shop.example/on") == PICTURE
            with pytest.raises(FetchError, match="give the http address itself") as caught:
                await fetcher.fetch("https://shop.example/down")
    assert "http://cdn.example/a.png" in str(caught.value)


@pytest.mark.parametrize(("host", "days", "words"), [("shop", 9, "self-signed"), ("cdn", 9, "certificate")])
async def test_trouble_with_certificates_is_named(
    host: str, days: int, words: str, internet, fake_time: FakeTime, tmp_path: Path
) -> None:
    """A certificate that is not trusted is named as that, after one try, and nothing is read."""
    serving, _ = served_with(tmp_path, days=days)

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("it must not be asked")

    async with raw_server(answer, ssl=serving) as port:
        internet(PLACES, port)
        async with ReferenceFetcher(FetchPolicy(), fake_time.records()) as fetcher:
            with pytest.raises(FetchError, match=words) as caught:
                await fetcher.fetch(f"https://{host}.example/a.png")
    assert (caught.value.kind, fake_time.slept) == ("reference_unreachable", [])
    assert "certificate" in str(caught.value)


async def test_an_expired_certificate_is_named(
    internet, fake_time: FakeTime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that has expired is said to have."""
    serving, trusting = served_with(tmp_path, days=-1)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusting)
    async with raw_server(lambda *_: asyncio.sleep(0), ssl=serving) as port:
        internet(PLACES, port)
        async with ReferenceFetcher(FetchPolicy(), fake_time.records()) as fetcher:
            with pytest.raises(FetchError, match="expired"):
                await fetcher.fetch("https://shop.example/a.png")


async def test_https_of_a_host_that_speaks_http(internet, fake_time: FakeTime) -> None:
    """A port that speaks no TLS is told so."""

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(PICTURE))

    async def loose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(loose, "127.0.0.1", 0)
    async with server:
        internet(PLACES, server.sockets[0].getsockname()[1])
        async with ReferenceFetcher(FetchPolicy(), fake_time.records()) as fetcher:
            with pytest.raises(FetchError, match="makes no secure connection"):
                await fetcher.fetch("https://shop.example/a.png")
