"""The port `Dialect`: every protocol of an endpoint passes the same tests. A new one is one more line of DIALECTS."""

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.request.models import MODELS
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.ports import Delivery, Health
from prefect_imagegen.providers.pool.dialects import DIALECTS, Dialect
from tests.support.builders.images import data_url, encoded

Engine = Callable[..., Any]
PARAMS = {name: spec.default for name, spec in MODELS["flux-2-klein-9b"].fields.items()}
REQUEST = GenerationRequest(
    "flux-2-klein-9b", PARAMS | {"prompt": "a cup", "seed": 7, "aspect_ratio": "3:2", "image_format": "jpeg"}
)


@contextmanager
def gateway(_: Engine, fault: str | None) -> Iterator[str]:
    """Our own gateway."""
    faults = []
    if fault is not None:
        status = int(fault) if fault.isdigit() else None
        kind = {"truncated": "truncated_body", "drop": "disconnect"}.get(fault, "status")
        when = {"when": "after"} if fault == "drop" else {}
        faults = [Fault(fault=kind, **({"status": status} if status else {}), **when)]
    with EmbeddedGateway(GatewaySettings(allow_loopback=True, faults=FaultScript(faults=faults))) as running:
        yield running.url


@contextmanager
def images(start: Engine, fault: str | None) -> Iterator[str]:
    """A server of the Images API."""
    yield start("vllm_omni", faults=[fault] * 9 if fault else []).url


SERVERS = {"segmind": gateway, "openai": images}


def with_dialect(name: str, url: str, work: Callable[[Dialect], Any]) -> Any:
    """Run a function with a client of an endpoint, and return what it returns."""

    async def run() -> Any:
        dialect = DIALECTS[name](url, None, 30.0)
        try:
            return await work(dialect)
        finally:
            await dialect.aclose()

    return asyncio.run(run())


async def make(dialect: Dialect, *references: str) -> Delivery:
    return await dialect.collect(await dialect.submit(REQUEST, references))


def test_every_dialect_is_tested() -> None:
    """No protocol comes in without this suite."""
    assert set(SERVERS) == set(DIALECTS)


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("references", [0, 1, 2])
def test_an_image_comes_as_asked(name: str, references: int, images_engine: Engine) -> None:
    """Size and format are those asked for, with and without references."""
    photo = data_url(encoded(Image.effect_noise((80, 70), 50).convert("RGB")))
    with SERVERS[name](images_engine, None) as url:
        delivery = with_dialect(name, url, lambda dialect: make(dialect, *[photo] * references))
    with Image.open(io.BytesIO(delivery.data)) as image:
        assert (image.size, image.format) == ((1248, 832), "JPEG")


@pytest.mark.parametrize("name", SERVERS)
def test_health_is_told_and_never_raises(name: str, images_engine: Engine) -> None:
    """A server that works is ready; one that nobody serves is not, with the reason in words."""
    with SERVERS[name](images_engine, None) as url:
        health: Health = with_dialect(name, url, lambda dialect: dialect.health())
        assert health.ready
    health = with_dialect(name, "http://127.0.0.1:9", lambda dialect: dialect.health())
    assert not health.ready
    assert "no answer" in health.detail


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("500", {"server_error"}),
        ("503", {"unavailable"}),
        ("429", {"rate_limited"}),
        ("drop", {"unknown", "bad_output"}),
        ("truncated", {"unknown", "bad_output"}),
    ],
)
def test_failures_have_one_name(name: str, fault: str, kinds: set[str], images_engine: Engine) -> None:
    """The same trouble is the same kind of error, whatever the protocol."""
    with SERVERS[name](images_engine, fault) as url, pytest.raises(ProviderError) as caught:
        with_dialect(name, url, make)
    assert caught.value.kind in kinds


@pytest.mark.parametrize("name", SERVERS)
def test_a_dead_endpoint_is_told(name: str) -> None:
    """A call to nobody is an error of the call, not of the program."""
    with pytest.raises(ProviderError) as caught:
        with_dialect(name, "http://127.0.0.1:9", make)
    assert caught.value.kind in ("unsent", "unknown")
