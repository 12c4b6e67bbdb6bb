"""The identity of a request. Keys and seeds pinned here are pinned for ever: stores in the field are named by them."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_imagegen.core.request.manifest import ManifestOptions, plan_columns
from prefect_imagegen.core.request.models import MAX_SEED, MODELS
from prefect_imagegen.core.request.request import GenerationRequest, Reference, canonical_json, derive_seed
from prefect_imagegen.core.request.validate import RowValidator, ValidRow

A, B = "https://example.com/a.png", "https://example.com/b.png"
CUP = "a red cup"
DEFAULTS = dict(MODELS["flux-2-klein-9b"].key_defaults)


def request_of(row, **options) -> GenerationRequest:
    """The request that a manifest row becomes."""
    chosen = ManifestOptions(**options)
    outcome = RowValidator(chosen, plan_columns(list(row), chosen)).validate(0, row)
    assert isinstance(outcome, ValidRow), outcome
    return outcome.request


def reference(url: str) -> Reference:
    return Reference("url", url, url)


GOLDEN = [
    pytest.param({"prompt": CUP}, {}, 1471032756, "cb13ed12cb4b800538bf6139a0220289", id="9b, all defaults"),
    pytest.param({"prompt": CUP, "seed": 7}, {}, 7, "e718e6a24c2d754c12d36ce790e96ce7", id="9b, explicit seed"),
    pytest.param(
        {"prompt": CUP, "seed": 7, "model": "flux-2-klein-4b"}, {}, 7, "764eacf4b94b67a27de358c6ce84dfb0", id="4b"
    ),
    pytest.param(
        {"prompt": CUP, "seed": 7, "steps": 28, "cfg": 3.5}, {}, 7, "919b7a3ef2432e376bdf41ddf3c2b9ae", id="fraction"
    ),
    pytest.param({"prompt": CUP, "seed": 7, "cfg": 4.0}, {}, 7, "0adb681f05c4796055bd7fabb20e84bb", id="float 4.0"),
    pytest.param({"prompt": CUP, "seed": 7, "cfg": 4}, {}, 7, "0adb681f05c4796055bd7fabb20e84bb", id="integer 4"),
    pytest.param(
        {"prompt": CUP, "seed": 7, "negative_prompt": ""}, {}, 7, "cc52e1e62919a3832979f08197b9e6ab", id="empty text"
    ),
    pytest.param(
        {"prompt": "Käse 🧀 \u202b\u0634\u0627\u064a\u202c 茶", "seed": 0},
        {},
        0,
        "f7f3d7526a21d25a7a79ecf8d0ba403b",
        id="unicode",
    ),
    pytest.param(
        {"prompt": 'line\nbreak "quoted" \\ tab\t', "seed": MAX_SEED},
        {},
        MAX_SEED,
        "3451164618fdd8ba53f890fbc382e76b",
        id="escapes",
    ),
    pytest.param(
        {"prompt": "blend them", "seed": 7, "image_urls": [A, B]},
        {},
        7,
        "066a50f73dcf57c10d87816da85b4dff",
        id="two references",
    ),
    pytest.param(
        {"prompt": "blend them", "seed": 7, "image_urls": [B, A]},
        {},
        7,
        "b291a023316ae9d6cd830b4f9f3b1215",
        id="two references, the other way round",
    ),
    pytest.param(
        {"prompt": "edit it", "image_urls": [A], "aspect_ratio": "match_input_image"},
        {},
        904788837,
        "a127c3e6bfecc504e9685c7c84b57777",
        id="seed derived from prompt and reference",
    ),
    pytest.param(
        {
            "prompt": CUP,
            "seed": 7,
            "image_format": "jpeg",
            "quality": 75,
            "go_fast": False,
            "sampler": "res_2s",
            "aspect_ratio": "16:9",
        },
        {},
        7,
        "a2cd78a424149ba6e34956d78eeaf408",
        id="many parameters",
    ),
    pytest.param(
        {"prompt": CUP, "seed": 7, "model": "qwen-image", "guidance": 4.5, "base64": False},
        {"columns": {"guidance": ["guidance"], "base64": ["base64"]}},
        7,
        "07684ee850f7f5892eca57b68326c015",
        id="pass-through model with fields",
    ),
    pytest.param(
        {"prompt": CUP, "model": "qwen-image"}, {}, 1471032756, "051d4c7b0338e8ea25db2d7f24205ebc", id="pass-through"
    ),
    pytest.param(
        {"prompt": CUP, "name": "cup-001"},
        {"id_column": "name"},
        332295533,
        "2f2c29c70b93b167f98baca134419933",
        id="seed derived from an id",
    ),
    pytest.param(
        {"prompt": CUP, "name": 42},
        {"id_column": "name"},
        1018646191,
        "06fbeef1b480ec373a95373636789fda",
        id="seed derived from a numeric id",
    ),
]


@pytest.mark.parametrize(("row", "options", "seed", "key"), GOLDEN)
def test_keys_and_seeds_never_change(row, options, seed, key) -> None:
    """A request key or derived seed never changes: a store in the field would buy all of its images again."""
    request = request_of(row, **options)
    assert (request.seed, request.key.hex()) == (seed, key)


def test_the_canonical_form_is_spelled_out() -> None:
    """The key is the first 16 bytes of the SHA-256 of compact, key-sorted UTF-8 JSON with defaults left out."""
    request = request_of({"prompt": "blend ä", "seed": 7, "cfg": 5.0, "steps": 21.0, "image_urls": [B, A]})
    form = (
        '{"model":"flux-2-klein-9b","params":{"image_urls":[{"url":"https://example.com/b.png"},'
        '{"url":"https://example.com/a.png"}],"prompt":"blend ä","seed":7,"steps":21},"profile":null,"v":1,'
        '"weights":null}'
    ).encode()
    assert request.canonical() == form
    assert request.key == hashlib.sha256(form).digest()[:16]


@pytest.mark.parametrize("model", ["flux-2-klein-4b", "flux-2-klein-9b"])
def test_explicit_defaults_give_the_key_of_none(model) -> None:
    """Values equal to the model's defaults leave the key as it is, so that defaults may be written out or not."""
    bare = request_of({"prompt": CUP, "seed": 7, "model": model})
    spelled = request_of({"prompt": CUP, "seed": 7, "model": model, **DEFAULTS, "cfg": 5.0, "quality": 90.0})
    assert bare.key == spelled.key


