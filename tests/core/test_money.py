"""Amounts of money are written in one way, wherever they are shown."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.money import exact, figure, plain, usd
from prefect_imagegen.core.policy.budget import Budget

ROOT = Path(__file__).parents[2]
AMOUNTS = st.floats(-1e9, 1e9, allow_nan=False)
_MONEY = re.compile(r"usd|cost|price|spent|budget|balance|amount|reserved|credits", re.IGNORECASE)

_AMOUNT = re.compile(r"(^|[._])(usd|cost|price|spent|balance|cap)$", re.IGNORECASE)


@given(AMOUNTS, st.sampled_from([2, 4]), st.booleans())
def test_figures(amount: float, places: int, signed: bool) -> None:
    """An amount has no exponent, no negative zero and no tail of digits, and is the amount to what is shown of it."""
    text = figure(amount, places=places, signed=signed)
    match = re.fullmatch(r"[+-]?(\d{1,3}(?:,\d{3})*)\.(\d+)", text)
    assert match is not None, text
    assert len(match[2]) in (places, 4)
    value = float(text.replace(",", ""))
    assert value == pytest.approx(amount, abs=0.51 * 10 ** -len(match[2]))
    assert value or text[0] not in "+-"
    assert (text[0] == "+") is (signed and value > 0)
    assert usd(amount, places=places, signed=signed) == f"{text} USD"


@given(AMOUNTS | st.floats(-1e-3, 1e-3))
def test_figures_for_programs(amount: float) -> None:
    """Headers and JSON have an amount to the millionth, without exponent in headers, dust and negative zeros."""
    assert re.fullmatch(r"-?\d+(\.\d*[1-9])?", plain(amount))
    assert plain(amount) != "-0"
    assert float(plain(amount)) == pytest.approx(amount, abs=0.51e-6)
    assert str(exact(amount)) != "-0.0"


@pytest.mark.parametrize(
    ("amount", "places", "text"),
    [
        (-0.0, 4, "0.0000"),
        (-1e-17, 4, "0.0000"),
        (-0.004, 2, "-0.0040"),
        (0.1 + 0.2, 4, "0.3000"),
        (1e-05, 4, "0.0000"),
        (0.0000501, 2, "0.0001"),
        (0.002, 2, "0.0020"),
        (1234567.891, 2, "1,234,567.89"),
        (float("inf"), 4, "unknown"),
        (float("nan"), 4, "unknown"),
    ],
)
def test_ugly_amounts(amount: float, places: int, text: str) -> None:
    """What floating-point numbers leave behind is not shown; a small amount is not shown as nothing."""
    assert figure(amount, places=places) == text


@given(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=30))
def test_what_a_budget_leaves_over(costs: list[float]) -> None:
    """Reservations that were all given back are shown as nothing reserved, whatever dust the sums have left."""
    budget = Budget()
    reservations = [budget.reserve(f"class {number}", cost) for number, cost in enumerate(costs)]
    for reservation in reservations[::-1]:
        budget.release(reservation)
    assert figure(budget.reserved) == "0.0000"


def test_nobody_else_formats_money() -> None:
    """No other place of the code gives an amount a format of its own."""
    sources = [path for folder in ("src", "flows", "tasks", "blocks") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    culprits = []
    for path in sources:
        if path.name == "money.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FormattedValue):
                shown = ast.unparse(node.value)
                is_bare = isinstance(node.value, ast.Name | ast.Attribute) and _AMOUNT.search(shown)
                if is_bare or (node.format_spec and _MONEY.search(shown) and not shown.startswith("len(")):
                    culprits.append(f"{path.name}:{node.lineno}: {shown}")
    assert culprits == []
