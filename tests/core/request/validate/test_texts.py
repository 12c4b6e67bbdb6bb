"""Prompts, seeds and ids of a row."""

from decimal import Decimal

import pytest

from prefect_imagegen.core.request.validate import ValidRow
from tests.core.request.validate.conftest import CUP, NAN, only_error, valid, validator


@pytest.mark.parametrize(
    "prompt",
    [
        "x",
        "🧀" * 200,
        "\u202bقطة على كرسي\u202c",
        "שלום",
        "  padded  ",
        "two\nlines",
        "null",
        "nan",
        "e\u0301 is not é",
        "x" * 64_000,
        "🧀" * 16_000,
    ],
)
def test_a_prompt_stays_byte_for_byte(prompt) -> None:
    """Emoji, right-to-left text, combining marks, spaces and line breaks reach the request unchanged."""
    assert valid({"prompt": prompt}).request.prompt == prompt


@pytest.mark.parametrize(
    ("prompt", "reason", "shown"),
    [
        (None, "the prompt is missing", "nothing"),
        (NAN, "the prompt is missing", "nothing"),
        ("", "the prompt is empty", "''"),
        (" \n\t", "the prompt is empty", "' \\n\\t'"),
        (42, "the prompt must be text", "42"),
        (b"bytes", "the prompt must be text", "b'bytes'"),
        (["a"], "the prompt must be text", "['a']"),
        ("half \ud83e", "the text holds half a character (a lone surrogate)", "'half \\ud83e'"),
    ],
)
def test_a_bad_prompt_names_column_value_and_reason(prompt, reason, shown) -> None:
    """A missing, empty or non-text prompt is an error with row, column, value and reason."""
    error = only_error({"prompt": prompt})
    assert (error.column, error.reason) == ("prompt", reason)
    assert error.value == shown
    assert str(error) == f"row 3, column prompt: {reason} (found {shown})"
    str(error).encode()


@pytest.mark.parametrize("prompt", ["p" * 100_000, "é" * 40_000, "🧀" * 16_001])
def test_a_huge_prompt_is_refused_and_not_printed(prompt) -> None:
    """A 100 kB prompt is refused with its size in bytes, and the message shows only its beginning."""
    error = only_error({"prompt": prompt})
    assert f"{len(prompt.encode())} bytes" in error.reason
    assert "right column" in error.reason
    assert len(error.value) < 120
    assert "characters)" in error.value


def test_the_error_names_the_mapped_column() -> None:
    """The column of an error is the manifest's own, not the field's."""
    assert only_error({"Text": None}, columns={"prompt": ["Text"]}).column == "Text"


@pytest.mark.parametrize("seed", [None, -1, -1.0, NAN])
def test_an_absent_seed_is_derived(seed) -> None:
    """A seed of null, -1 or NaN is derived from the row, and so equal rows share it."""
    assert valid({**CUP, "seed": seed}).request.seed == valid(CUP).request.seed


@pytest.mark.parametrize(("seed", "sent"), [(0, 0), (7.0, 7), (2**31, 2**31), (2**63 - 1, 2**63 - 1)])
def test_an_explicit_seed_is_sent(seed, sent) -> None:
    """An explicit seed is sent as the whole number that it is; zero is one too."""
    result = valid({**CUP, "seed": seed}).request.seed
    assert (result, type(result)) == (sent, int)


@pytest.mark.parametrize("seed", [-2, 2**63, 1.5, "7.5", "seven", "1_0", True, float("inf"), [7], Decimal("NaN")])
def test_a_bad_seed_is_refused(seed) -> None:
    """A seed that is negative, too large, fractional or no number is refused."""
    error = only_error({**CUP, "seed": seed})
    assert error.column == "seed"
    assert "seed must be" in error.reason


def test_the_run_default_seed_counts() -> None:
    """A seed set for the run is explicit; a row's -1 still asks for a derived one."""
    check = validator(["prompt", "seed"], values={"seed": 5})
    assert check.validate(0, {"prompt": "a", "seed": None}).request.seed == 5
    assert check.validate(0, {"prompt": "a", "seed": -1}).request.seed == valid({"prompt": "a"}).request.seed


@pytest.mark.parametrize("value", [float(2**53), 1e16, 9.3e18])
def test_a_seed_that_lost_digits_is_refused(value: float) -> None:
    """A large seed or id that came as a float may have been another one: it is refused, and nothing is bought."""
    for row, options in (({**CUP, "seed": value}, {}), ({**CUP, "sku": value}, {"id_column": "sku"})):
        errors = validator(row, **options).validate(0, row)
        assert isinstance(errors, list)
        assert "has lost digits" in errors[0].reason
    assert isinstance(validator({**CUP, "seed": 1}).validate(0, {**CUP, "seed": float(2**53 - 1)}), ValidRow)


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), (7, "7"), (7.0, "7"), (True, "True"), ("0", "0"), (" x", " x")]
)
def test_an_id_becomes_text(value, text) -> None:
    """An id of any type is kept as text; an integral float is the integer it was before pandas had it."""
    assert valid({**CUP, "name": value}, id_column="name").row_id == text


@pytest.mark.parametrize("value", [None, NAN, "", "  "])
def test_a_missing_id_is_an_error(value) -> None:
    """A named id column must hold an id in every row."""
    assert only_error({**CUP, "name": value}, id_column="name").reason == "the id is missing"


def test_without_an_id_column_there_is_no_id() -> None:
    """A column called id means nothing unless it is named."""
    assert valid({**CUP, "id": "x"}).row_id is None


def test_a_key_in_a_cell_is_not_repeated() -> None:
    """An API key that landed in a cell is not echoed by the error."""
    assert "SG_0123456789abcdef" not in str(only_error({**CUP, "steps": "SG_0123456789abcdef"}))
