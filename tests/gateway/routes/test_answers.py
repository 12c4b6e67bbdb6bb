"""What a gateway answers: bodies, states, images, the history and how long it is kept, on a real socket."""

import base64
import hashlib
import io
from typing import Any

import httpx
from PIL import Image

from prefect_imagegen.core.images.image import decode
from prefect_imagegen.core.request.models import ASPECT_SIZES, MODELS
from tests.gateway.routes.conftest import MODEL, Clock, finished, gateway


def test_errors_have_the_api_s_codes_and_bodies() -> None:
    """406, 400, 404, 405 and 422 are those of the API; every answer names the engine."""
    with gateway() as (_, client):
        answers = {
            406: client.post(f"/v1/{MODEL}", content=b"{}", headers={"content-type": "text/plain"}),
            400: client.post(f"/v1/{MODEL}", json={"prompt": "a", "steps": 0}),
            404: client.post("/v1/no-such-model", json={"prompt": "a"}),
            405: client.get(f"/v1/{MODEL}"),
        }
        for status, answer in answers.items():
            assert answer.status_code == status
            assert answer.headers["x-imagegen-engine"] == "sandbox"
        assert answers[406].json() == {"error": "Invalid content type"}
        assert answers[405].text.startswith("<html>")
        assert (
            client.post(f"/v2/{MODEL}", content=b"[1]", headers={"content-type": "application/json"}).status_code == 400
        )
        accepted = client.post(f"/v2/{MODEL}", json={"prompt": 7}).json()
        assert accepted["status"] == "QUEUED"
        failed = finished(client, accepted["request_id"])
        assert failed.status_code == 422
        assert failed.json()["error"] == "Prompt is Mandatory and must be string"
        assert client.get("/v2/requests/unknown").json() == {"error": "Request unknown not found"}


def test_retention_and_history() -> None:
    """Records die after an hour, outputs after seven days, the history knows all, after its lag, a page at a time."""
    clock = Clock()
    with gateway(clock=clock, history_lag_s=10.0) as (_, client):
        ids = []
        for number in range(5):
            body = {"prompt": f"p{number}", "seed": number, "image_format": "jpeg"}
            ids.append(client.post(f"/v2/{MODEL}", json=body).json()["request_id"])
            finished(client, ids[-1])
        history = "/inference-request/request-history"
        assert client.get(history).json()["data"] == []
        assert client.get(f"{history}/{ids[0]}").status_code == 404
        clock.now += 11
        rows = client.get(history, params={"per_page": 2, "page": 2}).json()["data"]
        assert [row["request_id"] for row in rows] == [ids[2], ids[1]]
        assert rows[0]["request_body"] == "{'prompt': 'p2', 'seed': 2, 'image_format': 'jpeg'}"
        assert client.get(history, params={"model_name": "4b"}).json()["data"] == []
        assert client.get(history, params={"status": "FAILED"}).json()["data"] == []
        assert client.get(history, params={"sort_order": "asc"}).json()["data"][0]["request_id"] == ids[0]
        assert client.get(history, params={"from_date": "2027-01-16"}).json()["data"] == []
        assert client.get(history, params={"from_date": "2027-01-01", "to_date": "2027-03-01"}).status_code == 400
        output = client.get(f"/v2/requests/{ids[0]}").json()["output"]
        assert httpx.get(output).headers["content-type"] == "image/jpeg"
        clock.now += 3600
        assert client.get(f"/v2/requests/{ids[0]}").status_code == 404
        assert client.get(f"{history}/{ids[0]}").json()["data"]["generation_url"] == output
        assert httpx.get(output).status_code == 200
        clock.now += 7 * 86400
        assert httpx.get(output).status_code == 404


