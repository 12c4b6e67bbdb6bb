"""Every rule of a manifest row: the request that it becomes, or its errors."""

import hashlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.request.manifest import ManifestOptions, plan_columns
from prefect_imagegen.core.request.scalars import number_of
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


# Prompts


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


# Seeds


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


# Types, ranges and enums


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


def test_match_input_image_needs_a_reference() -> None:
    """The ratio match_input_image without any reference is an error of the row."""
    row = {**CUP, "aspect_ratio": "match_input_image"}
    assert only_error(row).reason == "it needs at least one reference image"
    assert only_error({**row, "image_urls": [None, ""]}).column == "aspect_ratio"
    assert valid({**row, "image_urls": [URL]}).request.references


def test_all_errors_of_a_row_come_together() -> None:
    """A row with several faults reports all of them at once."""
    row = {"prompt": None, "seed": 1.5, "steps": 0, "go_fast": "no", "image_urls": "ftp://x/y"}
    assert [error.column for error in errors(row)] == ["prompt", "image_urls", "seed", "steps", "go_fast"]


# References


@pytest.mark.parametrize(
    ("cell", "urls"),
    [
        (None, []),
        ("", []),
        ([], []),
        (URL, [URL]),
        ([URL, None, "http://example.com/b"], [URL, "http://example.com/b"]),
        (f'["{URL}", "{URL}?v=2"]', [URL, f"{URL}?v=2"]),
        ("https://example.com/ü.png#frag", ["https://example.com/ü.png#frag"]),
        ("https://example.com:8443/a.png?size=3&signal=1", ["https://example.com:8443/a.png?size=3&signal=1"]),
    ],
)
def test_reference_cells_come_in_many_forms(cell, urls) -> None:
    """One URL, a list, JSON text of a list, or nothing: references keep their order and spelling."""
    references = valid({**CUP, "image_urls": cell}).request.references
    assert [reference.value for reference in references] == urls
    assert all(reference.kind == "url" and reference.uri == reference.value for reference in references)


def test_several_columns_feed_references_in_order() -> None:
    """References of several columns come in the order in which the columns were named; empty cells are left out."""
    row = {**CUP, "back": URL, "front": None, "side": [f"{URL}?1", f"{URL}?2"]}
    request = valid(row, columns={"image_urls": ["front", "side", "back"]}).request
    assert [reference.value for reference in request.references] == [f"{URL}?1", f"{URL}?2", URL]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("ftp://host/a.png", "ftp is not supported; a reference is an http(s), s3, gs, az or file URL, or a path"),
        ("data:image/png;base64,AAAA", "image data does not belong into a manifest"),
        ("https:///a.png", "the URL names no host"),
        ("s3://bucket/a.png?X-Amz-Signature=1", "credentials do not belong into a reference"),
        ("../../../a.png", "the path leads out of s3://bucket/manifests"),
        ("s3://bucket/a.png", "s3://bucket/a.png: it was not read"),
        ("https://[::1/a.png", "is no valid URL"),
        (7, "a reference must be a URL or a path"),
        ([URL, {"link": URL}], "the object has none of the fields url, src, uri and path (it has: link)"),
        ('["https://example.com/a.png"', "a reference list in text form must be JSON"),
        ("https://example.com/\ud800", "the text holds half a character (a lone surrogate)"),
    ],
)
def test_an_unusable_reference_is_an_error(cell, reason) -> None:
    """Whatever cannot be read, or is not to be read, is an error of its row."""
    row = {**CUP, "image_urls": cell}
    check = validator(row)
    check.base = "s3://bucket/manifests"
    (error,) = check.validate(0, row)
    assert error.column == "image_urls"
    assert reason in error.reason
    str(error).encode()


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Signature=SECRETPART&X-Amz-Expires=60",
        "x-goog-signature=SECRETPART",
        "sv=2024&sig=SECRETPART",
        "se=2026-01-01&sp=r&sv=SECRETPART",
        "Expires=1&Signature=SECRETPART&AWSAccessKeyId=AKIA",
        "v=1&token=SECRETPART",
    ],
)
def test_a_signed_reference_is_refused_with_its_remedy(query) -> None:
    """A signed URL would change the key at every signing: refused, with the remedy, and never shown."""
    error = only_error({**CUP, "image_urls": f"https://bucket.example.com/a.png?{query}"})
    assert "signed URL" in error.reason
    assert "--reference-identity content" in error.reason
    assert "SECRETPART" not in str(error)


