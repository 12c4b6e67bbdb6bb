"""The table of models: each row is whole, and everything that depends on a model reads the row."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_imagegen.core.errors import RefusedError
from prefect_imagegen.core.policy.forecast import forecast
from prefect_imagegen.core.policy.history_lookup import claim_form, compare_calls
from prefect_imagegen.core.request.manifest import ManifestOptions, check_fields, plan_columns
from prefect_imagegen.core.request.models import (
    ASPECT_SIZES,
    DEFAULT_PRICE_USD,
    MODELS,
    FieldSpec,
    ModelSpec,
    ReferenceSpec,
    SizeSpec,
    models_with_weights,
    price_of,
)
from prefect_imagegen.core.request.profiles import PROFILES, models_of
from prefect_imagegen.core.request.request import GenerationRequest, Reference
from prefect_imagegen.core.request.validate import RowError, RowValidator, ValidRow
from prefect_imagegen.gateway.jobs.runner import DRAWN_SIDES, BadRequestError, checked_params

PHOTOS = [f"https://example.com/{number}.png" for number in range(9)]
PRO, EDIT, KLEIN = "flux-2-pro", "qwen-image-edit-plus", "flux-2-klein-9b"
every_model = pytest.mark.parametrize("slug", sorted(MODELS))
BY_SLUG = st.sampled_from(sorted(MODELS))


def validated(row: dict[str, Any], **options: Any) -> tuple[ValidRow | list[RowError], RowValidator]:
    settings = ManifestOptions(**options)
    validator = RowValidator(settings, plan_columns(list(row), settings))
    return validator.validate(0, row), validator


def request_of(slug: str, references: int = 0, **params: Any) -> GenerationRequest:
    row, _ = validated({"prompt": "a cup", "seed": 7, "model": slug, "image_urls": PHOTOS[:references], **params})
    assert isinstance(row, ValidRow), row
    return row.request


def refusals(slug: str, references: int = 0, **params: Any) -> list[str]:
    row, _ = validated({"prompt": "a cup", "seed": 7, "model": slug, "image_urls": PHOTOS[:references], **params})
    assert isinstance(row, list), row
    return [f"{error.column}: {error.reason}" for error in row]


def values_of(spec: ModelSpec, field: FieldSpec) -> st.SearchStrategy[Any]:
    """Values that the API's page allows, and that our own engines draw."""
    if field.name in (spec.size.width, spec.size.height):
        return st.integers(DRAWN_SIDES[0], DRAWN_SIDES[-1])
    ratios = sorted(ASPECT_SIZES) if field.name == spec.size.ratio else []
    if field.choices or ratios:
        return st.sampled_from(field.choices or ratios)
    if field.type == "string":
        return st.text(st.characters(codec="utf-8"))
    if field.type == "boolean":
        return st.booleans()
    low, high = field.minimum, field.maximum
    if field.type == "number":
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    return st.integers(None if low is None else int(low), None if high is None else int(high))


def wrong_values(field: FieldSpec) -> st.SearchStrategy[Any]:
    """Values of the wrong type, and numbers beyond the limits, that JSON can hold."""
    others: list[st.SearchStrategy[Any]] = [st.lists(st.integers(), max_size=2)]
    if field.type != "string":
        # A cell may hold a number or a truth value as text, and a cell of blanks is empty.
        others.append(st.text("xyz", min_size=1))
    if field.type != "boolean":
        others.append(st.booleans())
    if field.type == "integer":
        others.append(st.integers(-1000, 1000).map(lambda number: number + 0.5))
    if field.type in ("integer", "number") and field.minimum is not None:
        others.append(st.integers(max_value=int(field.minimum) - 1))
    if field.type in ("integer", "number") and field.maximum is not None:
        others.append(st.integers(min_value=int(field.maximum) + 1))
    return st.one_of(others)


def references_of(spec: ModelSpec) -> st.SearchStrategy[int]:
    most = spec.references.maximum
    return st.integers(max(1, spec.references.minimum), len(PHOTOS) if most is None else most)


