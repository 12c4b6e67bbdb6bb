"""A stranger's URL cannot make this machine talk to itself or its neighbours."""

import socket

import pytest
from aiohttp import web
from PIL import Image

from prefect_imagegen.net.fetch import ReferenceFetcher
from prefect_imagegen.net.guard import FetchError, FetchPolicy, check_address, reach_of, reach_of_host
from tests.support.builders.images import encoded

pytestmark = pytest.mark.anyio

HOSTILE = [
    *("http://127.0.0.1/", "http://localhost/", "http://0.0.0.0/", "http://10.1.2.3/", "http://172.16.0.1/"),
    *("http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/", "http://224.0.0.1/"),
    *("http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[fc00::1]/", "http://[fe80::1]/", "http://[::]/"),
    *("http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/"),
    *("http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/"),
    *("http://user:pw@93.184.216.34/", "ftp://93.184.216.34/a.png", "file:///etc/passwd", "gopher://x/", "http:///"),
]


def png() -> bytes:
    return encoded(Image.new("RGB", (64, 64), "teal"))


@pytest.mark.parametrize("url", HOSTILE)
async def test_hostile_urls_are_refused(url: str) -> None:
    """Private, local and odd addresses, in any spelling, are refused without a connection."""
    async with ReferenceFetcher(FetchPolicy()) as fetcher:
        with pytest.raises(FetchError) as caught:
            await fetcher.fetch(url)
    assert caught.value.kind == "reference_forbidden"
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5", "169.254.169.254", "::1", "fd00::1"])
async def test_names_of_private_addresses(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public name that resolves to a private address is refused, whatever it resolved to before."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    place = (address, 80, 0, 0) if ":" in address else (address, 80)

    def resolve(*args: object, **kwargs: object) -> list[object]:
        return [(family, socket.SOCK_STREAM, 6, "", place)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with ReferenceFetcher(FetchPolicy()) as fetcher:
        with pytest.raises(FetchError, match="public") as caught:
            await fetcher.fetch("http://images.example.com/a.png")
    assert caught.value.kind == "reference_forbidden"


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        *(("127.0.0.1", True), ("10.0.0.5", True), ("192.168.1.1", True), ("fd00::1", True), ("8.8.8.8", True)),
        *(("169.254.169.254", False), ("fe80::1", False), ("0.0.0.0", False), ("::", False), ("224.0.0.1", False)),
        *(("::ffff:169.254.169.254", False), ("64:ff9b::a9fe:a9fe", False)),
    ],
)
def test_private_networks_where_they_are_allowed(address: str, allowed: bool) -> None:
    """Private networks may be allowed; where clouds keep credentials, never, in no spelling."""
    policy = FetchPolicy(allow_private=True)
    if allowed:
        check_address(address, policy)
    else:
        with pytest.raises(FetchError):
            check_address(address, policy)


@pytest.mark.parametrize(
    ("host", "reach"),
    [("93.184.216.34", "public"), ("2130706433", "loopback"), ("10.1", "private"), ("169.254.169.254", "private")],
)
async def test_from_where_a_host_can_be_reached(host: str, reach: str) -> None:
    """A public host, one of this machine, one of a private network; numeric spellings are seen through."""
    assert await reach_of_host(host) == reach


@pytest.mark.parametrize(
    "address", ["168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fec0::1", "::ffff:168.63.129.16"]
)
@pytest.mark.parametrize("allow_private", [False, True])
def test_where_clouds_keep_credentials(address: str, allow_private: bool) -> None:
    """These addresses are never asked, whatever networks are allowed, and none of them is a public one."""
    assert reach_of(address) == "private"
    with pytest.raises(FetchError, match="not a public address"):
        check_address(address, FetchPolicy(allow_private=allow_private))


async def test_what_a_loopback_server_gives() -> None:
    """With loopback allowed: images come, everything else is refused, and a redirect is checked like a first URL."""
    data = png()

    async def serve(request: web.Request) -> web.Response:
        answers = {
            "/image": web.Response(body=data, content_type="image/png"),
            "/text": web.Response(text="hello"),
            "/huge": web.Response(body=data + b"\0" * 200_000),
            "/moved": web.Response(status=302, headers={"location": "/image"}),
            "/inside": web.Response(status=302, headers={"location": "http://169.254.169.254/"}),
            "/away": web.Response(status=302, headers={"location": f"http://localhost:{port}/image"}),
            "/marked": web.Response(body=data, headers={"etag": '"v1"'}),
            "/dated": web.Response(body=data, headers={"last-modified": "Tue, 24 Nov 2026 00:00:00 GMT"}),
            "/loop": web.Response(status=302, headers={"location": "/loop"}),
        }
        if request.headers.get("if-none-match") == '"v1"' or "if-modified-since" in request.headers:
            return web.Response(status=304)
        return answers.get(request.path, web.Response(status=404))

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    base = f"http://127.0.0.1:{port}"
    try:
        async with ReferenceFetcher(FetchPolicy(allow_loopback=True, max_bytes=100_000)) as fetcher:
            assert await fetcher.fetch(f"{base}/image") == data
            assert await fetcher.fetch(f"{base}/moved?sig=secret") == data
            assert await fetcher.fetch(f"{base}/away") == data
            for path in ("marked", "dated"):
                first = await fetcher.fetch_since(f"{base}/{path}", None)
                assert first.data == data
                assert first.version is not None
                again = await fetcher.fetch_since(f"{base}/{path}", first.version)
                assert (again.data, again.version) == (None, first.version)
            for path, kind in (
                ("text", "reference_not_image"),
                ("huge", "reference_too_large"),
                ("inside", "reference_forbidden"),
                ("loop", "reference_unreachable"),
                ("missing?token=secret", "reference_unreachable"),
            ):
                with pytest.raises(FetchError) as caught:
                    await fetcher.fetch(f"{base}/{path}")
                assert caught.value.kind == kind
                assert "secret" not in str(caught.value)
    finally:
        await runner.cleanup()
