"""Holding slots of a Prefect global concurrency limit, with a wait that ends when the run stops.

Prefect's own `concurrency` goes on asking after it is cancelled, and the process does not end before the slots are
granted; so this module asks the server itself.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse

from prefect_imagegen.core.policy.outages import Outage
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.tasks.outages import server

_LEASE_S = 300.0
_RENEW_EVERY_S = 75.0
"""A lease survives three failed renewals."""
_LOCKED = 423
_ASK_AGAIN_S = 5.0
_LOG_AFTER_S = 60.0
_GRACE_S = 5.0
"""Seconds that the server has to answer when the run stops or gives its slots back."""
_logger = logging.getLogger(__name__)


@asynccontextmanager
async def held_slots(name: str, slots: int, control: RunControl) -> AsyncIterator[bool]:
    """Hold slots of a limit inside the `with` block. Yields False, without slots, if the run stops before.

    A server that is away is asked again. A lease that cannot be renewed does not cancel calls, since those are paid.
    """
    async with get_client() as client:
        lease = await _acquire(client, name, slots, control)
        if lease is None:
            yield False
            return
        renewing = asyncio.create_task(_renew(client, lease))
        try:
            yield True
        finally:
            renewing.cancel()
            await _give_back(client, lease, name)


async def _acquire(client: PrefectClient, name: str, slots: int, control: RunControl) -> UUID | None:
    """Ask until the slots are granted; None if the run stops first."""
    clock = asyncio.get_running_loop()
    waiting = Outage(patience=_LOG_AFTER_S)
    while not control.stopped:
        asking = asyncio.create_task(_ask(client, name, slots))
        await control.unless_stopped(asyncio.wait((asking,)))
        await asyncio.wait((asking,), timeout=_GRACE_S)
        if not asking.done():
            asking.cancel()  # slots that it may still get end with their lease
            return None
        answer = asking.result()
        if isinstance(answer, UUID):
            waited = waiting.worked(clock.time())
            if waited is not None:
                _logger.warning("%s slots of the limit %r came after %.0f s", slots, name, waited)
            return answer
        pause, why = answer
        waited = waiting.failed(clock.time())
        if waited is not None:
            _logger.warning(
                "Waiting for %s slots of the limit %r for %.0f s: %s. It goes on waiting for them until the run stops.",
                *(slots, name, waited, why),
            )
        await control.sleep(pause)
    return None


async def _ask(client: PrefectClient, name: str, slots: int) -> UUID | tuple[float, str]:
    """Ask once: the lease, or the seconds after which to ask again and why."""
    try:
        response = await client.increment_concurrency_slots_with_lease([name], slots, "concurrency", _LEASE_S)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == _LOCKED:
            server().worked()
            return float(error.response.headers.get("retry-after", _ASK_AGAIN_S)), "they are taken"
        server().failed(f"Slots of the limit {name!r} could not be asked for", error)
        return _ASK_AGAIN_S, f"the Prefect server answers {error.response.status_code}"
    except httpx.HTTPError as error:
        server().failed(f"Slots of the limit {name!r} could not be asked for", error)
        return _ASK_AGAIN_S, f"the Prefect server gives no answer: {type(error).__name__}"
    server().worked()
    granted = ConcurrencyLimitWithLeaseResponse.model_validate(response.json())
    # A limit that does not exist must not mean "no limit".
    return granted.lease_id if granted.limits else (_ASK_AGAIN_S, "there is no such limit any more")


async def _renew(client: PrefectClient, lease: UUID) -> None:
    while True:
        await asyncio.sleep(_RENEW_EVERY_S)
        try:
            await client.renew_concurrency_lease(lease, _LEASE_S)
        except httpx.HTTPError as error:
            server().failed("Slots that are held could not be renewed, and end with their lease", error)
        else:
            server().worked()


async def _give_back(client: PrefectClient, lease: UUID, name: str) -> None:
    try:
        await asyncio.wait_for(client.release_concurrency_slots_with_lease(lease), _GRACE_S)
    except (httpx.HTTPError, TimeoutError) as error:
        server().failed(f"Slots of the limit {name!r} could not be given back, and end with their lease", error)