@given(data=st.data(), slug=BY_SLUG)
def test_any_row_of_a_models_fields_is_valid(data: st.DataObject, slug: str) -> None:
    """Whatever a row says that the model's fields allow, it is a request, and the gateway takes its body."""
    spec = MODELS[slug]
    params = {name: data.draw(values_of(spec, field), name) for name, field in spec.fields.items()}
    request = request_of(slug, data.draw(references_of(spec)), **params)
    body = json.loads(json.dumps(request.body([reference.uri for reference in request.references])))
    applied = checked_params(slug, body)
    assert {name: applied[name] for name in spec.fields} == {name: request.params[name] for name in spec.fields}
    assert applied["image_urls"] == [reference.uri for reference in request.references]


@given(data=st.data(), slug=BY_SLUG)
def test_any_wrong_value_is_refused_for_one_reason(data: st.DataObject, slug: str) -> None:
    """A single value that a field cannot have is refused by validation and by the gateway, in the same words."""
    spec = MODELS[slug]
    name = data.draw(st.sampled_from(sorted(spec.fields)))
    value = data.draw(wrong_values(spec.fields[name]))
    (refusal,) = refusals(slug, max(1, spec.references.minimum), **{name: value})
    body = request_of(slug, max(1, spec.references.minimum)).body(PHOTOS[: max(1, spec.references.minimum)])
    with pytest.raises(BadRequestError) as error:
        checked_params(slug, body | {name: value})
    assert str(error.value) == refusal


@given(data=st.data(), slug=BY_SLUG, count=st.integers(0, len(PHOTOS)))
def test_the_number_of_references_is_refused_for_one_reason(data: st.DataObject, slug: str, count: int) -> None:
    """Too few or too many references for a model are refused by validation and by the gateway, in the same words."""
    spec = MODELS[slug].references
    reason = spec.check(count)
    assume(reason is not None)
    (refusal,) = refusals(slug, count)
    # A body cannot hold more references than there are fields.
    if count <= len(spec.fields) or spec.is_list:
        with pytest.raises(BadRequestError) as error:
            checked_params(slug, {"prompt": "a cup"} | spec.bind(PHOTOS[:count]))
        assert refusal.removeprefix("image_urls: ").startswith(str(error.value))


@every_model
def test_frozen_defaults_are_the_defaults(slug: str) -> None:
    """Every default is sent, and leaving it out or writing it out is the same request."""
    spec = MODELS[slug]
    defaults = {name: field.default for name, field in spec.fields.items() if field.default is not None}
    assert defaults == dict(spec.key_defaults)
    bare = request_of(slug, spec.references.minimum)
    assert {name: bare.params[name] for name in defaults} == defaults
    assert bare.key == request_of(slug, spec.references.minimum, **defaults).key


GOLDEN = [
    (PRO, 1, {}, "46097354d43eae2c329fc839538ec2b4", "flux-2-pro megapixels=1 references=1"),
    (
        PRO,
        2,
        {"width": 2048, "height": 1025},
        "917bac573447d788c5c29f2b2547442c",
        "flux-2-pro megapixels=3 references=2",
    ),
    (EDIT, 1, {}, "66501f823adfdf262daeb44b8a2e6cb2", "qwen-image-edit-plus go_fast=True references=1"),
    (
        EDIT,
        3,
        {"go_fast": False, "image_format": "png"},
        "e95a9e224e056a231c6006dcf02174ab",
        "qwen-image-edit-plus go_fast=False references=3",
    ),
    (KLEIN, 0, {}, "28e85878c568920b3df49083e3c59581", "flux-2-klein-9b steps=20 sampler=euler references=0"),
    (
        KLEIN,
        2,
        {"sampler": "res_2s"},
        "df4ba602f2e73c2ceaf7c169207de2e7",
        "flux-2-klein-9b steps=20 sampler=res_2s references=2",
    ),
]


@pytest.mark.parametrize(("slug", "references", "params", "key", "cost_class"), GOLDEN)
def test_keys_and_cost_classes_never_change(slug, references, params, key, cost_class) -> None:
    """Request keys and cost classes stay as they are: stores hold images by the one, and prices by the other."""
    request = request_of(slug, references, **params)
    assert (request.key.hex(), request.cost_class) == (key, cost_class)


def test_a_model_that_gets_a_row_keeps_the_keys_of_plain_rows() -> None:
    """A request that names no field of the model has the key that it had before the model was known."""
    for slug in (PRO, EDIT):
        plain = GenerationRequest(slug, {"prompt": "a cup", "seed": 7}, (Reference("url", PHOTOS[0], PHOTOS[0]),))
        assert request_of(slug, 1).key == plain.key


