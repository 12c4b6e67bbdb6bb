"""The gateway against its own OpenAPI document: what it says of itself is what it does."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from jsonschema import Draft202012Validator
from pydantic import SecretStr

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings

KEY = {"x-api-key": "right"}
OPEN = {"/health", "/generations/{name}", "/assets/{name}", "/inference-model-information/list"}
"""What needs no key: the rest of the API does."""
CONFIGURATION = """
[checks]
# A job that failed is 422 on every poll.
positive_data_acceptance.expected-statuses = ["2xx", "401", "404", "422"]

[[operations]]  # base64 that is no picture, and days that are too far apart, are beyond a schema
include-path-regex = "^/(v1/.model.|upload-asset|inference-request/request-history)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "404"]
"""
EXAMPLES = "20"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("key", [None, SecretStr("right")])
def test_it_does_what_it_says(key: SecretStr | None, tmp_path: Path) -> None:
    """No call that its OpenAPI document allows, or forbids, gets an answer that the document does not tell of."""
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    with EmbeddedGateway(GatewaySettings(engine="static", static_bytes=20_000, api_key=key)) as gateway:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"),
            *(f"{gateway.url}/openapi.json", "--header", "x-api-key: right", "--checks", "all", "--no-color"),
            *("--max-examples", EXAMPLES, "--seed", "1", "--generation-deterministic"),
        ]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
        assert run.returncode == 0, run.stdout[-9000:] + run.stderr[-2000:]
        assert gateway.account_state.billed


def test_the_document_is_whole() -> None:
    """Every route is described, with the key where one is asked for, and every schema and example in it is valid."""
    for key in (None, SecretStr("right")):
        with EmbeddedGateway(GatewaySettings(api_key=key)) as gateway, httpx.Client(base_url=gateway.url) as client:
            document = client.get("/openapi.json", headers=KEY).json()
            assert set(document["paths"]) > OPEN
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    named = path.replace("{", "").replace("}", "")
                    answer = client.request(method, named)
                    is_open = path in OPEN or (key is None and path == "/metrics")
                    assert (answer.status_code != 401) == is_open, path
                    assert str(answer.status_code) in operation["responses"]
                    for media in operation.get("requestBody", {}).get("content", {}).values():
                        Draft202012Validator.check_schema(media["schema"])
                        if "example" in media["schema"]:
                            Draft202012Validator(media["schema"]).validate(media["schema"]["example"])


@pytest.mark.parametrize("urls", [{}, "", 0, False, "https://example.com/a.png", [1], [None]])
def test_references_are_a_list_or_nothing(urls: object) -> None:
    """What stands for references and is no list is refused: nothing is drawn, and billed, without them."""
    with EmbeddedGateway(GatewaySettings()) as gateway:
        body = {"prompt": "a", "image_urls": urls}
        answer = httpx.post(f"{gateway.url}/v1/flux-2-klein-9b", json=body, headers=KEY)
        assert (answer.status_code, answer.json()["error"]) == (400, "image_urls must be a list of URLs")
        assert not gateway.account_state.billed


@pytest.mark.parametrize("day", ["0", "1700000000", "2026-02-30", "yesterday", "2026-01-01T00:00:00"])
def test_days_are_days(day: str) -> None:
    """A number is no day, though seconds since 1970 could be meant: a history of another day would look empty."""
    with EmbeddedGateway(GatewaySettings()) as gateway:
        for name in ("from_date", "to_date"):
            answer = httpx.get(f"{gateway.url}/inference-request/request-history", params={name: day}, headers=KEY)
            assert (answer.status_code, answer.json()["error"][: len(name)]) == (400, name)


def test_a_wrong_method_names_the_right_ones() -> None:
    """405 has the methods that are taken in `Allow`, also where another route has nearly the same path."""
    with EmbeddedGateway(GatewaySettings()) as gateway:
        for method, path in (("DELETE", "/health"), ("POST", "/v1/get-user-credits"), ("PUT", "/assets/a")):
            answer = httpx.request(method, gateway.url + path, headers=KEY)
            assert (answer.status_code, "GET" in answer.headers["allow"]) == (405, True)
            assert answer.text.startswith("<html>")
