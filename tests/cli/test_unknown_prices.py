"""How `status` shows money that no answer named."""

import io
from typing import Any

import pytest
from rich.console import Console

from prefect_imagegen.app.maintenance.status import RunStatus
from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.cli.output import show_statuses

COUNTS = {"rows": 1000, "generated": 900, "reused": 100, "calls": 900}


@pytest.mark.parametrize(
    ("money", "shown"),
    [
        ({"cost_usd": 1.25}, "1.2500"),
        ({"cost_usd": 1.25, "unpriced": 0}, "1.2500"),
        ({"cost_usd": 1.25, "unpriced": 3}, "1.25+?"),
        ({"cost_usd": 0.0, "unpriced": 900}, "?"),
    ],
)
def test_an_unknown_price_is_not_shown_as_nothing(money: dict[str, Any], shown: str) -> None:
    """In a terminal of 80 columns the line of a run says that costs are unknown; older reports do not tell."""
    text = io.StringIO()
    status = RunStatus("20261127T095407-23427347ce9", "finished", "m.parquet", COUNTS | money)
    show_statuses(Console(file=text, width=80), [status])
    assert text.getvalue().splitlines()[1].split()[-1] == shown


def test_the_sentence_about_money() -> None:
    """A run's own sentence names what is known, and how many images have an unknown price."""
    assert RunResult("r", "s", cost_usd=0.5).cost_text == "0.5000 USD"
    assert RunResult("r", "s", cost_usd=0.5, unpriced=2).cost_text == "0.5000 USD and 2 at a price that no answer named"
