"""Limits on what is asked for: references, texts, values, depth. A refusal names its limit and costs no memory."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.gateway.http.intake import BadBodyError, parse
from prefect_imagegen.gateway.limits import Limits
from prefect_imagegen.gateway.server import EmbeddedGateway
from tests.gateway.limits.conftest import KEY, MODEL, gateway, photo


def post(running: EmbeddedGateway, **body: Any) -> httpx.Response:
    return httpx.post(f"{running.url}/v1/{MODEL}", json={"prompt": "a", **body}, headers=KEY, timeout=60)


def test_references_are_counted_and_weighed() -> None:
    """Too many, too large, and together too large pictures of a call are refused by name, before they are decoded."""
    with gateway(references=2, reference_bytes=100_000, references_bytes=150_000) as running:
        small, middle, large = photo(), photo(300), photo(600)
        assert post(running, image_urls=[small, small]).status_code == 200
        refused = {
            "image_urls has 3 images, too many (--max-references 2)": [small] * 3,
            "image 2 of image_urls is too large (--max-reference-mb 0.0953674)": [small, large],
            "the images of image_urls are too large (--max-references-mb 0.143051)": [middle, middle],
        }
        for version in ("v1", "v2"):
            for text, urls in refused.items():
                body = {"prompt": "a", "image_urls": urls}
                answer = httpx.post(f"{running.url}/{version}/{MODEL}", json=body, headers=KEY)
                assert (answer.status_code, answer.json()["error"]) == (400 if "many" in text else 413, text)
        for text, urls in refused.items():
            answer = httpx.post(f"{running.url}/upload-asset", json={"data_urls": urls}, headers=KEY)
            assert answer.json()["error"] == text.replace("image_urls", "data_urls")
        assert len(running.account_state.records) == 1


def test_fetched_references_are_weighed_too() -> None:
    """Pictures behind addresses, and uploads, count as those inside the call do."""
    with gateway(reference_bytes=100_000, references_bytes=150_000) as running:
        answer = httpx.post(f"{running.url}/upload-asset", json={"data_urls": [photo(300)]}, headers=KEY)
        (url,) = answer.json()["file_urls"]
        assert post(running, image_urls=[url]).status_code == 200
        for urls in ([url, url], [url.replace("127.0.0.1", "localhost")] * 2):
            answer = post(running, image_urls=urls)
            assert (answer.status_code, "--max-references-mb" in answer.json()["error"]) == (400, True)


def test_texts_are_bounded() -> None:
    """Long fields, and much text beside the pictures, are refused; a picture is no text."""
    with gateway(field_chars=1000, text_bytes=8192) as running:
        for field in ("prompt", "negative_prompt", "whatever"):
            answer = post(running, **{field: "x" * 1001})
            assert (answer.status_code, answer.json()["error"]) == (
                400,
                f"{field} is too long (--max-field-chars 1000)",
            )
        assert post(running, image_urls=["https://example.com/" + "x" * 1000]).status_code == 400
        for more in ({"a": [0] * 9000}, {f"k{n}": 1 for n in range(2000)}, {"a": ["data:"] * 2000}):
            answer = post(running, **more)
            assert (answer.status_code, "--max-text-kb 8" in answer.json()["error"]) == (400, True)
        assert post(running, image_urls=[photo(200)]).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {"mask": ["data:image/png;base64," + "A" * 2000]},
        {"mask": {"data:image/png;base64," + "A" * 2000: 1}},
        {"image_urls": [["data:image/png;base64," + "A" * 2000]]},
        {"data:image/png;base64," + "A" * 2000: 1},
    ],
)
def test_only_a_picture_may_be_long(more: dict[str, Any]) -> None:
    """What has the form of a picture is long only where pictures belong: elsewhere it would be kept, and shown."""
    with gateway(field_chars=1000, text_bytes=1500) as running:
        for version in ("v1", "v2"):
            answer = httpx.post(f"{running.url}/{version}/{MODEL}", json={"prompt": "a", **more}, headers=KEY)
            assert (answer.status_code, "--max-field-chars 1000" in answer.json()["error"]) == (400, True)
        assert not running.account_state.records


@pytest.mark.parametrize("more", ['{"":0},' * 140_000, "[]," * 300_000, "0," * 500_000, '{"a":1,"b":[2]},' * 600])
def test_values_are_counted(more: str) -> None:
    """Many small values, which take many times the memory of their text, are refused; commas in a text are none."""
    with pytest.raises(BadBodyError, match=r"too many values \(--max-json-values 1000\)"):
        parse(f'{{"prompt": "a", "more": [{more}0]}}'.encode(), Limits())
    assert parse(b'{"prompt": "%s"}' % (b",[" * 40_000), Limits())


def test_a_page_costs_what_it_shows() -> None:
    """Rows of the history that are on other pages are not made, however large they are."""
    with gateway() as running:
        for _ in range(3):
            assert post(running).status_code == 200
        oldest = next(iter(running.account_state.records.values()))
        oldest.body = {"prompt": object()}  # cannot be made into a row
        page = httpx.get(f"{running.url}/inference-request/request-history?per_page=2", headers=KEY).json()
        assert (page["total"], len(page["data"])) == (3, 2)


@pytest.mark.parametrize("nested", ["[" * 40 + "]" * 40, '{"a":' * 40 + "1" + "}" * 40, "[" * 500_000])
def test_depth_is_bounded(nested: str) -> None:
    """Lists and objects within each other are refused beyond a depth; brackets in a text are none."""
    with gateway() as running:
        headers = KEY | {"content-type": "application/json"}
        content = f'{{"prompt": "a", "more": {nested}}}'.encode()
        answer = httpx.post(f"{running.url}/v1/{MODEL}", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            "the body is nested too deeply (--max-json-depth 32)",
        )
        assert post(running, prompt='"\\"' + "[{" * 50).status_code == 200


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_depth_is_that_of_the_value(value: Any) -> None:
    """A body is refused for its depth just where its value is deeper."""

    def depth(part: Any) -> int:
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else None
        return 0 if parts is None else 1 + max(map(depth, parts), default=0)

    body = {"a": value}
    for most in (1, 2, 4):
        for text in (json.dumps(body), json.dumps(body, ensure_ascii=False)):
            data = text.encode("utf-8", "surrogatepass")
            try:
                assert parse(data, Limits(json_depth=most)) == body
                assert depth(body) <= most
            except BadBodyError as error:
                assert depth(body) > most or "half a character" in str(error)  # noqa: PT017


def test_what_json_has_not() -> None:
    """NaN, infinities, half characters and numbers without end are 400, in answers that are JSON themselves."""
    with gateway() as running:
        headers = KEY | {"content-type": "application/json"}
        odd = ("NaN", "-Infinity", '"\\ud83d"', "9" * 5000, '"\\udc00\\ud83d"')
        for value in odd:
            content = f'{{"prompt": "a", "more": {value}}}'.encode()
            answer = httpx.post(f"{running.url}/v2/{MODEL}", content=content, headers=headers)
            assert (answer.status_code, list(answer.json())) == (400, ["error"])
        assert post(running, prompt="🦊 \U0010ffff \x00").status_code == 200
        assert post(running, seed=1 << 63).json()["error"].startswith("seed must be")
