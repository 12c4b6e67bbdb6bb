"""What is sent to vLLM-Omni 0.30.0 and SGLang 0.5.23: it fits their request models, and falls into none of their traps.

The field lists in tests/data/openai_images were read out of the wheels by `extract_image_fields.py`.
"""

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefect_imagegen.core.base64_text import decode_base64
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.images.image import decode
from prefect_imagegen.core.request.models import ASPECT_SIZES, MATCH_INPUT_IMAGE, MODELS
from prefect_imagegen.core.request.profiles import PROFILES
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.ports import Delivery
from prefect_imagegen.providers.pool.openai_images import OpenAIImages, fields_of
from tests.support.builders.images import data_url, encoded

ENGINES = ("vllm_omni", "sglang")
SCHEMAS = {
    name: json.loads((Path(__file__).parents[1] / "data" / "openai_images" / f"{name}.json").read_text())
    for name in ENGINES
}
DEFAULTS = {name: spec.default for name, spec in MODELS["flux-2-klein-9b"].fields.items()}
Engine = Callable[..., Any]


def request(profile: str = "klein-distilled", **params: Any) -> GenerationRequest:
    """A request with the parameters that the profile makes of these."""
    asked = {"prompt": "a red cup", "seed": 7, **DEFAULTS, **params}
    return GenerationRequest("flux-2-klein-9b", PROFILES[profile].applied(asked), profile=profile)


def photo(width: int, height: int) -> str:
    return data_url(encoded(Image.new("RGB", (width, height), "red"), "JPEG"), "jpeg")


def make(engine: Any, asked: GenerationRequest, *references: str) -> Delivery:
    """One call to a server."""

    async def call() -> Delivery:
        client = OpenAIImages(engine.url, None, deadline=30)
        try:
            await client.health()
            return await client.collect(await client.submit(asked, references))
        finally:
            await client.aclose()

    return asyncio.run(call())


def test_the_field_lists_name_their_versions() -> None:
    """The data says of which releases it is."""
    assert {name: schema["version"] for name, schema in SCHEMAS.items()} == {"vllm_omni": "0.30.0", "sglang": "0.5.23"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("call", ["generations", "edits"])
def test_every_body_fits_the_real_request_models(
    engine: str, call: str, misfits: Callable[[Mapping[str, Any], Mapping[str, Any]], Iterator[str]]
) -> None:
    """Whatever the parameters, each field is known to both engines, of their type and within their bounds."""
    ratios = [*ASPECT_SIZES, MATCH_INPUT_IMAGE]
    changes = [{"cfg": 20, "steps": 100}, {"cfg": 1, "steps": 1}, {"negative_prompt": "x"}, {"seed": 2**63 - 1}]
    for profile, ratio, image_format, change in product(PROFILES, ratios, ("png", "jpeg", "webp"), changes):
        asked = request(profile, aspect_ratio=ratio, image_format=image_format, **change)
        body: dict[str, Any] = fields_of(asked, (640, 480))
        if call == "edits":
            body = {name: str(value) for name, value in body.items()}
        assert list(misfits(SCHEMAS[engine][call], body)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_calls_are_taken_by_a_server(engine: str, images_engine: Engine) -> None:
    """JSON without references, a form with them: both arrive whole, and the image has the asked size and format."""
    server = images_engine(engine)
    for image_format in ("png", "jpeg", "webp"):
        asked = request(aspect_ratio="3:2", image_format=image_format)
        for references in ((), (photo(90, 80),), (photo(90, 80), photo(70, 70))):
            with Image.open(io.BytesIO(make(server, asked, *references).data)) as image:
                assert (image.size, image.format) == ((1248, 832), image_format.upper())
    assert (server.references, server.complaints) == ([0, 1, 2] * 3, [])


def test_trap_1_the_bytes_are_asked_for() -> None:
    """SGLang answers with a URL unless told otherwise."""
    assert SCHEMAS["sglang"]["generations"]["response_format"]["default"] == "'url'"
    assert fields_of(request(), None)["response_format"] == "b64_json"


def test_trap_2_the_seed_is_sent() -> None:
    """SGLang draws every call with seed 42, vLLM-Omni with one it does not tell."""
    assert [fields_of(request(seed=seed), None)["seed"] for seed in (0, 42, 2**31 - 1)] == [0, 42, 2**31 - 1]


@pytest.mark.parametrize(("profile", "steps"), [("klein-distilled", 4), ("klein-base", 20)])
def test_trap_3_the_steps_are_sent(profile: str, steps: int) -> None:
    """vLLM-Omni takes 50 steps by default, for a distilled checkpoint too."""
    assert fields_of(request(profile), None)["num_inference_steps"] == steps


def test_trap_4_the_format_is_sent() -> None:
    """Without a format SGLang writes JPEG, vLLM-Omni PNG."""
    assert [
        fields_of(request(image_format=image_format), None)["output_format"] for image_format in ("png", "jpeg", "webp")
    ] == [
        "png",
        "jpeg",
        "webp",
    ]


def test_trap_5_the_size_is_sent_with_references_too(images_engine: Engine) -> None:
    """vLLM-Omni makes a 12-megapixel image of a 12-megapixel reference unless it is told a size."""
    assert SCHEMAS["vllm_omni"]["edits"]["size"]["default"] == "'auto'"
    server = images_engine("vllm_omni")
    make(server, request(), photo(4000, 3000))
    make(server, request(aspect_ratio=MATCH_INPUT_IMAGE), photo(4000, 3000))
    make(server, request(aspect_ratio=MATCH_INPUT_IMAGE), photo(330, 200))
    assert [body["size"] for body in server.bodies] == ["1024x1024", "1168x880", "320x192"]


def test_trap_6_a_distilled_checkpoint_gets_no_guidance() -> None:
    """SGLang guides by any negative prompt that is not null, the empty one included, and guidance above 1."""
    body = fields_of(request(cfg=9, negative_prompt="rain"), None)
    assert body["guidance_scale"] == 1.0
    assert "negative_prompt" not in body
    base = fields_of(request("klein-base", cfg=9, negative_prompt="rain"), None)
    assert (base["guidance_scale"], base["negative_prompt"]) == (9.0, "rain")
    assert "negative_prompt" not in fields_of(request("klein-base", negative_prompt=""), None)


def test_trap_7_seeds_are_drawn_on_the_cpu() -> None:
    """By default the generator lives on the GPU, where a seed means something else on every kind."""
    assert SCHEMAS["sglang"]["generations"]["generator_device"]["default"] == "'cuda'"
    assert fields_of(request(), None)["generator_device"] == "cpu"


def test_trap_8_no_model_is_named() -> None:
    """vLLM-Omni refuses a model name that is not its own."""
    assert "model" not in fields_of(request(), None)


@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        ("500", "server_error", 500),
        ("503", "unavailable", 503),
        ("429", "rate_limited", 429),
        ("drop", "unknown", None),
        ("wrong_size", "bad_output", 200),
        ("truncated", "bad_output", 200),
        ("url", "bad_output", 200),
        ("no_image", "bad_output", 200),
    ],
)
def test_trap_9_failures_are_told_apart(fault: str, kind: str, status: int | None, images_engine: Engine) -> None:
    """The engines fail in different forms; each is a kind of error with the server's own words."""
    server = images_engine("sglang", faults=[fault])
    with pytest.raises(ProviderError) as caught:
        make(server, request())
    assert (caught.value.kind, caught.value.status) == (kind, status)
    assert "injected" in caught.value.message or status in (None, 200)