def test_pictures_are_deterministic_and_distinct() -> None:
    """Same parameters, same bytes; any other parameter, another picture; sizes follow the aspect ratio."""
    with gateway() as (_, client):

        def drawn(**body: Any) -> bytes:
            return client.post(f"/v1/{MODEL}", json={"prompt": "a cup", "seed": 1, **body}).content

        assert drawn() == drawn()
        others = ({"seed": 2}, {"prompt": "a hat"}, {"steps": 5}, {"cfg": 2}, {"negative_prompt": "fog"})
        samplers = MODELS[MODEL].fields["sampler"].choices
        pixels = {
            hashlib.sha256(Image.open(io.BytesIO(drawn(**change))).tobytes()).digest() for change in ({}, *others)
        }
        pixels |= {hashlib.sha256(Image.open(io.BytesIO(drawn(sampler=name))).tobytes()).digest() for name in samplers}
        assert len(pixels) == len(others) + len(samplers)
        for ratio in ("1:1", "9:16", "21:9"):
            assert decode(drawn(aspect_ratio=ratio)).width == ASPECT_SIZES[ratio][0]
        for image_format in ("png", "jpeg", "webp"):
            assert decode(drawn(image_format=image_format)).format == image_format
        assert len(drawn(image_format="jpeg", quality=20)) < len(drawn(image_format="jpeg", quality=95))
        # Anything can be a prompt.
        for prompt in ("🦊🎨", "שלום עולם", "日本語", "x" * 100_000, "a\nb\tc", "\u202e"):
            assert decode(drawn(prompt=prompt)).format == "png"


def test_minus_one_draws_a_seed() -> None:
    """Seed -1 is drawn and told; no seed is always the same one, as at the API."""
    with gateway() as (_, client):
        seeds = {
            client.post(f"/v1/{MODEL}", json={"prompt": "a", "seed": -1}).headers["x-seed-value"] for _ in range(3)
        }
        assert len(seeds) == 3
        assert client.post(f"/v1/{MODEL}", json={"prompt": "a"}).headers["x-seed-value"] == "3425234"


def test_references_of_strangers() -> None:
    """A standing gateway refuses references at loopback addresses; an embedded one may fetch them.

    Uploads of its own, and images inside the call, both take.
    """
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(sink, "PNG")
    for allowed in (True, False):
        with gateway(allow_loopback=allowed) as (running, client):
            data = "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()
            (url,) = client.post("/upload-asset", json={"data_urls": [data]}).json()["file_urls"]
            elsewhere = url.replace("127.0.0.1", "localhost")
            answer = client.post(f"/v1/{MODEL}", json={"prompt": "a", "image_urls": [elsewhere]})
            assert answer.status_code == (200 if allowed else 400)
            assert len(running.account_state.billed) == (1 if allowed else 0)
            for own in (url, data):
                answer = client.post(f"/v1/{MODEL}", json={"prompt": own[:9], "image_urls": [own]})
                assert answer.status_code == 200
            assert client.head(url).status_code == 200
            for bad in (f"{url}x", data[:-1], "data:text/plain,hello"):
                answer = client.post(f"/v1/{MODEL}", json={"prompt": "a", "image_urls": [bad]})
                assert answer.status_code == 400
            assert client.post("/upload-asset", json={"data_urls": ["nonsense"]}).status_code == 400


def test_what_cannot_be_drawn_ends() -> None:
    """A reference that only looks like an image, and a full disk, end the job: nobody waits for ever, or is billed."""
    broken = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)).decode()
    with gateway(allow_loopback=True) as (running, client):
        (url,) = client.post("/upload-asset", json={"data_urls": [broken]}).json()["file_urls"]
        body = {"prompt": "a", "image_urls": [url]}
        answer = client.post(f"/v1/{MODEL}", json=body)
        assert (answer.status_code, "image 1" in answer.json()["error"]) == (400, True)
        assert finished(client, client.post(f"/v2/{MODEL}", json=body).json()["request_id"]).status_code == 422
        running.account_state.folder /= "gone"
        answer = client.post(f"/v1/{MODEL}", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]) == (500, "Internal error: FileNotFoundError")
        assert finished(client, client.post(f"/v2/{MODEL}", json={"prompt": "a"}).json()["request_id"]).is_error
        assert not running.account_state.billed
        assert running.account_state.reserved == 0


def test_odd_input_is_400() -> None:
    """Queries and bodies that no parser takes are 400 with the API's form of an error."""
    with gateway() as (_, client):
        answer = client.get("/inference-request/request-history", params={"per_page": "many"})
        assert (answer.status_code, answer.json()["error"][:9]) == (400, "per_page:")
        for content in (b"[" * 100_000, b"{", b"", b"\xff", b"null"):
            answer = client.post(f"/v1/{MODEL}", content=content, headers={"content-type": "application/json"})
            assert (answer.status_code, list(answer.json())) == (400, ["error"])
