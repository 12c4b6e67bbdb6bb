"""A gateway with limits of a test's choice, and a picture for it."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect_imagegen.gateway.limits import Limits
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from tests.support.builders.images import data_url, png

MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}


@contextmanager
def gateway(**limits: int) -> Iterator[EmbeddedGateway]:
    with EmbeddedGateway(GatewaySettings(limits=Limits(**limits), allow_loopback=True)) as running:
        yield running
        assert running._runner.gate.bytes == 0  # every call has given its place back
        assert not running._runner.gate.calls


def photo(side: int = 64) -> str:
    return data_url(png(side, 90))
