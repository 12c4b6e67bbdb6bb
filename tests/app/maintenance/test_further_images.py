"""Verify: further images of one answer."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.app.maintenance.conftest import Place, kinds
from tests.support.builders.images import png


def several_images(place: Place, *flags: str) -> tuple[Path, Path]:
    """A store with one key whose answer had two images; the paths of both."""
    place.generate(1)
    (first,) = place.images()
    second = first.with_name(f"{first.stem}-2.png")
    second.write_bytes(png())
    (segment,) = (place.folder / "store" / "ledger" / "segments").iterdir()
    table = pq.read_table(segment)
    column = [list(flags) if kind == "delivered" else None for kind in table["type"].to_pylist()]
    position = table.column_names.index("flags")
    pq.write_table(table.set_column(position, "flags", pa.array(column, pa.list_(pa.string()))), segment)
    return first, second


def test_further_images_of_an_answer_are_known(place: Place) -> None:
    """Images beside the key's own are no problem where the ledger tells of several, and are read like all others."""
    first, second = several_images(place, "more_images")
    tenth = second.with_name(f"{first.stem}-10.png")
    tenth.write_bytes(png())
    report = place.verify(repair=True)
    assert (report.images, report.problems, report.sound) == (3, [], True)
    second.write_bytes(second.read_bytes()[:-20])
    assert kinds(place.verify()) == [("undecodable", None)]
    assert kinds(place.verify(repair=True)) == [("undecodable", "quarantined")]
    assert place.images() == sorted([first, tenth])
    assert place.generate(1).reused == 1


@pytest.mark.parametrize("name", ["{}-2.png", "{}-1.png", "{}-0.png", "{}-02.png", "{}-x.png", "{}-2-2.png"])
def test_images_that_the_ledger_does_not_tell_of(name: str, place: Place) -> None:
    """Where the ledger knows one image of a key, further ones are strangers, and so are names that nobody gives."""
    first, second = several_images(place, *(["more_images"] if name != "{}-2.png" else []))
    second.rename(first.with_name(name.replace("{}", first.stem)))
    assert kinds(place.verify()) == [("unrecorded_image", None)]
    assert kinds(place.verify(repair=True)) == [("unrecorded_image", "quarantined")]
    assert place.images() == [first]


def test_further_images_of_an_answer_half_stored(place: Place) -> None:
    """Further images whose key has no image yet are left to the run that settles the claim; without one, strangers."""
    first, second = several_images(place)
    first.unlink()
    place.forget_the_ledger()
    report = place.verify(repair=True)
    assert (report.in_progress, report.problems, place.images()) == (1, [], [second])
    for path in (place.folder / "store" / "ledger" / "claims").rglob("*.json"):
        path.unlink()
    assert kinds(place.verify(repair=True)) == [("unrecorded_image", "quarantined")]
