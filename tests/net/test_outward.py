"""What the API answers names addresses too: outputs and uploads lead no further inside than the API itself lies."""

import asyncio
import json
from collections.abc import Callable

import pytest

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.providers.segmind import http as segmind_http
from prefect_imagegen.providers.segmind.provider import Endpoints, SegmindProvider
from tests.net.conftest import picture, raw_server, target_of, whole

pytestmark = pytest.mark.anyio
Lay = Callable[[dict[str, str], int], None]
PICTURE = picture()
KEPT = b"submitted r1"
PLACES = {
    "api.example": "93.184.216.34",
    "cdn.example": "93.184.216.35",
    "office.example": "10.1.2.3",
    "nas.example": "192.168.7.7",
    "metadata.example": "169.254.169.254",
    "other-metadata.example": "168.63.129.16",
    "self.example": "127.0.0.9",
}
INSIDE = ("self.example:{port}", "127.0.0.1:{port}", "2130706433:{port}", "0x7f.1:{port}", "127.1:{port}")
CLOUD = ("metadata.example", "169.254.169.254", "2852039166", "0xa9fea9fe", "168.63.129.16", "other-metadata.example")
NETWORK = ("office.example", "192.168.7.7", "10.1.2.3", "[::ffff:10.1.2.3]", "[64:ff9b::a01:203]")


async def fetched(internet: Lay, base: str, place: str, *, by_redirect: bool) -> tuple[bytes, list[str]]:
    """The output that an API at `base` names at a place, and all hosts that were asked, but for the API."""
    asked: list[str] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        host = head.lower().partition(b"\r\nhost: ")[2].partition(b"\r\n")[0].decode()
        target = target_of(head).decode()
        url = f"http://{place.format(port=port)}/inside.png"
        if target.endswith("/status"):
            writer.write(whole(json.dumps({"status": "COMPLETED"}).encode()))
        elif "/v2/requests/" in target:
            output = "http://cdn.example/out.png" if by_redirect else url
            writer.write(whole(json.dumps({"status": "COMPLETED", "output": output}).encode()))
        elif target == "/out.png":
            writer.write(whole(b"", f"location: {url}", status="302 Found"))
        else:
            asked.append(host)
            writer.write(whole(PICTURE))

    async with raw_server(answer) as port:
        internet(PLACES, port)
        backend = SegmindProvider(Endpoints.of(base.format(port=port), None), None)
        try:
            await backend.has_upload(f"http://{place.format(port=port)}/assets/1.png")
            return (await backend.fetch("r1")).data, asked
        except ProviderError as error:
            return f"{error.kind} {error.request_id}".encode(), asked
        finally:
            await backend.aclose()


@pytest.mark.parametrize("by_redirect", [False, True])
@pytest.mark.parametrize("place", [*INSIDE, *CLOUD, *NETWORK])
async def test_a_public_api_leads_nobody_inside(
    internet: Lay, monkeypatch: pytest.MonkeyPatch, place: str, by_redirect: bool
) -> None:
    """No address inside is connected to because the API names it, as output, upload or redirect; the row is kept."""
    monkeypatch.setattr(segmind_http, "GET_TRIES", 1)
    assert await fetched(internet, "http://api.example", place, by_redirect=by_redirect) == (KEPT, [])


@pytest.mark.parametrize(
    ("base", "place"),
    [
        ("http://api.example", "cdn.example"),
        ("http://office.example", "nas.example"),
        ("http://office.example", "cdn.example"),
        ("http://127.0.0.1:{port}", "127.0.0.1:{port}"),
        ("http://self.example:{port}", "office.example"),
        ("http://metadata.example", "metadata.example"),
    ],
)
async def test_a_backend_may_name_what_lies_as_far_out_as_itself(internet: Lay, base: str, place: str) -> None:
    """A gateway of the office may keep its outputs in the office, and one of this machine on this machine."""
    data, asked = await fetched(internet, base, place, by_redirect=False)
    assert data == PICTURE
    assert asked


@pytest.mark.parametrize("place", [*INSIDE, *CLOUD])
async def test_a_private_backend_leads_to_no_secrets(
    internet: Lay, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A gateway of a private network leads neither to this machine nor to where clouds keep credentials."""
    monkeypatch.setattr(segmind_http, "GET_TRIES", 1)
    assert await fetched(internet, "http://office.example", place, by_redirect=False) == (KEPT, [])
