"""What a run session is connected to: the provider, the references, and the accounts behind the API key."""

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import SecretStr

from prefect_imagegen.app.planning.prepare import PlannedRun, RunSpec
from prefect_imagegen.app.planning.references import account_of, is_local, reading_options, transport_of
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.inputs.references.cache import ReferenceCache
from prefect_imagegen.inputs.references.reader import ReferenceReader
from prefect_imagegen.inputs.references.routes import ReferenceRoutes, RouteOptions
from prefect_imagegen.ports import Accounts, HistoryRecord, ObjectStore, Provider
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.ledger.accounts import NoAccounts, open_accounts

_CHECK_TIMEOUT_S = 30.0
_NO_GATEWAY = "http://127.0.0.1:0"
"""The endpoint of a sandbox run that has nothing to ask for: nobody listens there."""


def _is_embedded(planned_run: PlannedRun) -> bool:
    """Whether the run's endpoint is a gateway that its session starts itself."""
    settings = planned_run.spec.provider
    return entry_of(settings.provider).is_embedded(settings)


async def reached_settings(planned_run: PlannedRun, stack: AsyncExitStack) -> ProviderSettings:
    """The settings of the provider with the address of its endpoint.

    The gateway of a sandbox run without an address is started here, for the time of the session.
    """
    settings = planned_run.spec.provider
    if not _is_embedded(planned_run):
        return settings
    url = await _gateway_url(stack) if planned_run.summary.to_make else _NO_GATEWAY
    stack.push_async_callback(planned_run.aclose)  # connections end before the gateway that they lead to
    return replace(settings, base_url=url, history_url=None, api_key=SecretStr("sandbox"))


async def _gateway_url(stack: AsyncExitStack) -> str:
    """The address of a sandbox gateway that is started for the time of the session."""
    # It loads a web framework and a server, which no other run needs.
    from prefect_imagegen.gateway.server import EmbeddedGateway  # noqa: PLC0415
    from prefect_imagegen.gateway.settings import GatewaySettings  # noqa: PLC0415

    gateway = EmbeddedGateway(GatewaySettings(allow_loopback=True, price_usd=0.0))
    starting = asyncio.ensure_future(asyncio.to_thread(gateway.start))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting  # the thread cannot be cancelled, and would serve for ever
        await asyncio.to_thread(gateway.stop)
        raise
    stack.push_async_callback(asyncio.to_thread, gateway.stop)
    return gateway.url


async def open_provider(planned_run: PlannedRun, settings: ProviderSettings, control: RunControl) -> Provider:
    """The run's provider, once its first worker is healthy; if none becomes healthy, the run is stopped."""
    provider = planned_run.open_run.connect(settings)
    provider.expect(sandbox=planned_run.kind == "sandbox")
    try:
        await planned_run.open_run.reach(settings)
    except ProviderError as error:
        control.stop(error.kind, error.message)
    return provider


async def open_references(
    spec: RunSpec, settings: ProviderSettings, provider: Provider, store: ObjectStore, stack: AsyncExitStack
) -> ReferenceRoutes:
    """The routes by which the run's references reach the provider; closed with the session."""
    cache = await stack.enter_async_context(ReferenceCache())
    reading = reading_options(spec.options, settings, spec.manifest, spec.store)
    reader = await stack.enter_async_context(ReferenceReader(reading, cache))
    routes = RouteOptions(
        transport_of(settings, spec.options),
        account_of(settings),
        is_local(settings),
        bytes_only=not provider.abilities.reference_urls,
        check=spec.options.check_references,
    )
    return ReferenceRoutes(reader, provider, routes, store if spec.options.keep_references else None)


async def accounts_behind(
    settings: ProviderSettings, planned_run: PlannedRun, provider: Provider, store: ObjectStore, view: LedgerView
) -> Accounts:
    """The accounts of the store, for the API key in use. Raises StoreError.

    GPU workers have no accounts, and a session's own sandbox knows nothing of earlier sessions.
    """
    if not provider.abilities.claims or settings.api_key is None:
        return NoAccounts()
    if _is_embedded(planned_run):
        return NoAccounts(forgets=True)
    open_run, account = planned_run.open_run, provider.account
    if provider.abilities.balance and not open_run.is_check_young:
        with suppress(ProviderError, TimeoutError):
            # The answer carries the API's time, which the first claims record.
            await asyncio.wait_for(open_run.check(settings), _CHECK_TIMEOUT_S)
    return await open_accounts(
        store,
        view,
        api_key=settings.api_key.get_secret_value(),
        base_url=entry_of(settings.provider).url(settings),
        provider=settings.provider,
        look_up=account.record if account is not None and provider.abilities.history else _no_history,
        history_complete_until=datetime.now(UTC) - timedelta(seconds=planned_run.spec.options.history_lag),
    )


async def _no_history(_: str) -> HistoryRecord | None:
    """Prove nothing about a call: the provider keeps no history."""
    raise ProviderError("unknown", "the provider keeps no request history")
