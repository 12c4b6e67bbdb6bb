"""Models of rows: mixed, described, or passed through."""

import pytest

from tests.core.request.validate.conftest import CUP, only_error, valid, validator


def test_models_may_be_mixed() -> None:
    """A model column mixes models; an empty cell means the run's model; every model seen is counted."""
    check = validator(["prompt", "model", "steps"], model="flux-2-klein-4b")
    rows = [{"prompt": "a", "model": model, "steps": 5} for model in (None, "flux-2-klein-9b", "qwen-image", None)]
    requests = [check.validate(index, row).request for index, row in enumerate(rows)]
    assert [request.model for request in requests] == [
        "flux-2-klein-4b",
        "flux-2-klein-9b",
        "qwen-image",
        "flux-2-klein-4b",
    ]
    assert check.models == {"flux-2-klein-4b": 2, "flux-2-klein-9b": 1, "qwen-image": 1}


@pytest.mark.parametrize("model", ["../klein", "a//b", "a/../b", "/a", "a b", 5, "-x", "klein?x=1", "klein\n"])
def test_a_model_is_a_slug(model) -> None:
    """A model that is no plain slug is refused: it becomes part of a URL."""
    assert "a model is a slug" in only_error({**CUP, "model": model}).reason


def test_a_pass_through_model_takes_named_fields_only() -> None:
    """A model without ModelSpec gets prompt, seed and what --column and --set name; nothing by coincidence of names."""
    row = {**CUP, "seed": 7, "model": "qwen-image", "steps": 9, "guidance": 4.5, "note": "x"}
    assert dict(valid(row).request.params) == {"prompt": "a red cup", "seed": 7}
    named = valid(row, columns={"guidance": ["guidance"], "steps": ["steps"]}, values={"base64": False}).request
    assert dict(named.params) == {"prompt": "a red cup", "seed": 7, "guidance": 4.5, "steps": 9, "base64": False}


def test_a_pass_through_model_knows_no_limits() -> None:
    """A known field's limits are not those of another model; null leaves a field out."""
    row = {**CUP, "model": "other", "steps": 500, "strength": None}
    params = valid(row, columns={"steps": ["steps"], "strength": ["strength"]}).request.params
    assert (params["steps"], "strength" in params) == (500, False)


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"x", float("inf"), "\ud800"])
def test_a_pass_through_value_is_a_json_scalar(value) -> None:
    """A pass-through value that is no JSON scalar is an error of its row."""
    assert only_error({**CUP, "model": "other", "x": value}, columns={"x": ["x"]}).column == "x"


def test_a_mapped_field_of_one_model_does_not_reach_another() -> None:
    """A named field that the row's known model lacks is not sent to it."""
    row = {**CUP, "guidance": 4.5}
    assert "guidance" not in valid(row, columns={"guidance": ["guidance"]}).request.params
