"""Which column feeds which field, and the refusals where none can."""

import pyarrow as pa
import pytest

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.metadata import COLUMN_MEANINGS
from prefect_imagegen.core.request.manifest import ManifestOptions, check_fields, parse_value, plan_columns
from prefect_imagegen.core.request.manifest_types import columns_of, joined_type
from prefect_imagegen.core.request.models import MODELS


def refusal(call, *arguments) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    return caught.value


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
    parsed = parse_value(name, text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(("name", "text"), [("steps", "many"), ("go_fast", "yes"), ("seed", "x"), ("cfg", "")])
def test_a_set_value_of_the_wrong_type_is_refused(name, text) -> None:
    """A --set whose text cannot be the field's type is refused with field, text and type."""
    error = refusal(parse_value, name, text)
    assert error.kind == "bad_value"
    assert f"--set {name}={text}" in error.message
    assert "type" in error.message


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("image_url", "image_urls"),
        (" image_urls", "image_urls"),
        ("Image URLs", "image_urls"),
        ("imageUrls", "image_urls"),
        ("Images", "image_urls"),
        ("reference_image", "image_urls"),
        ("Seed", "seed"),
        ("seed ", "seed"),
        ("aspectRatio", "aspect_ratio"),
        ("Aspect Ratio", "aspect_ratio"),
        ("negativePrompt", "negative_prompt"),
        ("step", "steps"),
        ("num_inference_steps", "steps"),
        ("guidance_scale", "cfg"),
        ("output-format", "image_format"),
        ("Model", "model"),
    ],
)
def test_a_name_that_is_nearly_a_field_is_noticed(column, name) -> None:
    """A column that feeds nothing and is named nearly like a field is known with that field."""
    assert plan_columns(["prompt", column], ManifestOptions()).near == {column: name}


@pytest.mark.parametrize("column", ["note", "sku", "id", "title", "price", "width", "size", "product", "url", "ü 1"])
def test_other_names_are_nobodys_concern(column) -> None:
    """A column that is named like no field gives no warning."""
    assert not plan_columns(["prompt", column], ManifestOptions()).near


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (["prompt", "Seed"], ManifestOptions(columns={"seed": ["Seed"]})),
        (["prompt", "Seed", "seed"], ManifestOptions()),
        (["prompt", "Seed"], ManifestOptions(values={"seed": 7})),
        (["prompt", "Seed"], ManifestOptions(id_column="Seed")),
        (["prompt", "Prompt"], ManifestOptions()),
        (["prompt", "Seed"], ManifestOptions(columns={"cfg": ["Seed"]})),
    ],
)
def test_a_mapping_or_a_fed_field_silences_the_near_name(columns, options) -> None:
    """What is mapped, or looks like a field that has its value already, is not noticed."""
    assert not plan_columns(columns, options).near


@pytest.mark.parametrize(
    ("columns", "mapping"),
    [
        (["id", "Prompt "], "--column 'prompt=Prompt '"),
        (["id", "prompts", "seed"], "--column prompt=prompts"),
        (["name", "caption"], "--column prompt=caption"),
        (["id;prompt;seed"], "--column prompt=COLUMN"),
        (["sku", "price"], "--column prompt=COLUMN"),
        (["text", "caption"], "--column prompt=COLUMN"),
        (["<!DOCTYPE html><html>"], "--column prompt=COLUMN"),
    ],
)
def test_a_remedy_names_plausible_columns_only(columns, mapping) -> None:
    """Where no column is named prompt, one is proposed only if its name says that it holds the prompts."""
    assert refusal(plan_columns, columns, ManifestOptions()).remedy.endswith(mapping)


def test_columns_of_bytes_are_left_out_unless_asked() -> None:
    """A column of bytes is not carried, and known as left out; --carry takes it along, a mapping reads it."""
    columns, binary = ["prompt", "image", "note"], {"image"}
    plan = plan_columns(columns, ManifestOptions(), binary)
    assert (plan.carried, plan.left_out, "image" in plan.needed) == ({"note": "note"}, ("image",), False)
    plan = plan_columns(columns, ManifestOptions(carry=["image"]), binary)
    assert (plan.carried, plan.left_out) == ({"image": "image", "note": "note"}, ())
    plan = plan_columns(columns, ManifestOptions(columns={"negative_prompt": ["image"]}), binary)
    assert (plan.carried, plan.left_out, "image" in plan.needed) == ({"note": "note"}, (), True)


