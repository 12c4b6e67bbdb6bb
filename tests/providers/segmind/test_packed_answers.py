"""Answers with a content encoding: unpacked within bounds, and refused by name where that fails."""

import gzip
import json

import pytest

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.net.bodies import MAX_BODY_BYTES
from prefect_imagegen.providers.segmind import http as segmind_http
from tests.providers.segmind.conftest import PNG, REQUEST, RESULT, STATUS, SUBMIT, provider, server

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("status", [200, 202])
async def test_an_answer_that_cannot_be_unpacked_is_said_to_be_so(status: int) -> None:
    """An answer in a packing that nobody asked for is named; its call is held."""
    async with server() as script, provider(script) as client:
        script.on(SUBMIT, (status, b"\x0b\x02\x80hello\x03", {"content-encoding": "br"}))
        with pytest.raises(ProviderError) as caught:
            await client.submit(REQUEST, [])
    assert caught.value.kind == "unknown"
    assert "the answer is packed as br, which was not asked for" in caught.value.message
    assert script.calls(SUBMIT) == 1


def packed(data: bytes, times: int) -> bytes:
    for _ in range(times):
        data = gzip.compress(data, mtime=0)
    return data


@pytest.mark.parametrize(
    ("encoding", "body", "words"),
    [
        ("gzip", packed(bytes(MAX_BODY_BYTES + 1), 1), "larger than"),
        ("gzip, gzip", packed(bytes(1 << 28), 2), "not asked for"),
        ("br", b"\x00" * 64, "not asked for"),
        ("zstd", b"\x28\xb5\x2f\xfd", "not asked for"),
        ("deflate", b"\x78\x9c", "not asked for"),
        ("gzip", packed(PNG, 1)[:-9], "broke off"),
        ("gzip", b"\x1f\x8b" + bytes(64), "cannot be unpacked"),
    ],
)
async def test_no_packed_answer_fills_the_memory(
    encoding: str, body: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is small on the wire and huge when unpacked is refused before it is; the row stays submitted."""
    monkeypatch.setattr(segmind_http, "GET_TRIES", 1)
    async with server() as script, provider(script) as client:
        script.on(STATUS, (200, {"status": "COMPLETED"}))
        script.on(RESULT, (200, {"status": "COMPLETED", "output": f"{script.url}/0"}))
        script.on("/0", (200, body, {"content-encoding": encoding}))
        with pytest.raises(ProviderError, match=words) as caught:
            await client.fetch("r1")
        assert caught.value.kind == "submitted"
        assert script.requests[-1].headers["accept-encoding"] == "gzip"


async def test_a_packed_answer_is_unpacked() -> None:
    """An answer in gzip is read as any other."""
    gzipped = {"content-encoding": "gzip"}
    async with server() as script, provider(script) as client:
        script.on(STATUS, (200, packed(json.dumps({"status": "COMPLETED"}).encode(), 1), gzipped))
        script.on(RESULT, (200, {"status": "COMPLETED", "output": f"{script.url}/0"}))
        script.on("/0", (200, packed(PNG, 1), gzipped))
        assert (await client.fetch("r1")).data == PNG