def test_cost_classes_of_workers_and_of_unlisted_models_stay() -> None:
    """Calls of GPU workers have classes of their own, and those of a model without a row are as they were."""
    params = {"prompt": "a", "seed": 7}
    mine = GenerationRequest(KLEIN, params | {"steps": 4.0, "sampler": "euler"}, profile="klein-distilled")
    assert mine.cost_class == "flux-2-klein-9b steps=4 sampler=euler references=0 profile=klein-distilled"
    other = GenerationRequest("some-model", params, (Reference("url", PHOTOS[0], PHOTOS[0]),))
    assert other.cost_class == "some-model steps=- sampler=- references=1"
    assert (other.body([]), other.body(PHOTOS[:1])) == (params, params | {"image_urls": PHOTOS[:1]})
    assert price_of(other.cost_class) == DEFAULT_PRICE_USD


def test_references_travel_in_the_models_own_fields() -> None:
    """The second reference is `image_2` where the model calls it so; the key tells references by one name for all."""
    request = request_of(EDIT, 2)
    assert request.body(PHOTOS[:2]) == {
        "prompt": "a cup",
        "seed": 7,
        "aspect_ratio": "match_input_image",
        "go_fast": True,
        "image_format": "webp",
        "quality": 90,
        "base64": False,
        "image": PHOTOS[0],
        "image_2": PHOTOS[1],
    }
    assert json.loads(request.canonical())["params"]["image_urls"] == [{"url": url} for url in PHOTOS[:2]]
    with pytest.raises(ValueError, match="4 references for 3 fields"):
        request.body(PHOTOS[:4])


@pytest.mark.parametrize(
    ("slug", "row", "reason"),
    [
        (PRO, {}, "flux-2-pro needs at least 1 reference image, and there are 0; fill a column image_urls, or name"),
        (PRO, {"image_urls": None}, "flux-2-pro needs at least 1 reference image, and there are 0"),
        (PRO, {"image_urls": []}, "flux-2-pro needs at least 1 reference image, and there are 0"),
        (EDIT, {"image_urls": PHOTOS[:4]}, "qwen-image-edit-plus takes at most 3 reference images, and there are 4"),
        (KLEIN, {"image_urls": "zzz"}, ":///zzz: it was not read"),
        (PRO, {"image_urls": "zzz"}, ":///zzz: it was not read"),
        (KLEIN, {"aspect_ratio": "match_input_image"}, "it needs at least one reference image"),
    ],
)
def test_references_that_do_not_fit_are_one_error(slug: str, row: dict[str, Any], reason: str) -> None:
    """Missing references, and more than the model has fields for, are errors of the row, each told once."""
    errors, _ = validated({"prompt": "a cup", "model": slug, **row})
    assert isinstance(errors, list)
    assert [error.reason.startswith(reason) for error in errors] == [True], errors


def test_many_references_are_warned_of_as_the_row_says() -> None:
    """The number that deserves a warning is the model's own."""
    for slug, count, warnings in ((KLEIN, 4, 0), (KLEIN, 5, 1), (PRO, 8, 0), (PRO, 9, 1)):
        _, validator = validated({"prompt": "a cup", "model": slug, "image_urls": PHOTOS[:count]})
        assert len(validator.warnings) == warnings, (slug, count)


@pytest.mark.parametrize(
    ("slug", "params", "extension"),
    [
        (PRO, {"output_format": "jpg"}, "jpg"),
        (PRO, {"image_format": "webp"}, "png"),
        (EDIT, {}, "webp"),
        (EDIT, {"image_format": "jpeg"}, "jpeg"),
    ],
)
def test_the_extension_is_the_format_that_the_model_is_asked_for(slug, params, extension) -> None:
    """A file is named by the model's own format field, and by its default."""
    assert request_of(slug, 1, **params).extension == extension


