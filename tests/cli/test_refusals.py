"""The page of refusals says what the program says."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.support import warm_python
from tests.support.command import MODULE

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.timeout(600)
def test_the_page_of_refusals_is_up_to_date() -> None:
    """Every case on docs/guides/refusals.md is refused with exit code 2 and exactly the words that stand there."""
    spec = importlib.util.spec_from_file_location("refusals", DOCS / "refusals.py")
    assert spec is not None
    assert spec.loader is not None
    refusals = importlib.util.module_from_spec(spec)
    sys.modules["refusals"] = refusals  # where dataclasses look for their module
    try:
        spec.loader.exec_module(refusals)
        refusals.run_program = lambda words, cwd, env: warm_python.run("-m", MODULE, *words, cwd=cwd, env=env)
        page = (DOCS / "guides" / "refusals.md").read_text(encoding="utf-8")
        assert refusals.page() == page, "run `python docs/refusals.py`"
    finally:
        del sys.modules["refusals"]
