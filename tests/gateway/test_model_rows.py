"""The gateway serves every model of the table as its row says: calls, faults, history and OpenAPI document."""

import base64
import io
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from prefect_imagegen.core.policy.history_lookup import claim_form, compare_calls
from prefect_imagegen.core.request.models import MODELS
from prefect_imagegen.gateway.limits import Limits
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings

KEY = {"x-api-key": "k"}
PRO, EDIT = "flux-2-pro", "qwen-image-edit-plus"


def picture(side: int = 64, *, noisy: bool = False) -> str:
    sink = io.BytesIO()
    image = Image.effect_noise((side, side), 90) if noisy else Image.new("RGB", (side, side), "teal")
    image.save(sink, "PNG")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()


def post(gateway: EmbeddedGateway, slug: str, version: str = "v1", **body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}/{version}/{slug}", json={"prompt": "a cup"} | body, headers=KEY, timeout=60)


REFUSED = [
    (PRO, {}, "flux-2-pro needs at least 1 reference image, and there are 0"),
    (PRO, {"image_urls": []}, "flux-2-pro needs at least 1 reference image, and there are 0"),
    (PRO, {"image_urls": picture()}, "image_urls must be a list of URLs"),
    (PRO, {"image_urls": [picture()], "width": 1 << 40}, "width: sides of 64 to 4096 pixels are drawn here"),
    (PRO, {"image_urls": [picture()], "height": 63}, "height: sides of 64 to 4096 pixels are drawn here"),
    (PRO, {"image_urls": [picture()], "width": 0}, "width: it must be at least 1"),
    (PRO, {"image_urls": [picture()], "output_format": "jpeg"}, "output_format: it must be one of jpg, png, webp"),
    (EDIT, {"image_urls": [picture()]}, "qwen-image-edit-plus needs at least 1 reference image, and there are 0"),
    (EDIT, {"image": [picture()]}, "image must be a URL"),
    (EDIT, {"image": picture(), "image_2": 7}, "image_2 must be a URL"),
    (EDIT, {"image": picture(), "aspect_ratio": "2:2"}, "aspect_ratio: no size is known for it, use one of 1:1, 2:3"),
    (EDIT, {"image": picture(), "image_2": picture()[:102]}, "image_2 cannot be decoded"),
]


@pytest.mark.parametrize(("slug", "body", "reason"), REFUSED)
def test_what_the_row_does_not_allow_is_refused(slug: str, body: dict[str, Any], reason: str) -> None:
    """A body that cannot be drawn is a 400 in v1 and FAILED in v2, in the same words, and is not billed."""
    with EmbeddedGateway(GatewaySettings()) as gateway:
        answer = post(gateway, slug, **body)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(reason)
        address = post(gateway, slug, "v2", **body).json()["response_url"]
        while (failed := httpx.get(address, headers=KEY)).status_code == 200:
            assert failed.json()["status"] in ("QUEUED", "PROCESSING")
        assert (failed.status_code, failed.json()["error"]) == (422, answer.json()["error"])
        assert not gateway.account_state.billed


def test_pictures_in_fields_of_their_own_are_pictures() -> None:
    """A picture in `image_2` may be longer than a text, has the limits of pictures, and is not kept in the history."""
    limits = Limits(field_chars=2000, reference_bytes=40_000, references_bytes=60_000)
    small, large, huge = picture(), picture(160, noisy=True), picture(256, noisy=True)
    assert len(small) < 2000 < len(large) < 40_000 < len(huge)
    with EmbeddedGateway(GatewaySettings(limits=limits)) as gateway:
        body = {"image": small, "image_2": large, "seed": 7}
        assert post(gateway, EDIT, **body).status_code == 200
        (record,) = gateway.account_state.billed
        assert "base64" not in str(record.body)
        claimed = claim_form({"prompt": "a cup"} | body)
        assert compare_calls(record.body, claimed) == "same"
        assert compare_calls(record.body, claimed | {"image_2": claimed["image"]}) == "unclear"
        refused = post(gateway, EDIT, image=small, image_2=huge)
        assert (refused.status_code, refused.json()["error"][:20]) == (413, "image_2 is too large")
        refused = post(gateway, EDIT, image=large, image_2=large, image_3=large)
        assert (refused.status_code, refused.json()["error"][:30]) == (413, "the images of image, image_2, ")
        refused = post(gateway, EDIT, image=small, aspect_ratio=large)
        assert (refused.status_code, refused.json()["error"][:24]) == (400, "aspect_ratio is too long")


def test_the_document_has_a_body_for_every_model() -> None:
    """The OpenAPI document tells of each model's fields and references, and what it allows is taken."""
    with EmbeddedGateway(GatewaySettings(engine="static", static_bytes=20_000)) as gateway:
        document = httpx.get(f"{gateway.url}/openapi.json", headers=KEY).json()
        media = document["paths"]["/v1/{model}"]["post"]["requestBody"]["content"]["application/json"]
        schemas = {schema["title"]: Draft202012Validator(schema) for schema in media["schema"]["anyOf"]}
        assert set(schemas) == set(MODELS)
        for slug, spec in MODELS.items():
            body = {"prompt": "a cup"} | dict(spec.key_defaults)
            bound = body | spec.references.bind([picture()])
            assert schemas[slug].is_valid(bound)
            assert post(gateway, slug, **bound).status_code == 200
            assert schemas[slug].is_valid(body) == (spec.references.minimum == 0 and "image" not in body)
            for name, field in spec.fields.items():
                assert not schemas[slug].is_valid(bound | {name: [field.default]})
