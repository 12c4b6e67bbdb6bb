"""References that are uploaded or signed: addresses that expire, and those that are kept in mind."""

from typing import Any

import pytest
from pydantic import SecretStr

import prefect_imagegen
from prefect_imagegen.providers.settings import ProviderSettings
from tests.app.planning.references.conftest import Wire, World, everything, generate, metadata, sandbox, write


@pytest.mark.s3
@pytest.mark.parametrize("api_version", ["v1", "v2"])
def test_a_presigned_url_that_is_turned_away(api_version: str, world: World, s3: Any) -> None:
    """A presigned URL that the API cannot open is replaced by an upload, once, and nothing is paid twice."""
    places = [place for place in world.places.values() if place.startswith("s3")]
    write(world, [[place] for place in places])

    def is_presigned(data: bytes) -> bool:
        return b"X-Amz-Signature" in data.partition(b"\r\n")[0]

    with sandbox(engine="static") as gateway, Wire(s3.endpoint, is_presigned) as bucket:
        options = s3.options | {"endpoint_url": bucket.url}
        result = generate(world, gateway.url, options, api_version=api_version)
        assert (result.generated, result.calls, result.maybe_paid) == (len(places), 2 * len(places), 0)
        assert gateway.account_state.calls["upload"] == len(places)
        assert gateway.account_state.statistics()["billed"] == len(places)


@pytest.mark.s3
def test_uploads_are_kept_in_mind_and_made_again(world: World, s3: Any) -> None:
    """An upload serves later runs, of other stores too; one that is gone is made again."""
    places = [place for place in world.places.values() if place.startswith("photos/")]
    write(world, [[place] for place in places])
    with sandbox(engine="static") as gateway:

        def run(store: str) -> int:
            before = gateway.account_state.calls["upload"]
            assert generate(world, gateway.url, s3.options, store=store).generated == len(places)
            return gateway.account_state.calls["upload"] - before

        assert [run("a"), run("b")] == [len(places), 0]
        first, *_ = (gateway.account_state.folder / "assets").iterdir()
        first.unlink()
        assert run("c") == 1
        # Another account has uploads of its own.
        before = gateway.account_state.calls["upload"]
        prefect_imagegen.generate(
            world.manifest,
            str(world.folder / "d"),
            backend=ProviderSettings(base_url=gateway.url, api_key=SecretStr("SG_ffffffffffffffff")),
        )
        assert gateway.account_state.calls["upload"] - before == len(places)
    cache = world.folder / "cache" / "references.sqlite"
    assert cache.stat().st_mode & 0o077 == 0


def test_signed_references_by_content(world: World) -> None:
    """A signed URL of the user's own is read by it, uploaded, and its signature is kept from the store."""
    for name in list(world.photos)[:3]:
        world.server.files[name] = world.photos[name]
    signed = [
        f"{world.server.url}/{name}?X-Amz-Signature=SECRETPART{n}" for n, name in enumerate(list(world.photos)[:3])
    ]
    write(world, [[url] for url in signed])
    with sandbox(engine="static") as gateway:
        result = generate(world, gateway.url, {}, reference_identity="content")
        assert result.generated == 3
        assert gateway.account_state.calls["upload"] == 3
        write(world, [[f"{url}again"] for url in signed])  # signed anew: the same pictures
        assert generate(world, gateway.url, {}, reference_identity="content").reused == 3
    assert b"SECRETPART" not in everything(world.folder / "store")
    assert [reference["uri"] for row in metadata(world, result) for reference in row["references"]] == [
        url.partition("?")[0] for url in signed
    ]


def test_what_is_done_needs_its_references_no_more(world: World) -> None:
    """Web references of rows that are done are not asked for again."""
    places = [place for place in world.places.values() if place.startswith("http")]
    write(world, [[place] for place in places])
    with sandbox(engine="static") as gateway:
        assert generate(world, gateway.url, {}).generated == len(places)
        world.server.files.clear()
        asked = len(world.server.asked)
        assert generate(world, gateway.url, {}).reused == len(places)
        assert len(world.server.asked) == asked