def test_a_field_of_another_model_is_no_field() -> None:
    """Columns are read for the models that rows can ask for, and a near name of another model's field is told."""
    columns = ["prompt", "width", "output_format", "image_2"]
    plan = plan_columns(columns, ManifestOptions(model=KLEIN))
    assert sorted(plan.sources) == ["prompt"]
    assert plan.near == {"output_format": "image_format", "image_2": "image_urls"}
    plan = plan_columns([*columns, "image_format"], ManifestOptions(model=PRO))
    assert sorted(plan.sources) == ["output_format", "prompt", "width"]
    assert plan.near == {"image_2": "image_urls"}
    assert plan_columns(["prompt", "image_format"], ManifestOptions(model=PRO)).near == {
        "image_format": "output_format"
    }
    assert "width" in plan_columns([*columns, "model"], ManifestOptions(model=KLEIN)).sources
    with pytest.raises(RefusedError, match="has no field 'aspect_ratio'"):
        check_fields(["aspect_ratio"], [PRO])


def test_price_and_forecast_see_the_size() -> None:
    """Where the price depends on the size, a larger image has its own class, and a higher price until measured."""
    small, large = (request_of(PRO, 1, width=side, height=side) for side in (1024, 2048))
    assert small.cost_class != large.cost_class
    assert price_of(large.cost_class) == 4 * price_of(small.cost_class) == 4 * 0.0725
    costs = [forecast({request.cost_class: 10}, {}, in_flight=1, per_minute=None) for request in (small, large)]
    assert costs[1].low_usd == pytest.approx(4 * costs[0].low_usd)
    assert costs[0].high_seconds == pytest.approx(2 * 10 * 24.37)
    assert price_of(request_of(EDIT, 1).cost_class) == DEFAULT_PRICE_USD


def test_workers_run_models_with_public_weights_only() -> None:
    """A row for a model that GPU workers cannot run is an error that says so; checkpoints serve klein only."""
    assert models_with_weights() == ["flux-2-klein-9b", "flux-2-klein-4b"] == models_of("/models/some-folder")
    assert models_of("black-forest-labs/FLUX.2-klein-4B") == ["flux-2-klein-4b"]
    profile = PROFILES["klein-distilled"]
    errors, _ = validated({"prompt": "a", "image_urls": PHOTOS[:1]}, model=PRO, profile=profile)
    assert isinstance(errors, list)
    assert [(error.column, error.value) for error in errors] == [("model", PRO)]
    assert "use the API, or another model" in errors[0].reason
    row, _ = validated({"prompt": "a"}, model=KLEIN, profile=profile)
    assert isinstance(row, ValidRow)


def bare(field: FieldSpec) -> Callable[[], ModelSpec]:
    return lambda: ModelSpec("bare", {"a": field}, {})


def changed(**changes: Any) -> Callable[[], ModelSpec]:
    return lambda: replace(MODELS[KLEIN], **changes)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (changed(format_field="output_format"), "it has no field output_format"),
        (changed(price_fields=("stepz",)), "it has no field stepz"),
        (changed(key_defaults={"zzz": 1}), "key default of no field: zzz"),
        (bare(FieldSpec("a", "integer", 0, minimum=1)), "the default of a: it must be at least 1"),
        (bare(FieldSpec("a", "string", minimum=1)), "limits of a, which is no number"),
        (bare(FieldSpec("b", "string")), "a is the name of b"),
        (changed(references=ReferenceSpec(("a", "b"))), "a list of references has one field"),
        (changed(size=SizeSpec(width="steps")), "width and height belong together"),
        (changed(is_priced_by_size=True), "priced by a size that no field names in pixels"),
        (changed(size=SizeSpec(pixels="dimensions")), "it has no field dimensions"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(make: Callable[[], ModelSpec], reason: str) -> None:
    """A row is checked when it is written, not when the first image of the model fails."""
    with pytest.raises(ValueError, match=r"^(flux-2-klein-9b|bare): ") as error:
        make()
    assert reason in str(error.value)


@given(st.lists(st.sampled_from(PHOTOS), min_size=1, max_size=3), st.lists(st.sampled_from(PHOTOS), max_size=3))
def test_a_call_with_other_references_is_never_taken_for_ours(sent: list[str], shown: list[str]) -> None:
    """With references in fields of their own: the same call is found, any other is unclear, and none is ruled out."""
    request = request_of(EDIT, 1)
    claimed = claim_form(request.body(sent))
    assert not any(url in json.dumps(claimed) for url in sent)
    assert claim_form(claimed) == claimed
    assert compare_calls(request.body(sent), claimed) == "same"
    assert compare_calls(request.body(shown), claimed) == ("same" if shown == sent else "unclear")