def test_credentials_in_a_reference_are_refused_and_hidden() -> None:
    """A reference with a password is refused, and the password is not repeated."""
    error = only_error({**CUP, "image_urls": "https://me:hunter2@example.com/a.png"})
    assert "user name or password" in error.reason
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("value", [float(2**53), 1e16, 9.3e18])
def test_a_seed_that_lost_digits_is_refused(value: float) -> None:
    """A large seed or id that came as a float may have been another one: it is refused, and nothing is bought."""
    for row, options in (({**CUP, "seed": value}, {}), ({**CUP, "sku": value}, {"id_column": "sku"})):
        errors = validator(row, **options).validate(0, row)
        assert isinstance(errors, list)
        assert "has lost digits" in errors[0].reason
    assert isinstance(validator({**CUP, "seed": 1}).validate(0, {**CUP, "seed": float(2**53 - 1)}), ValidRow)


def facts(name: str) -> ReferenceFacts:
    return ReferenceFacts(hashlib.sha256(name.encode()).hexdigest(), len(name))


def test_references_in_buckets_and_files_are_known_by_content() -> None:
    """What is no web URL is known by its bytes: the same bytes under another name make the same request."""
    row = {**CUP, "image_urls": ["photos/a.png", "s3://other/b.png", "/data/c.png", URL]}
    check = validator(row, allow_local_references=True)
    check.base = "s3://bucket/manifests"
    uris = check.contents_needed(row)
    assert uris == ["s3://bucket/manifests/photos/a.png", "s3://other/b.png", "file:///data/c.png"]
    check.contents = {uri: facts(str(n)) for n, uri in enumerate(uris)}
    request = check.validate(0, row).request
    assert [reference.tag for reference in request.references] == [{"sha256": facts(n).sha256} for n in "012"] + [
        {"url": URL}
    ]
    check.base, moved = "file:///elsewhere", {**row, "image_urls": ["x/a.png", "b.png", "c.png", URL]}
    check.contents = {uri: facts(str(n)) for n, uri in enumerate(check.contents_needed(moved))}
    assert check.validate(0, moved).request.key == request.key
    check.contents = {uri: facts(f"{n} changed") for n, uri in enumerate(check.contents_needed(moved))}
    assert check.validate(0, moved).request.key != request.key


def test_web_references_by_content() -> None:
    """With `--reference-identity content` web references go by their bytes too, and a signature is no hindrance."""
    signed = f"{URL}?X-Amz-Signature=SECRETPART"
    row = {**CUP, "image_urls": [URL, signed]}
    check = validator(row, reference_identity="content")
    check.contents = {URL: facts("a"), signed: facts("b")}
    assert check.contents_needed(row) == [URL, signed]
    references = check.validate(0, row).request.references
    assert [reference.value for reference in references] == [facts("a").sha256, facts("b").sha256]
    assert [reference.uri for reference in references] == [URL, URL]  # no signature goes into a plan


def test_an_unreadable_reference_is_told_with_its_reason() -> None:
    """A reference that cannot be read makes its row invalid, and is named."""
    row = {**CUP, "image_urls": ["photos/a.png"]}
    check = validator(row)
    check.base, check.contents = "file:///m", {"file:///m/photos/a.png": "it does not exist"}
    (error,) = check.validate(3, row)
    assert (error.row, error.column) == (3, "image_urls")
    assert error.reason == "file:///m/photos/a.png: it does not exist"


def test_many_references_are_a_warning() -> None:
    """More references than other hosts take is a warning, not an error."""
    row = {**CUP, "image_urls": [f"{URL}?{n}" for n in range(5)]}
    check = validator(row)
    assert len(check.validate(0, row).request.references) == 5
    assert ["more than 4 references" in text for text in check.warnings] == [True]


# Models


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


# Ids


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
