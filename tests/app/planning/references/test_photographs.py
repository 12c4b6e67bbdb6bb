"""Image to image from private photographs: in a bucket, on a disk and on the web, in every transport."""

import hashlib
import io
import json
from typing import Any

import pytest
from PIL import Image

from tests.app.planning.references.conftest import (
    KEY,
    ROWS,
    Wire,
    World,
    everything,
    generate,
    metadata,
    plan,
    sandbox,
    write,
)

SECRET_SIGNS = (KEY.encode(), b"X-Amz-Signature", b"X-Amz-Credential", b"/assets/", b"base64")


@pytest.mark.s3
@pytest.mark.timeout(400)
@pytest.mark.parametrize("transport", ["auto", "upload", "data-url", "presign"])
def test_photographs_from_everywhere(transport: str, world: World, s3: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Three hundred rows over forty photographs arrive in every transport, and nothing secret goes where it should not.

    The relays in front of gateway and bucket keep what was said: the key goes to the gateway alone, a signature into
    the body of a call and from the gateway to the bucket alone, and nothing of either is left in the store.
    """
    rows = world.rows
    if transport == "presign":  # a file of this machine cannot be
        rows = [[place for place in row if "://" in place and not place.startswith("file")] for row in rows]
        write(world, rows)
    engine = "sandbox" if transport == "auto" else "static"
    with sandbox(engine=engine) as gateway, Wire(gateway.url) as api, Wire(s3.endpoint) as bucket:
        options = s3.options | {"endpoint_url": bucket.url}
        result = generate(world, api.url, options, reference_transport=transport, keep_references=True)
        assert result.failures == {}
        assert (result.generated, result.held) == (ROWS, 0)
        bodies = [record.body for record in gateway.account_state.billed]
        assert gateway.account_state.statistics()["billed_twice"] == 0
        uploads = gateway.account_state.calls["upload"]
    urls = {url for body in bodies for url in body["image_urls"]}
    at = {name: place for name, place in world.places.items() if any(place in row for row in rows)}
    in_bucket = [name for name, place in at.items() if place.startswith("s3")]
    on_web = [name for name, place in at.items() if place.startswith("http")]
    assert {url for url in urls if url.startswith(world.server.url)} == {at[name] for name in on_web}
    assert (
        uploads
        == len([url for url in urls if "/assets/" in url])
        == {
            "auto": len(at) - len(on_web) - len(in_bucket),
            "upload": len(at) - len(on_web),
            "data-url": 0,
            "presign": 0,
        }[transport]
    )
    assert any("X-Amz-Signature" in url for url in urls) == (transport in ("auto", "presign"))
    # The gateway keeps a hash of what came inside a call.
    assert any(url.startswith("sha256:") for url in urls) == (transport == "data-url")
    # The metadata knows what was used, and the store has it.
    by_place = {place: world.photos[name] for name, place in world.places.items()}
    for row, places in zip(metadata(world, result), rows, strict=True):
        assert [reference["sha256"] for reference in row["references"]] == [
            hashlib.sha256(by_place[p]).hexdigest() for p in places
        ]
        assert [reference["uri"] for reference in row["references"]] == [
            place if "://" in place else f"file://{world.folder}/m/{place}" for place in places
        ]
        assert all(reference["width"] >= 64 and reference["height"] >= 64 for reference in row["references"])
    stored = {path.stem: path.read_bytes() for path in (world.folder / "store" / "references").iterdir()}
    assert stored == {hashlib.sha256(by_place[place]).hexdigest(): by_place[place] for place in at.values()}
    # The wire, the store and what was printed.
    assert KEY.encode() in api.log
    assert KEY.encode() not in bucket.log
    assert b"x-api-key" not in bucket.log.lower()
    for path, headers in world.server.asked:
        assert KEY not in str(headers)
        assert "X-Amz" not in path
    for call in api.sent:  # a signature is in the body of a call, never in an address or a header
        assert b"X-Amz-" not in call.partition(b"\r\n\r\n")[0] or not call.startswith((b"GET", b"POST", b"HEAD"))
    said = everything(world.folder / "store") + "".join(capfd.readouterr()).encode()
    assert [sign for sign in SECRET_SIGNS if sign in said] == []


@pytest.mark.s3
@pytest.mark.timeout(400)
def test_a_changed_photograph(world: World, s3: Any) -> None:
    """Other bytes behind a name make exactly their rows anew where content is the identity, and none under a URL."""
    names = list(world.photos)
    in_bucket, on_disk, on_web = names[0], names[1], names[2]
    other = world.photos[names[5]]
    with sandbox(engine="static") as gateway:
        first = generate(world, gateway.url, s3.options)
        assert first.generated == ROWS
        calls = sum(gateway.account_state.calls[name] for name in ("submit", "upload"))
        same = generate(world, gateway.url, s3.options)
        assert (same.generated, same.reused) == (0, ROWS)
        assert sum(gateway.account_state.calls[name] for name in ("submit", "upload")) == calls
        for name in (in_bucket, on_disk, on_web):
            world.rewrite(name, other)
        changed = generate(world, gateway.url, s3.options)
        assert changed.generated == world.rows_with(in_bucket, on_disk)
        assert changed.reused == ROWS - changed.generated
        by_content = generate(world, gateway.url, s3.options, reference_identity="content")
        assert by_content.generated == world.rows_with(*(n for n in names if world.places[n].startswith("http")))
        world.rewrite(on_web, world.photos[names[8]])
        again = generate(world, gateway.url, s3.options, reference_identity="content")
        assert again.generated == world.rows_with(on_web)
        assert gateway.account_state.statistics()["billed_twice"] == 0


@pytest.mark.s3
def test_pictures_of_other_kinds_are_made_plain(world: World, s3: Any) -> None:
    """A photograph on its side is sent upright, and `applied` says so; `presign`, which could not, refuses its row."""
    image, sink = Image.new("RGB", (300, 200), "navy"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(sink, "JPEG", exif=exif)
    places = [f"s3://{world.bucket}/turned.jpg", f"{world.server.url}/turned.jpg"]
    world.s3.pipe_file(places[0].removeprefix("s3://"), sink.getvalue())
    world.server.files["turned.jpg"] = sink.getvalue()
    write(world, [[place] for place in places], aspect_ratio=["match_input_image", "match_input_image"])
    with sandbox() as gateway:
        result = generate(world, gateway.url, s3.options)
        assert all("/assets/" in record.body["image_urls"][0] for record in gateway.account_state.billed)
    for row in metadata(world, result):
        assert row["status"] == "generated"
        assert json.loads(row["applied"])["references"] == [{"position": 1, "changes": ["turned upright"]}]
        assert (row["references"][0]["width"], row["references"][0]["height"]) == (200, 300)
        assert (row["width"], row["height"]) == (192, 288)
    summary = plan(world, s3.options, reference_transport="presign")
    assert all("turned upright" in error.reason for error in summary.errors)
    assert summary.counts["invalid"] == 2
