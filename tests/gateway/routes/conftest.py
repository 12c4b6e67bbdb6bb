"""A gateway on loopback with a client, a clock for it, and the end of a job."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings

MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def gateway(**settings: Any) -> Iterator[tuple[EmbeddedGateway, httpx.Client]]:
    with (
        EmbeddedGateway(GatewaySettings(**settings)) as running,
        httpx.Client(base_url=running.url, headers=KEY, timeout=30) as client,
    ):
        yield running, client


def finished(client: httpx.Client, request_id: str) -> httpx.Response:
    """The first status answer that is terminal."""
    for _ in range(1000):
        answer = client.get(f"/v2/requests/{request_id}/status")
        if answer.json().get("status") not in ("QUEUED", "PROCESSING"):
            return answer
    raise AssertionError("the job did not end")
