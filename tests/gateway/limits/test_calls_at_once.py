"""Limits on what is in work at the same time, of all callers and of one; and how our own client meets them."""

from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from prefect_imagegen.gateway.limits import Gate, Limits, TooBusyError
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.gateway.limits.conftest import KEY, MODEL, photo
from tests.support.gateway_runs import api, assert_paid_once, generate


def test_the_gate() -> None:
    """Places are counted by account and over all, bytes over all; what is given back can be taken again."""
    gate = Gate(Limits(calls_of_key=2, pending_bytes=100, body_bytes=80), 3)
    with gate.seat("a") as first, gate.seat("a"):
        with pytest.raises(TooBusyError, match="--max-calls-per-key 2"), gate.seat("a"):
            pass
        with gate.seat("b"):
            with pytest.raises(TooBusyError, match="--queue"), gate.seat("c"):
                pass
            gate.grow(first, 90)
            with pytest.raises(TooBusyError, match="--max-pending-mb"):
                gate.grow(first, 11)
    assert (gate.bytes, dict(gate.calls)) == (0, {})
    # A single body within `body_bytes` is accepted, even where `pending_bytes` is smaller.
    gate = Gate(Limits(pending_bytes=10, body_bytes=80), 3)
    with gate.seat("a") as seat:
        gate.grow(seat, 80)


def test_calls_at_once_of_a_key() -> None:
    """A key over its calls at once gets 429 with Retry-After and nothing is accepted; others go on."""
    accounts = {"alice": [SecretStr("a1"), SecretStr("a2")], "bob": [SecretStr("b")]}
    settings = GatewaySettings(accounts=accounts, limits=Limits(calls_of_key=2), latency_s=60.0)
    with EmbeddedGateway(settings) as running, httpx.Client(base_url=running.url, timeout=30) as client:

        def submit(key: str, path: str = f"/v2/{MODEL}") -> httpx.Response:
            return client.post(path, json={"prompt": "a", "data_urls": [photo()]}, headers={"x-api-key": key})

        assert [submit(key).status_code for key in ("a1", "a2", "a1", "b")] == [200, 200, 429, 200]
        for path in (f"/v1/{MODEL}", f"/v2/{MODEL}", "/upload-asset"):
            refused = submit("a2", path)
            assert refused.status_code == 429
            assert refused.json()["error"].endswith("(--max-calls-per-key 2)")
            assert int(refused.headers["retry-after"]) >= 1
        assert len(running.account_state.records) == 3


def test_bytes_at_once() -> None:
    """Bodies over the bytes of all calls at once get 429, and are taken once there is room."""
    limits = Limits(pending_bytes=150_000, body_bytes=100_000)
    settings = GatewaySettings(limits=limits, latency_s=60.0)
    with EmbeddedGateway(settings) as running, httpx.Client(base_url=running.url, timeout=30, headers=KEY) as client:
        body = {"prompt": "a", "image_urls": [photo(230)]}
        answers = [client.post(f"/v2/{MODEL}", json=body) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert "--max-pending-mb" in answers[2].json()["error"]
        assert client.post(f"/v2/{MODEL}", json={"prompt": "a"}).status_code == 200
        assert len(running.account_state.records) == 3


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_our_client_waits_for_its_turn(tmp_path: Path, version: str) -> None:
    """A refusal for too many calls at once is 'not accepted' to our client: every row is drawn, and paid once."""
    with api(limits=Limits(calls_of_key=2), latency_s=0.05) as running:
        result = generate(running, tmp_path, 12, max_in_flight=8, api_version=version)
        assert (result.generated, result.held, result.failed) == (12, 0, 0)
        assert_paid_once(running, 12)
        calls = running.account_state.calls["run" if version == "v1" else "submit"]
        assert calls > 12  # some calls were refused and sent again


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_our_client_hears_what_is_too_large(tmp_path: Path, version: str) -> None:
    """A body that is too large is a row that the API refuses: not billed, and not held as if it might have been."""
    with api(limits=Limits(body_bytes=100)) as running:
        result = generate(running, tmp_path, 2, api_version=version)
        assert (result.generated, result.held, result.failed) == (0, 0, 2)
        assert not running.account_state.records
