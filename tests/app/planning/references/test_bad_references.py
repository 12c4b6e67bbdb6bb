"""References that cannot be used: named before any call; and how often each is read."""

import io
from typing import Any

import pytest
from PIL import Image

from prefect_imagegen.app.planning.prepare import RowsRefusedError
from prefect_imagegen.app.planning.stored_plan import StoredPlan
from tests.app.planning.references.conftest import World, generate, plan, sandbox, write


@pytest.mark.s3
def test_bad_references_are_named_before_any_call(world: World, s3: Any) -> None:
    """What is missing, broken, huge, forbidden or hostile is named with its row and its reason; nothing is called."""
    good, sink = world.places[next(iter(world.photos))], io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(sink, "PNG")
    photos = world.folder / "m" / "photos"
    (photos / "huge.png").write_bytes(sink.getvalue())
    (photos / "broken.jpg").write_bytes(next(iter(world.photos.values()))[:9_000])
    (photos / "fat.png").write_bytes(next(iter(world.photos.values())) + bytes(40_000_000))
    (photos / "words.png").write_text("not a picture")
    bad = {
        "photos/missing.png": "does not exist",
        f"s3://{world.bucket}/missing.png": "does not exist",
        "photos/huge.png": "9000x9000 pixels, more than 64 megapixels",
        "photos/broken.jpg": "no whole image",
        "photos/fat.png": "bytes, more than 33554432",
        "photos/words.png": "no whole image",
        "photos": "no file",
        "/dev/zero": "no file",
        f"{world.server.url}/forbidden": "status 403",
        f"{world.server.url}/missing.png": "status 404",
        "http://169.254.169.254/latest/meta-data/": "not a public address",
        "http://192.168.0.1/a.png": "not a public address",
        "http://[::ffff:10.0.0.1]/a.png": "not a public address",
        "s3://no-such-bucket-anywhere/a.png": "does not exist",
    }
    write(world, [[good], *([good, place] for place in bad)])
    summary = plan(world, s3.options)
    assert (summary.rows, summary.counts["new"], summary.counts["invalid"]) == (len(bad) + 1, 1, len(bad))
    for number, (error, reason) in enumerate(zip(summary.errors, bad.values(), strict=True), 1):
        assert (error.row, error.column) == (number, "image_urls")
        assert reason in error.reason
        assert list(bad)[number - 1].rpartition("/")[2] in str(error)
    with sandbox() as gateway, pytest.raises(RowsRefusedError, match="14 of 15 rows are invalid"):
        generate(world, gateway.url, s3.options)
    assert not gateway.account_state.records
    # Wrong keys of the bucket are told as such.
    write(world, [[good]])
    (error,) = plan(world, s3.options | {"secret": "wrong"}).errors
    assert "--reference-storage-option" in error.reason
    # Without a look, only what content identity needs is read.
    write(world, [[f"{world.server.url}/missing.png"], ["photos/huge.png"], ["photos/missing.png"]])
    unseen = plan(world, s3.options, check_references="none")
    assert (unseen.counts["new"], [error.row for error in unseen.errors]) == (2, [2])
    assert plan(world, s3.options, max_reference_megapixels=100.0).counts["new"] == 1


def test_a_sample_is_looked_at(world: World) -> None:
    """With `sample` about a tenth of the web references is asked for, the same ones each time."""
    write(world, [[f"{world.server.url}/missing-{n}.png"] for n in range(200)])
    summaries = [plan(world, {}, check_references="sample") for _ in range(2)]
    assert 5 <= summaries[0].counts["invalid"] == len(world.server.asked) // 2 <= 40
    assert [str(error) for error in summaries[0].errors] == [str(error) for error in summaries[1].errors]


def test_each_reference_is_read_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of many windows asks for each reference once, also where the server names no version of it."""
    monkeypatch.setattr("prefect_imagegen.inputs.manifests.manifest.WINDOW_ROWS", 10)
    world.server.marks = False
    places = [place for place in world.places.values() if place.startswith("http")]
    write(world, [[places[n % len(places)]] for n in range(100)])
    assert plan(world, {}).counts["new"] == 100
    assert sorted(path for path, _ in world.server.asked) == sorted(place[len(world.server.url) :] for place in places)


def test_a_reference_that_changes_after_the_plan(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bytes than were planned are never sent under the planned key: the row fails, and the next run makes it."""
    write(world, [["photos/" + name] for name, place in world.places.items() if place.startswith("photos/")])
    name = next(name for name, place in world.places.items() if place.startswith("photos/"))
    before = StoredPlan.shard

    async def shard(*args: Any) -> Any:
        world.rewrite(name, world.photos[list(world.photos)[5]])
        return await before(*args)

    with sandbox(engine="static") as gateway:
        with monkeypatch.context() as patch:
            patch.setattr(StoredPlan, "shard", shard)
            result = generate(world, gateway.url, {})
        assert result.failures == {"reference_unreadable": 1}
        again = generate(world, gateway.url, {})
        assert (again.generated, again.failed) == (1, 0)
        assert gateway.account_state.statistics()["billed_twice"] == 0