SPELLINGS = ("data_url", "data_url_with_more", "url_of_data", "lines", "url_safe", "unpadded")


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_a_picture_is_taken_however_its_base64_is_written(
    spelling: str, image_format: str, images_engine: Engine
) -> None:
    """With a data: prefix, in lines, in the alphabet of URLs or without padding: a whole picture is taken."""
    delivery = make(images_engine("sglang", faults=[spelling]), request(image_format=image_format))
    assert decode(delivery.data).format == image_format


@pytest.mark.parametrize("text", ["not base64!", "data:image/png,abc", "abcde", "=" * 8, "ab=cd", "äöü"])
def test_what_is_no_base64_is_said(text: str) -> None:
    """Text that is no base64, or is cut off within a byte, is no picture, and is not guessed at."""
    with pytest.raises(ValueError, match=r"base64|adding|ASCII|data"):
        decode_base64(text)


def test_a_reference_that_is_no_picture_is_never_sent(images_engine: Engine) -> None:
    """Bytes that are no picture end the call before it is made, and the message says which reference it is."""
    server = images_engine("sglang")
    junk = "data:image/png;base64," + base64.b64encode(b"<html>not found</html>").decode()
    with pytest.raises(ProviderError) as caught:
        make(server, request(), photo(90, 80), junk)
    assert caught.value.kind == "invalid_request"
    assert "reference 2 is no picture" in caught.value.message
    assert "it is a web page" in caught.value.message
    assert server.bodies == []


def test_trap_10_png_is_compressed() -> None:
    """On vLLM-Omni 100, its default, means no compression for PNG; for JPEG and WebP it is the quality."""
    assert SCHEMAS["vllm_omni"]["edits"]["output_compression"]["default"] == "100"
    assert fields_of(request(), None)["output_compression"] == 60
    assert fields_of(request(image_format="jpeg", quality=77), None)["output_compression"] == 77


def test_trap_11_references_are_bytes(images_engine: Engine) -> None:
    """Pictures go in the form itself, in order, and no server is asked to fetch a URL."""
    server = images_engine("sglang")
    make(server, request(), photo(64, 64), photo(80, 64))
    (body,) = server.bodies
    assert server.references == [2]
    assert not {"url", "url[]", "image[]"} & body.keys()


@pytest.mark.parametrize(("engine", "recorded"), [("vllm_omni", ""), ("sglang", None)])
def test_an_ignored_negative_prompt_is_recorded(engine: str, recorded: str | None, images_engine: Engine) -> None:
    """vLLM-Omni ignores a negative prompt for klein: the delivery says so; SGLang uses it."""
    delivery = make(images_engine(engine), request("klein-base", negative_prompt="rain"))
    assert delivery.applied.get("negative_prompt") == recorded


def test_an_unknown_aspect_ratio_is_the_row_s_own_fault() -> None:
    """Where no size is known there is nothing to send."""
    with pytest.raises(ProviderError) as caught:
        fields_of(request(aspect_ratio="7:1"), None)
    assert caught.value.kind == "invalid_request"
