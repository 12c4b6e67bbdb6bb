"""Values of a row: defaults, types, ranges and enums."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.request.scalars import number_of
from prefect_imagegen.core.request.validate import ValidRow
from tests.core.request.validate.conftest import CUP, NAN, URL, errors, only_error, valid, validator


def test_defaults_are_resolved() -> None:
    """A row with a prompt alone becomes a request with every field of the default model and a derived seed."""
    request = valid(CUP).request
    assert request.model == "flux-2-klein-9b"
    assert {"prompt", "seed", "steps", "cfg", "go_fast", "image_format"} <= set(request.params)
    assert request.params["steps"] == 20


def test_a_run_default_fills_empty_cells_only() -> None:
    """A value set for the run stands where the row's cell is empty, and only there."""
    check = validator(["prompt", "steps"], values={"steps": 4, "cfg": 2.5})
    assert check.validate(0, {"prompt": "a", "steps": None}).request.params["steps"] == 4
    assert check.validate(1, {"prompt": "a", "steps": NAN}).request.params["steps"] == 4
    assert check.validate(2, {"prompt": "a", "steps": 9}).request.params["steps"] == 9
    assert check.validate(3, {"prompt": "a", "steps": 9}).request.params["cfg"] == 2.5


@pytest.mark.parametrize(
    ("field", "value", "sent"),
    [
        ("seed", Decimal(7), 7),
        ("seed", Decimal("7.00"), 7),
        ("seed", " 7 ", 7),
        ("seed", "9007199254740993", 2**53 + 1),
        ("seed", "9.007199254740993E15", 2**53 + 1),
        ("seed", Decimal(9223372036854775807), 2**63 - 1),
        ("steps", "20", 20),
        ("steps", "20.0", 20),
        ("steps", "+2e1", 20),
        ("steps", Decimal("20.000"), 20),
        ("cfg", "4.5", 4.5),
        ("cfg", ".5e1", 5),
        ("cfg", Decimal("4.50"), 4.5),
        ("go_fast", "false", False),
        ("go_fast", "TRUE", True),
        ("go_fast", " True", True),
        ("aspect_ratio", " 16:9 ", "16:9"),
        ("model", " flux-2-klein-4b", "flux-2-klein-4b"),
    ],
)
def test_spelled_values_and_decimals_are_the_values_they_spell(field, value, sent) -> None:
    """Numbers and truth values as text, decimals, and known words between blanks are what they clearly mean."""
    request = valid({**CUP, field: value}).request
    result = request.model if field == "model" else request.params[field]
    assert (result, type(result)) == (sent, type(sent))


@pytest.mark.parametrize("field", ["seed", "steps", "cfg", "go_fast", "aspect_ratio", "sampler", "model"])
@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_a_blank_cell_of_a_number_or_a_word_of_a_list_is_not_given(field, blank) -> None:
    """A cell that holds blanks only says nothing, except where it is free text."""
    assert valid({**CUP, field: blank}).request == valid(CUP).request
    assert valid({**CUP, "negative_prompt": blank}).request.params["negative_prompt"] == blank


@given(st.integers(-(10**30), 10**30) | st.floats(-1e15, 1e15))
def test_a_number_is_the_same_however_it_is_held(value) -> None:
    """A number as text, as decimal and as itself is one number, exactly."""
    assert number_of(str(value)) == number_of(Decimal(str(value))) == number_of(value) == value


