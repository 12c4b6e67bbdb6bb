"""Images in answers: every shape that the API's documentation, its SDK or its users show."""

import base64
import json
import tracemalloc

import pytest

from prefect_imagegen.core.answers.history import parse_inputs
from prefect_imagegen.core.answers.json_values import parse_json
from prefect_imagegen.core.answers.outputs import Output, images_of_body, looks_like_image, outputs_of
from tests.core.answers.conftest import JPEG, PNG, TEXT64, URL, WEBP, picture

OTHER = "https://images.example.com/generations/cd34.png"


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP, picture("gif"), picture("bmp"), picture("tiff")])
def test_images_are_known_by_their_first_bytes(data) -> None:
    """An answer is an image if its bytes say so, whatever its headers say."""
    assert looks_like_image(data)
    assert images_of_body(data) == (Output(data=data),)


@pytest.mark.parametrize("data", [b"", b"<html>", b'{"error": "x"}', b"RIFF1234WAVE", b"\x00" * 40, TEXT64.encode()])
def test_other_bytes_are_no_image(data) -> None:
    """HTML, JSON, nothing and other media are not taken for an image."""
    assert not looks_like_image(data)


@pytest.mark.parametrize(
    "body",
    [
        {"output_url": URL},
        {"image_url": URL},
        {"url": URL},
        {"data": {"url": URL}},
        {"data": [{"url": URL}]},
        {"output": URL},
        {"output": [URL]},
        {"output": {"images": [{"url": URL}]}},
        {"output": {"videos": [{"url": URL}]}},
        {"output": json.dumps({"image": {"url": URL}})},
        {"output": json.dumps([URL])},
        {"output": [URL, URL]},
        {"images": [{"url": URL, "content_type": "image/png", "file_size": "1450316"}]},
        {"images": [URL]},
        {"images": [{"url": URL}, {"url": URL}], "output": OTHER},
        {"images": [], "output": URL},
        {"images": None, "output": URL},
        {"images": "none", "output_url": URL},
        {"status_url": OTHER, "response_url": OTHER, "poll_url": OTHER, "result": URL},
        {"prompt": OTHER, "output": URL},
        {"error": None, "output": URL},
        {"error": "", "output": URL},
        [{"url": URL}],
        URL,
    ],
    ids=str,
)
def test_a_url_is_found_wherever_it_is(body) -> None:
    """The image's URL is found in every shape: images first, then output, then any other URL but those of the job."""
    assert outputs_of(body) == (Output(url=URL),)
    assert images_of_body(json.dumps(body).encode()) == (Output(url=URL),)


@pytest.mark.parametrize(
    "body",
    [
        {"images": [{"url": URL}, {"url": OTHER}], "output": URL},
        {"images": [URL, OTHER]},
        {"output": [URL, OTHER]},
        {"output": json.dumps([URL, OTHER])},
        {"output": {"images": [{"url": URL}, {"url": OTHER}]}},
        {"data": [{"url": URL}, {"url": OTHER}]},
        [{"url": URL}, {"image": OTHER}],
        [URL, OTHER, URL],
    ],
    ids=str,
)
def test_several_images_are_all_found(body) -> None:
    """Where an answer gives several images all of them were paid: each is told, in order and once."""
    assert outputs_of(body) == (Output(url=URL), Output(url=OTHER))


def test_several_images_in_their_own_bytes() -> None:
    """Several images as base64 are all decoded."""
    body = {"data": [{"b64_json": TEXT64}, {"b64_json": base64.b64encode(JPEG).decode()}]}
    assert images_of_body(json.dumps(body).encode()) == (Output(data=PNG), Output(data=JPEG))


@pytest.mark.parametrize(
    "body",
    [
        {"output": TEXT64},
        {"image": TEXT64},
        {"output": f"data:image/png;base64,{TEXT64}"},
        {"data": [{"b64_json": TEXT64}]},
        {"images": [TEXT64]},
        {"output": base64.encodebytes(PNG).decode()},
        {"output": base64.urlsafe_b64encode(PNG).decode()},
        TEXT64,
    ],
    ids=lambda body: str(body)[:30],
)
def test_base64_is_decoded(body) -> None:
    """An image as base64, as a data URI, wrapped or URL-safe, is decoded where it stands."""
    assert outputs_of(body) == (Output(data=PNG),)


def test_plain_base64_is_a_body() -> None:
    """A body that is plain base64 text is an image too."""
    assert images_of_body(TEXT64.encode()) == (Output(data=PNG),)
    assert images_of_body(base64.encodebytes(PNG)) == (Output(data=PNG),)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": "Insufficient credits"}', "Insufficient credits"),
        (b'{"error": {"message": "deep"}}', "deep"),
        (b'{"error": "x", "url": "https://example.com/docs"}', "x"),
        (b"<html><body>Bad Gateway</body></html>", "no image in the answer, which begins '<html>"),
        (b"", "no image in the answer, which begins ''"),
        (b"{}", "the answer names no output"),
        (b"[]", "the answer names no output"),
        (b'"text"', "the answer names no output"),
        (b"7", "no image in the answer, which begins '7'"),
        (b'{"output": "aGVsbG8gd29ybGQ="}', "the answer names no output"),
        (b'{"output": "just words"}', "the answer names no output"),
        (base64.b64encode(b"no picture " * 20), "no image in the answer"),
    ],
)
def test_a_200_without_image_is_an_error(body, text) -> None:
    """An error under status 200, HTML, or an answer without image is told as an error, never as an image."""
    (output,) = images_of_body(body)
    assert (output.data, output.url) == (None, None)
    assert text in output.error


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{TEXT64}",
        f"DATA:image/png;charset=x;BASE64, {TEXT64}",
        "\n".join(TEXT64[start : start + 64] for start in range(0, len(TEXT64), 64)),
        TEXT64.translate(str.maketrans("+/", "-_")).rstrip("="),
        f"  {TEXT64}  ",
    ],
    ids=["data URL", "data URL with more", "lines", "URL alphabet", "blanks around"],
)
def test_base64_however_it_is_written(text: str) -> None:
    """An image in text is found in every way in which servers write base64, bare or within JSON."""
    assert images_of_body(text.encode()) == (Output(data=PNG),)
    assert images_of_body(json.dumps({"image": text}).encode()) == (Output(data=PNG),)


@pytest.mark.parametrize("text", ["A" * 64 + " " * 2_000_000 + "!", " " * 2_000_000, "data:" + ";base64" * 300_000])
def test_hostile_text_costs_no_more_than_its_length(text: str) -> None:
    """Text that is made to be tried again and again at every blank is read once."""
    (output,) = images_of_body(text.encode())
    assert output.data is None


@pytest.mark.parametrize("unit", ["{},", "[[]],", "0,", '{"a":1},', '"",'])
def test_an_answer_of_millions_of_values_is_none(unit: str) -> None:
    """JSON that would take gigabytes proves nothing, and costs next to no memory."""
    text = f"[{unit * 6_000_000}0]"
    tracemalloc.start()
    assert parse_json(text.encode()) is None
    assert parse_json(text) is None
    assert parse_inputs(f"{{'a': {text}}}") is None
    assert tracemalloc.get_traced_memory()[1] < 8 * len(text)
    tracemalloc.stop()
