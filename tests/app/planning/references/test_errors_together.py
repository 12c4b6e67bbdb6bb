"""All errors of a row come together: those of its references beside those of its other cells."""

import pytest

from prefect_imagegen.core.request.validate import RowError
from tests.app.planning.references.conftest import World, plan, write


def reasons(errors: list[RowError]) -> list[tuple[int, str]]:
    return [(error.row, error.column) for error in errors]


@pytest.mark.parametrize("place", ["{web}/missing.png", "photos/missing.png"], ids=["on the web", "on a disk"])
def test_a_bad_reference_beside_another_error(world: World, place: str) -> None:
    """A row with a wrong seed and a reference that cannot be read is told of both, wherever that lies."""
    good = next(name for name in world.places.values() if name.startswith("photos/"))
    bad = place.format(web=world.server.url)
    write(world, [[bad], [good], [bad], [good]], seed=[-5, -5, 3, 4])
    summary = plan(world, {})
    assert sorted(reasons(summary.errors)) == [(0, "image_urls"), (0, "seed"), (1, "seed"), (2, "image_urls")]
    assert (summary.counts["invalid"], summary.counts["new"]) == (3, 1)


def test_a_bad_reference_is_one_all_the_same(world: World) -> None:
    """An aspect ratio that follows a reference does not say that there is none, where it cannot be read."""
    write(world, [["photos/missing.png"], []], aspect_ratio=["match_input_image"] * 2)
    assert sorted(reasons(plan(world, {}).errors)) == [(0, "image_urls"), (1, "aspect_ratio")]


def test_a_bad_reference_of_a_doubled_id(world: World) -> None:
    """A row whose id is taken is told of its bad reference as well."""
    write(world, [[f"{world.server.url}/missing.png"]] * 2, name=["A1", "A1"])
    errors = plan(world, {}, id_column="name").errors
    assert sorted(reasons(errors)) == [(0, "image_urls"), (1, "image_urls"), (1, "name")]
