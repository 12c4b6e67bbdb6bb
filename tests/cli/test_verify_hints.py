"""What `verify` says of problems that are left."""

import io

import pytest
from rich.console import Console

from prefect_imagegen.app.maintenance.verify_report import Problem, VerifyReport
from prefect_imagegen.cli.output import show_problems


@pytest.mark.parametrize(
    ("was_asked", "words"), [(True, "could not be fetched as it was. Run it again later"), (False, "set its key")]
)
def test_a_key_is_asked_for_only_where_there_was_none(words: str, *, was_asked: bool) -> None:
    """Where the API was asked with a key and did not have the image, the user is not told to set the key."""
    report = VerifyReport("store", images=1, problems=[Problem("missing_image", "images/aa/a.png", "not in the store")])
    report.was_asked = was_asked
    text = io.StringIO()
    show_problems(Console(file=text, width=200), report, repair=True)
    assert words in text.getvalue()
