"""Which column feeds which field, and what the user is told where that cannot be."""

import pytest

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.manifest import ManifestOptions, check_fields, parse_value, plan_columns
from prefect_imagegen.core.metadata import COLUMN_MEANINGS
from prefect_imagegen.core.models import MODELS


def refusal(call, *arguments) -> RefusedError:
    with pytest.raises(RefusedError) as found:
        call(*arguments)
    return found.value


def test_columns_named_like_fields_feed_them() -> None:
    """A column with the name of a field feeds that field without being mapped."""
    plan = plan_columns(["prompt", "seed", "steps", "image_urls", "note"], ManifestOptions())
    assert plan.sources == {name: (name,) for name in ("prompt", "seed", "steps", "image_urls")}
    assert plan.named == frozenset()


def test_a_mapped_column_wins() -> None:
    """A mapping overrides the column of the field's own name, and several columns may feed the references."""
    options = ManifestOptions(columns={"prompt": ["text"], "image_urls": ["front", "back"]}, values={"steps": 4})
    plan = plan_columns(["prompt", "text", "front", "back"], options)
    assert plan.sources == {"prompt": ("text",), "image_urls": ("front", "back")}
    assert plan.named == {"prompt", "image_urls", "steps"}


def test_other_columns_are_carried_under_their_names() -> None:
    """Further columns come through under their own names; what is ours already is not doubled."""
    plan = plan_columns(["prompt", "seed", "model", "Category", "steps", "ü 1"], ManifestOptions())
    assert plan.carried == {"Category": "Category", "steps": "steps", "ü 1": "ü 1"}


def test_a_mapped_prompt_column_is_carried() -> None:
    """A column that feeds the prompt under another name is carried under that name too."""
    plan = plan_columns(["Prompt", "Note"], ManifestOptions(columns={"prompt": ["Prompt"]}))
    assert plan.carried == {"Prompt": "Prompt", "Note": "Note"}


@pytest.mark.parametrize("column", sorted(set(COLUMN_MEANINGS) - {"prompt", "seed", "model"}))
def test_a_clash_gets_the_prefix(column) -> None:
    """A manifest column with the name of one of our metadata columns is carried with the prefix manifest_."""
    plan = plan_columns(["prompt", column], ManifestOptions())
    assert plan.carried == {column: f"manifest_{column}"}


def test_prefixed_names_never_meet() -> None:
    """Carried names stay distinct even where the manifest has prefixed columns of its own."""
    columns = ["prompt", "width", "manifest_width", "manifest_manifest_width", "id", "manifest_id"]
    carried = plan_columns(columns, ManifestOptions()).carried
    assert set(carried) == set(columns) - {"prompt"}
    assert len(set(carried.values())) == len(carried)
    assert not set(carried.values()) & set(COLUMN_MEANINGS)
    assert carried["manifest_width"] == "manifest_width"


def test_the_prompt_column_under_a_mapping_keeps_its_name_apart() -> None:
    """A column named prompt that does not feed the prompt is carried with the prefix."""
    plan = plan_columns(["prompt", "text"], ManifestOptions(columns={"prompt": ["text"]}))
    assert plan.carried == {"prompt": "manifest_prompt", "text": "text"}


@pytest.mark.parametrize("column", ["image_urls", "product_photo"])
def test_reference_columns_are_not_carried(column) -> None:
    """Reference addresses may be private, so their columns never reach the metadata."""
    options = ManifestOptions(columns={"image_urls": [column]})
    assert plan_columns(["prompt", column, "note"], options).carried == {"note": "note"}