@given(st.text(max_size=12))
def test_no_text_is_a_number_by_accident(text) -> None:
    """Only what reads as a plain decimal number is one; no text raises."""
    number = number_of(text)
    plain = float if isinstance(number, float) else Decimal
    assert number is None or plain(text.strip()) == number


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("steps", 0, "it must lie in 1 to 100"),
        ("steps", 101, "it must lie in 1 to 100"),
        ("steps", 20.5, "it must be a whole number"),
        ("steps", "20.5", "it must be a whole number"),
        ("steps", "NA", "it must be a whole number"),
        ("steps", Decimal("4.5"), "it must be a whole number"),
        ("steps", True, "it must be a whole number"),
        ("steps", float("inf"), "it must be a whole number"),
        ("cfg", 0.99, "it must lie in 1 to 20"),
        ("cfg", 20.01, "it must lie in 1 to 20"),
        ("cfg", "5 USD", "it must be a number"),
        ("cfg", "4,5", "it must be a number, with a decimal point, not a comma"),
        ("cfg", Decimal("Infinity"), "it must be a number"),
        ("cfg", "1e999999", "it must be a number"),
        ("cfg", False, "it must be a number"),
        ("quality", 9, "it must lie in 10 to 100"),
        ("quality", 101, "it must lie in 10 to 100"),
        ("go_fast", 1, "it must be true or false"),
        ("go_fast", "yes", "it must be true or false"),
        ("negative_prompt", 3, "it must be text"),
        ("negative_prompt", "\udc00", "the text holds half a character (a lone surrogate)"),
        ("sampler", 1, "it must be text"),
        ("aspect_ratio", 1.5, "it must be text"),
        ("image_format", ["png"], "it must be text"),
    ],
)
def test_a_value_outside_type_or_range_is_an_error(field, value, reason) -> None:
    """A value of the wrong type or outside the range is an error of that row."""
    error = only_error({**CUP, field: value})
    assert (error.column, error.reason) == (field, reason)


@pytest.mark.parametrize(
    ("field", "value", "sent"),
    [
        ("steps", 1, 1),
        ("steps", 100, 100),
        ("steps", 30.0, 30),
        ("cfg", 1, 1),
        ("cfg", 20.0, 20.0),
        ("cfg", 1.01, 1.01),
        ("quality", 10, 10),
        ("quality", 100, 100),
        ("go_fast", False, False),
        ("negative_prompt", "", ""),
        ("negative_prompt", None, "low quality, blurry, less details"),
        ("steps", None, 20),
    ],
)
def test_limits_are_inclusive(field, value, sent) -> None:
    """The ends of a range are allowed, empty text is a value, and null means the default."""
    result = valid({**CUP, field: value}).request.params[field]
    assert (result, isinstance(result, bool)) == (sent, isinstance(sent, bool))


@pytest.mark.parametrize(
    ("field", "value"), [("sampler", "dpm"), ("aspect_ratio", "9:21"), ("image_format", "avif"), ("sampler", "EULER")]
)
def test_a_value_outside_a_known_enum_is_a_warning(field, value) -> None:
    """A value outside a known enum is sent as it is, with one counted warning."""
    row = {**CUP, field: value}
    check = validator(row)
    for index in range(3):
        assert check.validate(index, row).request.params[field] == value
    ((text, count),) = check.warnings.items()
    assert (field in text, repr(value) in text, count) == (True, True, 3)


def test_known_values_give_no_warning() -> None:
    """Every documented enum value passes in silence."""
    check = validator(["prompt", "aspect_ratio", "sampler", "image_format", "image_urls"])
    for ratio in ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "match_input_image"):
        row = {"prompt": "a", "aspect_ratio": ratio, "sampler": "res_2s", "image_format": "webp", "image_urls": [URL]}
        assert isinstance(check.validate(0, row), ValidRow)
    assert not check.warnings


def test_all_errors_of_a_row_come_together() -> None:
    """A row with several faults reports all of them at once."""
    row = {"prompt": None, "seed": 1.5, "steps": 0, "go_fast": "no", "image_urls": "ftp://x/y"}
    assert [error.column for error in errors(row)] == ["prompt", "image_urls", "seed", "steps", "go_fast"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)
FIELDS = ["prompt", "model", "seed", "image_urls", "steps", "cfg", "go_fast", "aspect_ratio", "negative_prompt", "x"]


@given(st.fixed_dictionaries(dict.fromkeys(FIELDS, anything)))
def test_no_cell_raises(row) -> None:
    """Whatever the cells hold, a row is either a request with a key, or a list of errors that can be printed."""
    outcome = validator(row, columns={"x": ["x"]}, id_column="x").validate(0, row)
    if isinstance(outcome, ValidRow):
        assert len(outcome.request.key) == 16
    else:
        assert outcome
        for error in outcome:
            str(error).encode()


def test_a_warning_shows_the_beginning_of_a_value() -> None:
    """A cell of many kilobytes in the wrong column does not fill the terminal."""
    rows = validator(["prompt", "aspect_ratio"])
    assert isinstance(rows.validate(0, {"prompt": "a cup", "aspect_ratio": "x" * 60_000}), ValidRow)
    assert [len(text) < 200 for text in rows.warnings] == [True]