def test_what_cannot_be_carried_is_refused() -> None:
    """A column to carry must exist, and never be one of references."""
    error = refusal(plan_columns, ["prompt", "Image"], ManifestOptions(carry=["image"]))
    assert ("no column 'image'" in error.message, error.remedy) == (True, "Did you mean 'Image'?")
    error = refusal(plan_columns, ["prompt", "image_urls"], ManifestOptions(carry=["image_urls"]))
    assert "never carried" in error.message
    assert "--carry" in error.remedy


def test_a_long_header_is_not_repeated_whole() -> None:
    """A refusal names the first columns of a wide table, and how many more there are."""
    message = refusal(plan_columns, [f"c{n}" for n in range(500)], ManifestOptions()).message
    assert "c29 and 470 more" in message


# Types of several files


TEXT, BYTES = pa.string(), pa.binary()


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (pa.null(), TEXT, TEXT),
        (pa.null(), pa.list_(TEXT), pa.list_(TEXT)),
        (pa.int8(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float64(), pa.float64()),
        (TEXT, pa.large_string(), pa.large_string()),
        (TEXT, pa.string_view(), pa.large_string()),
        (pa.dictionary(pa.int32(), TEXT), TEXT, TEXT),
        (pa.decimal128(38, 0), pa.int64(), pa.decimal128(38, 0)),
        (pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.struct([("a", TEXT)]), pa.struct([("a", TEXT), ("b", TEXT)]), pa.struct([("a", TEXT), ("b", TEXT)])),
        (TEXT, pa.int64(), None),
        (TEXT, BYTES, None),
        (pa.bool_(), pa.int64(), None),
        (pa.timestamp("us", tz="UTC"), pa.timestamp("us"), None),
    ],
)
def test_types_are_joined_without_loss_of_meaning(first, second, joined) -> None:
    """Two files' types are joined in the wider one, in either order, or not at all."""
    assert joined_type(first, second) == joined
    assert joined_type(second, first) == joined


def test_files_that_cannot_be_joined_are_named() -> None:
    """Where a column has types that do not go together, files, column and types are said; fed columns may differ."""
    schemas = [
        ("a.parquet", pa.schema([("prompt", TEXT), ("n", pa.null()), ("seed", TEXT)])),
        ("b.parquet", pa.schema([("n", pa.int64()), ("seed", pa.int64())])),
        ("c.parquet", pa.schema([("n", TEXT)])),
    ]
    error = refusal(columns_of, schemas, ManifestOptions())
    for words in ("c.parquet", "b.parquet", "'n'", "int64", "string"):
        assert words in error.message
    plan, schema = columns_of(schemas[:2], ManifestOptions())
    assert (plan.carried, schema.field("n").type) == ({"n": "n"}, pa.int64())


@pytest.mark.parametrize(
    "kind",
    [
        BYTES,
        pa.large_binary(),
        pa.binary_view(),
        pa.list_(BYTES),
        pa.dictionary(pa.int32(), BYTES),
        pa.struct([("bytes", BYTES), ("path", TEXT)]),
        pa.map_(TEXT, BYTES),
    ],
    ids=str,
)
def test_bytes_are_found_at_any_depth(kind) -> None:
    """A column whose values hold bytes, as pictures in data sets do, is left out; fixed ones, as UUIDs, are not."""
    plan, _ = columns_of([("m", pa.schema([("prompt", TEXT), ("x", kind), ("u", pa.binary(16))]))], ManifestOptions())
    assert (plan.left_out, plan.carried) == (("x",), {"u": "u"})


@pytest.mark.parametrize("kind", [pa.struct([]), pa.list_(pa.struct([])), pa.month_day_nano_interval()], ids=str)
def test_what_the_metadata_cannot_hold_is_refused_in_the_plan(kind) -> None:
    """A carried column of a type that Parquet does not have is refused with its name before anything is spent."""
    error = refusal(columns_of, [("m", pa.schema([("prompt", TEXT), ("x", kind)]))], ManifestOptions())
    assert (error.kind, "'x'" in error.message, "Leave the column out" in error.remedy) == (
        "manifest_schema",
        True,
        True,
    )


def test_doubled_names_are_said_with_their_file() -> None:
    """A file with two columns of one name is refused, and named."""
    doubled = pa.schema([("prompt", TEXT), ("x", TEXT), ("x", TEXT)])
    error = refusal(columns_of, [("a", pa.schema([("prompt", TEXT)])), ("b.csv", doubled)], ManifestOptions())
    assert "b.csv has several columns named 'x'" in error.message