@pytest.mark.parametrize(
    ("columns", "options", "culprit", "remedy"),
    [
        (["promt"], ManifestOptions(), "no column 'prompt'; it has: promt", "--column prompt=promt"),
        ([], ManifestOptions(), "it has: none", "--column prompt=COLUMN"),
        (["Prompt"], ManifestOptions(columns={"prompt": ["prompt"]}), "'prompt'; it has: Prompt", "mean 'Prompt'"),
        (["prompt", "b"], ManifestOptions(columns={"seed": ["zzz"]}), "no column 'zzz'", "Correct --column"),
        (["prompt", "Name"], ManifestOptions(id_column="name"), "no column 'name'", "Did you mean 'Name'?"),
        (["prompt"], ManifestOptions(columns={"image_urls": ["prompt", "photo"]}), "no column 'photo'", "--column"),
        (["prompt", "a", "b"], ManifestOptions(columns={"seed": ["a", "b"]}), "'seed'", "image_urls takes several"),
        (["prompt", "x", "x"], ManifestOptions(), "several columns named 'x'", "Rename"),
    ],
)
def test_unusable_columns_are_refused(columns, options, culprit, remedy) -> None:
    """A column that is missing, doubled or mapped twice is refused with its name and a way out."""
    error = refusal(plan_columns, columns, options)
    assert error.kind == "manifest_schema"
    assert culprit in error.message
    assert remedy in error.remedy


def test_a_signed_value_is_refused() -> None:
    """Values of a run are stored with it, so a signature among them is refused, and not repeated."""
    for value in ("https://host/a.png?X-Amz-Signature=SECRETPART", ["https://host/a", "https://host/b?sig=SECRETPART"]):
        error = refusal(plan_columns, ["prompt"], ManifestOptions(values={"image_urls": value}))
        assert error.kind == "signed_value"
        assert "SECRETPART" not in str(error)
    assert plan_columns(["prompt"], ManifestOptions(values={"image_urls": "https://host/a?size=2"})).sources


def test_a_prompt_for_all_rows_needs_no_column() -> None:
    """A manifest without prompts will do where one prompt is set for the whole run."""
    assert plan_columns(["photo"], ManifestOptions(values={"prompt": "a cup"})).sources == {}


def test_an_unknown_field_is_refused_where_all_models_are_known() -> None:
    """A field that no model of the manifest knows is an error that names the nearest one."""
    error = refusal(check_fields, ["step"], ["flux-2-klein-9b", "flux-2-klein-4b"])
    assert error.kind == "unknown_field"
    assert "flux-2-klein-4b, flux-2-klein-9b has no field 'step'" in error.message
    assert error.remedy == "Did you mean 'steps'?"
    assert "Correct --column or --set" in refusal(check_fields, ["zzzzzz"], ["flux-2-klein-9b"]).remedy


@pytest.mark.parametrize("models", [["flux-2-klein-9b", "qwen-image"], ["qwen-image"], []])
def test_a_field_may_be_unknown_to_us(models) -> None:
    """Where any model has no ModelSpec its fields are not ours to judge; where all have one, they are."""
    assert check_fields(["guidance"], models) is None
    known = [model for model in models if model in MODELS] or ["flux-2-klein-9b"]
    assert refusal(check_fields, ["guidance"], known).kind == "unknown_field"
    assert check_fields(["prompt", "seed", "model", "image_urls", "steps"], known) is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "4", 4),
        ("cfg", "3.5", 3.5),
        ("go_fast", "false", False),
        ("seed", "-1", -1),
        ("prompt", "42", "42"),
        ("negative_prompt", "", ""),
        ("aspect_ratio", "16:9", "16:9"),
        ("guidance", "4.5", 4.5),
        ("output_format", "jpg", "jpg"),
        ("image_urls", '["https://example.com/a.png"]', ["https://example.com/a.png"]),
        ("image_urls", "https://example.com/a.png", "https://example.com/a.png"),
    ],
)
def test_a_set_value_has_the_type_of_its_field(name, text, value) -> None:
    """The text of --set becomes the type that the field has; a field unknown to us takes JSON, else text."""
    found = parse_value(name, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("name", "text"), [("steps", "many"), ("go_fast", "yes"), ("seed", "x"), ("cfg", "")])
def test_a_set_value_of_the_wrong_type_is_refused(name, text) -> None:
    """A --set whose text cannot be the field's type is refused with field, text and type."""
    error = refusal(parse_value, name, text)
    assert error.kind == "bad_value"
    assert f"--set {name}={text}" in error.message
    assert "type" in error.message