@pytest.mark.parametrize("model", ["flux-2-klein-4b", "flux-2-klein-9b"])
def test_key_defaults_are_frozen(model) -> None:
    """The frozen defaults of a model never change, and every one of them is sent unless the row says otherwise."""
    assert dict(MODELS[model].key_defaults) == {
        "negative_prompt": "low quality, blurry, less details",
        "cfg": 5,
        "sampler": "euler",
        "steps": 20,
        "aspect_ratio": "1:1",
        "go_fast": True,
        "image_format": "png",
        "quality": 90,
    }
    assert request_of({"prompt": CUP, "seed": 7, "model": model}).body([]) == {
        "prompt": CUP,
        "seed": 7,
        **MODELS[model].key_defaults,
        "image_urls": [],
    }


def test_a_reference_by_content_differs_from_one_by_url() -> None:
    """A reference enters the key by its tagged identity, never by where it was fetched from."""
    params = {"prompt": CUP, "seed": 7}
    by_url = GenerationRequest("flux-2-klein-9b", params, (Reference("url", A, A),))
    by_hash = GenerationRequest("flux-2-klein-9b", params, (Reference("sha256", "ab" * 32, A),))
    elsewhere = GenerationRequest("flux-2-klein-9b", params, (Reference("sha256", "ab" * 32, B),))
    assert by_url.key != by_hash.key
    assert by_hash.key == elsewhere.key


def test_profile_and_weights_enter_the_key() -> None:
    """Another engine profile or other weights make another image, so another key."""
    params = {"prompt": CUP, "seed": 7}
    keys = {
        GenerationRequest("m", params, profile=profile, weights=weights).key
        for profile in (None, "fast")
        for weights in (None, "w1")
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("image_format", "extension"),
    [("png", "png"), ("JPEG", "jpeg"), (None, "png"), ("../../x", "bin"), ("a/b", "bin"), ("ä", "bin"), (5, "5")],
)
def test_the_extension_stays_inside_the_store(image_format, extension) -> None:
    """Whatever a manifest asks for as image format, the image's name holds no path."""
    request = GenerationRequest("some-model", {"prompt": CUP, "seed": 7, "image_format": image_format})
    assert request.extension == extension


