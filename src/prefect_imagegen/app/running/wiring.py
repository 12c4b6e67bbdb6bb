"""What a session needs from outside, opened for its time: a gateway of its own, the backend, and the references."""

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import SecretStr

from prefect_imagegen.app.config.resolve import make_pool
from prefect_imagegen.app.config.settings import BackendSettings
from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec
from prefect_imagegen.app.planning.references import account_of, is_local, reading_options, transport_of
from prefect_imagegen.core.errors import BackendError
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.gateway.server import EmbeddedGateway
from prefect_imagegen.gateway.settings import GatewaySettings
from prefect_imagegen.inputs.references.cache import ReferenceCache
from prefect_imagegen.inputs.references.reader import ReferenceReader
from prefect_imagegen.inputs.references.routes import ReferenceRoutes, RouteOptions
from prefect_imagegen.ports import Accounts, Backend, ObjectStore
from prefect_imagegen.providers.pool.provider import Pool
from prefect_imagegen.providers.segmind.provider import SEGMIND_URL
from prefect_imagegen.store.ledger.accounts import NoAccounts, open_accounts

_ASK_WITHIN_S = 30.0


async def with_gateway(settings: BackendSettings, stack: AsyncExitStack) -> BackendSettings:
    """The settings; the sandbox backend gets a gateway of its own for the time of the session."""
    if settings.kind != "sandbox" or settings.base_url:
        return settings
    gateway = EmbeddedGateway(GatewaySettings(allow_loopback=True, price_usd=0.0))
    starting = asyncio.ensure_future(asyncio.to_thread(gateway.start))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting  # a thread cannot be cancelled: it would serve for ever
        await asyncio.to_thread(gateway.stop)
        raise
    stack.push_async_callback(asyncio.to_thread, gateway.stop)
    return replace(settings, base_url=gateway.url, history_url=None, api_key=SecretStr("sandbox"))


async def open_backend(
    prepared: PlannedRun, settings: BackendSettings, control: RunControl, stack: AsyncExitStack
) -> Pool:
    """The backend, once its first worker is healthy; the run stops where none becomes so."""
    backend = make_pool(settings, prepared.job.options.deadline)
    backend.expect(sandbox=prepared.kind == "sandbox")
    stack.push_async_callback(backend.aclose)
    try:
        await backend.open()
    except BackendError as error:
        control.stop(error.kind, error.message)
    return backend


async def open_references(
    job: RunSpec, settings: BackendSettings, backend: Backend, store: ObjectStore, stack: AsyncExitStack
) -> ReferenceRoutes:
    """How the job's references reach the backend, for the time of the session."""
    cache = await stack.enter_async_context(ReferenceCache())
    reading = reading_options(job.options, settings, job.manifest, job.store)
    reader = await stack.enter_async_context(ReferenceReader(reading, cache))
    routes = RouteOptions(
        transport_of(settings, job.options),
        account_of(settings),
        is_local(settings),
        bytes_only=backend.free,
        check=job.options.check_references,
    )
    return ReferenceRoutes(reader, backend, routes, store if job.options.keep_references else None)


async def accounts_behind(
    settings: BackendSettings, prepared: PlannedRun, backend: Backend, store: ObjectStore, view: LedgerView
) -> Accounts:
    """Whose calls the store holds, seen from the key in use. Raises StoreError.

    GPU workers have no accounts, and the sandbox of a session knows nothing of earlier ones.
    """
    if settings.kind == "pool" or settings.api_key is None:
        return NoAccounts()
    if settings.kind == "sandbox" and not prepared.job.backend.base_url and not prepared.job.options.base_url:
        return NoAccounts(forgets=True)
    with suppress(BackendError, TimeoutError):
        await asyncio.wait_for(backend.check(), _ASK_WITHIN_S)  # for the API's time, which the first claims are to know
    return await open_accounts(
        store,
        view,
        api_key=settings.api_key.get_secret_value(),
        base_url=settings.base_url or SEGMIND_URL,
        provider=settings.kind,
        recorded=backend.record,
        settled_before=datetime.now(UTC) - timedelta(seconds=prepared.job.options.history_lag),
    )
