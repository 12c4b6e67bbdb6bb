"""Rows validated, and their errors."""

from prefect_imagegen.core.request.manifest import ManifestOptions, plan_columns
from prefect_imagegen.core.request.validate import RowError, RowValidator, ValidRow

NAN = float("nan")
URL = "https://example.com/a.png"
CUP = {"prompt": "a red cup"}


def validator(names, /, **options) -> RowValidator:
    chosen = ManifestOptions(**options)
    return RowValidator(chosen, plan_columns(list(names), chosen))


def valid(row, **options) -> ValidRow:
    outcome = validator(row, **options).validate(0, row)
    assert isinstance(outcome, ValidRow), outcome
    return outcome


def errors(row, **options) -> list[RowError]:
    outcome = validator(row, **options).validate(3, row)
    assert isinstance(outcome, list), outcome
    assert all(error.row == 3 for error in outcome)
    return outcome


def only_error(row, **options) -> RowError:
    (error,) = errors(row, **options)
    return error