def test_keys_do_not_depend_on_the_process() -> None:
    """Another process, with another hash seed, computes the same key."""
    code = (
        "from prefect_imagegen.core.request.request import GenerationRequest as R;"
        "print(R('flux-2-klein-9b', {'steps': 28, 'cfg': 3.5, 'seed': 7, 'prompt': 'a red cup'}).key.hex())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "77"}, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "919b7a3ef2432e376bdf41ddf3c2b9ae"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = texts | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
params = st.dictionaries(st.text("abcdefgh_", min_size=1, max_size=8), scalars, max_size=6)


@given(params, st.randoms())
def test_the_order_of_parameters_does_not_matter(values, random) -> None:
    """The key does not depend on the order in which parameters were written."""
    shuffled = list(values.items())
    random.shuffle(shuffled)
    assert GenerationRequest("m", values).key == GenerationRequest("m", dict(shuffled)).key


@given(st.integers(-(2**53), 2**53), st.sampled_from(["m", "flux-2-klein-9b"]))
def test_an_integral_float_is_its_integer(value, model) -> None:
    """5.0 and 5 are one number, so one key and one body."""
    whole = GenerationRequest(model, {"prompt": CUP, "seed": 1, "cfg": value})
    floating = GenerationRequest(model, {"prompt": CUP, "seed": 1, "cfg": float(value)})
    assert whole.key == floating.key
    assert json.dumps(whole.body([])) == json.dumps(floating.body([]))


@given(params, params)
def test_different_parameters_have_different_keys(first, second) -> None:
    """Requests that differ in any parameter have different keys; true is not 1."""

    def typed(values):
        return {name: (isinstance(value, bool), isinstance(value, str), value) for name, value in values.items()}

    assume(typed(first) != typed(second))
    assert GenerationRequest("m", first).key != GenerationRequest("m", second).key


@given(st.sampled_from(sorted(DEFAULTS)), st.data())
def test_a_value_other_than_the_default_changes_the_key(name, data) -> None:
    """A field that differs from its default always enters the key."""
    default = DEFAULTS[name]
    kind = {bool: st.booleans(), int: st.integers(1, 100), str: texts}[type(default)]
    value = data.draw(kind.filter(lambda candidate: candidate != default))
    bare = GenerationRequest("flux-2-klein-9b", {"prompt": CUP, "seed": 7, **DEFAULTS})
    assert GenerationRequest("flux-2-klein-9b", {**bare.params, name: value}).key != bare.key


@pytest.mark.parametrize(("name", "value"), [("go_fast", 1), ("steps", True), ("cfg", "5"), ("image_format", "PNG")])
def test_a_value_of_another_type_is_no_default(name, value) -> None:
    """What only resembles the default, as 1 resembles true, enters the key."""
    default = 1 if value is True else DEFAULTS[name]
    bare = GenerationRequest("flux-2-klein-9b", {"prompt": CUP, "seed": 7, **DEFAULTS, name: default})
    assert GenerationRequest("flux-2-klein-9b", {**bare.params, name: value}).key != bare.key


@given(texts, st.lists(st.sampled_from([A, B, "https://example.com/c.png"]), max_size=3))
def test_a_derived_seed_is_in_range_and_stable(prompt, urls) -> None:
    """A derived seed lies in 0..2^31-1 and depends on prompt and references alone."""
    references = tuple(map(reference, urls))
    seed = derive_seed(row_id=None, prompt=prompt, references=references)
    assert 0 <= seed <= MAX_SEED
    assert seed == derive_seed(row_id=None, prompt=prompt, references=list(references))


def test_a_derived_seed_follows_identity_only() -> None:
    """Prompt, id and the order of references change a derived seed; other parameters and the model never do."""
    seeds = [
        request_of({"prompt": CUP}).seed,
        request_of({"prompt": "a blue cup"}).seed,
        request_of({"prompt": CUP, "image_urls": [A, B]}).seed,
        request_of({"prompt": CUP, "image_urls": [B, A]}).seed,
        request_of({"prompt": CUP, "name": "x"}, id_column="name").seed,
        request_of({"prompt": CUP, "name": "y"}, id_column="name").seed,
    ]
    assert len(set(seeds)) == 6
    assert request_of({"prompt": CUP, "steps": 50, "cfg": 2, "model": "flux-2-klein-4b"}).seed == seeds[0]
    assert request_of({"prompt": "other", "name": "x"}, id_column="name").seed == seeds[4]


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), ("\ud800", UnicodeEncodeError)])
def test_what_has_no_canonical_form_is_refused(value, error) -> None:
    """What JSON or UTF-8 cannot hold never gets a key."""
    with pytest.raises(error):
        canonical_json({"x": value})
