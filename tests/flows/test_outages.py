"""What a flow run's log says of a Prefect server that is away, on a real server."""

import asyncio
import logging
import time
import uuid

import httpx
import pytest
from prefect import flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_imagegen.flows.artifacts import _quietly
from prefect_imagegen.tasks.outages import is_outage, reporting_outages
from tests.support.ports import free_port

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(300)]
OWN = logging.getLogger("prefect_imagegen.io.some_part")
SERVICE = logging.getLogger("prefect._internal.concurrency")


async def ask(api: str) -> str:
    """One call to a server by Prefect's own client."""
    async with PrefectClient(api) as client:
        await client.read_work_pools()
    return "answered"


def said_by(run_id: uuid.UUID, count: int) -> list[str]:
    """The warnings in the log of a flow run as the server has it, once there are so many."""
    end = time.monotonic() + 60
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        while True:
            logs = client.read_logs(wanted)
            found = [log.message for log in logs if log.level >= logging.WARNING]
            if len(found) >= count:
                return found
            assert time.monotonic() < end, found
            time.sleep(0.2)


def test_an_outage_is_told_once() -> None:
    """However many calls meet a server that is away, the run's log says once that it is, and once that it is back.

    What Prefect's own services repeat meanwhile is seen once, and counted; what our parts say is in the run's log.
    """
    nobody = f"http://127.0.0.1:{free_port()}/api"

    @flow(retries=0)
    async def trying() -> None:
        with reporting_outages():
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                for number in range(4):
                    assert await _quietly(ask(nobody)) is None
                    SERVICE.error("Service %r failed to process item %s", "EventsWorker", number)
            assert await _quietly(ask(PREFECT_API_URL.value())) == "answered"
            assert await _quietly(ask(PREFECT_API_URL.value())) == "answered"
            OWN.warning("The store has been away.")

    seen: list[str] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    handler = Seen()
    SERVICE.addHandler(handler)
    try:
        state = asyncio.run(trying(return_state=True))
    finally:
        SERVICE.removeHandler(handler)
    assert state.is_completed()
    assert seen == ["Service 'EventsWorker' failed to process item 0"]
    away, back, own = said_by(state.state_details.flow_run_id, 3)
    assert away.startswith("The Prefect server cannot be reached since ")
    assert "images are made, paid for and stored" in away
    assert back.startswith("The Prefect server is back, after ")
    assert "No image and no cost was lost. 4 of Prefect's own events" in back
    assert own == "The store has been away."


def test_other_trouble_is_told_once_too() -> None:
    """A server that refuses a call is no outage; that is said once for each thing that it is about."""

    async def refused() -> None:
        async with get_client() as client:
            await client.read_flow_run(uuid.uuid4())

    @flow(retries=0)
    async def trying() -> None:
        with reporting_outages():
            for _ in range(30):
                await _quietly(refused())

    state = asyncio.run(trying(return_state=True))
    (told,) = said_by(state.state_details.flow_run_id, 1)
    assert told.startswith("An artifact could not be written: ")


def answered(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("", request=httpx.Request("GET", "http://a"), response=httpx.Response(status))


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout("slow"), True),
        (httpx.RemoteProtocolError("cut"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ValueError("a bug"), False),
        *((answered(status), status in (502, 503, 504)) for status in (401, 404, 500, 502, 503, 504)),
    ],
)
def test_what_an_outage_is(error: Exception, is_one: bool) -> None:
    """A server that gives no answer, or for which a gateway answers, is away; one that refuses is not."""
    assert is_outage(error) is is_one
    wrapped = RuntimeError("Failed to reach API")
    wrapped.__cause__ = error
    assert is_outage(wrapped) is is_one
