"""Which stores a deployed run may not have."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.flows.deployed_store import refuse_fleeting, why_fleeting

MADE = Path("/tmp/tmpk3x_9a2zprefect")


@pytest.mark.parametrize(
    ("url", "here", "why"),
    [
        ("images", Path("/srv"), "relative"),
        ("./images", MADE, "relative"),
        ("../images", Path("/srv/a"), "relative"),
        ("file://images", Path("/srv"), "relative"),
        ("memory://images", Path("/srv"), "memory"),
        (f"{MADE}/images", MADE, "working directory"),
        (f"{MADE}/a/../images", MADE / "repository", "working directory"),
        (f"file://{MADE}", MADE, "working directory"),
        (f"{MADE}/images", Path("/srv"), None),
        ("/srv/images", MADE, None),
        ("file:///srv/images", Path("/srv"), None),
        ("~/images", MADE, None),
        ("s3://bucket/images", MADE, None),
        ("gs://bucket", MADE, None),
    ],
)
def test_stores_that_vanish(url: str, here: Path, why: str | None) -> None:
    """A store is refused if it is relative, in memory, or in the folder that Prefect made for the flow run."""
    reason = why_fleeting(url, here)
    assert reason is None if why is None else why in str(reason)


@given(st.lists(st.from_regex(r"[a-z][a-z0-9 ]{0,5}|\.\.?", fullmatch=True), min_size=1, max_size=4))
def test_no_spelling_gets_past(parts: list[str]) -> None:
    """However a path is spelled, it is refused exactly if it is relative or leads into the folder that Prefect made."""
    spelled = "/".join(parts)
    assert why_fleeting(spelled, MADE) is not None
    place = (MADE / spelled).resolve()
    assert (why_fleeting(f"{MADE}/{spelled}", MADE) is not None) is place.is_relative_to(MADE)


def test_other_runs_may_use_any_store() -> None:
    """Outside of a deployment a relative store is where its user stands."""
    refuse_fleeting(StoreSettings("images"))
