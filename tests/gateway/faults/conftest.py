"""A gateway that follows a fault script, and calls to it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from prefect_imagegen.gateway.faults import Fault, FaultScript
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.net.client import TRANSPORT_ERRORS, make_client

MODEL = "flux-2-klein-9b"
KEY = {"x-api-key": "k"}


@contextmanager
def misbehaving(*faults: dict[str, Any], **settings: Any) -> Iterator[tuple[EmbeddedGateway, httpx.Client]]:
    """A gateway with these faults, and a client with a key."""
    script = FaultScript(faults=[Fault(**fault) for fault in faults])
    with (
        EmbeddedGateway(GatewaySettings(faults=script, **settings)) as running,
        httpx.Client(base_url=running.url, headers=KEY, timeout=30) as client,
    ):
        yield running, client


def accepted(client: httpx.Client, prompt: str = "a", **body: Any) -> str:
    """The request_id of a v2 call that was accepted."""
    answer = client.post(f"/v2/{MODEL}", json={"prompt": prompt, **body})
    return str(answer.json()["request_id"])


def drawn(running: EmbeddedGateway, client: httpx.Client, prompt: str = "a", **body: Any) -> str:
    """The request_id of a v2 call whose work is done; nothing is polled for it."""
    request_id = accepted(client, prompt, **body)
    for _ in range(1000):
        if running.account_state.records[request_id].finished is not None:
            return request_id
        time.sleep(0.01)
    raise AssertionError("the job did not end")


async def posted(version: str, *faults: dict[str, Any], calls: int = 1) -> tuple[list[Any], EmbeddedGateway]:
    """Answers (or transport errors) of some POSTs to a gateway with these faults, and the stopped gateway."""
    script = FaultScript(faults=[Fault(**{"fault": "status", **fault}) for fault in faults])
    with EmbeddedGateway(GatewaySettings(faults=script)) as gateway:
        answers: list[Any] = []
        async with make_client(max_connections=4, read_timeout=2.0) as client:
            for number in range(calls):
                body = {"prompt": f"p{number}", "seed": number}
                try:
                    answers.append(await client.post(f"{gateway.url}/{version}/{MODEL}", json=body, headers=KEY))
                except TRANSPORT_ERRORS as error:
                    answers.append(error)
        return answers, gateway
