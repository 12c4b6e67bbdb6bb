"""`verify`: check that the ledger and the images of a store agree, and repair what does not."""

import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import resolve_provider
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.access import existing_store, is_without_account, kind_of, paid_provider
from prefect_imagegen.app.maintenance.repair import Repairer
from prefect_imagegen.app.maintenance.verification import Verification
from prefect_imagegen.app.maintenance.verify_report import VerifyReport
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger


async def verify(
    settings: StoreSettings,
    provider: ProviderSettings,
    options: RunOptions,
    *,
    repair: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> VerifyReport:
    """Read and decode every image of a store, and compare it with the ledger; without `repair` nothing is written.

    `repair`: if there is a key, lost images are first fetched again from the provider by their request ids; nothing is
    bought. `on_progress` is called with the number of images read so far. Raises RefusedError.
    """
    resolved = resolve_provider(provider, options)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(existing_store(settings))
        clock, process = SystemClock(), Process.this(secrets.token_hex(8))
        run_id = f"{clock.now():%Y%m%dT%H%M%S}-verify-{process.nonce[:4]}"
        view = await load_ledger(store)
        ledger = StoreLedger(store, view, run_id=run_id, nonce=process.nonce, clock=clock)
        without_account = await is_without_account(store, resolved)
        repairer = None
        if repair:
            has_account = not without_account and _has_key(resolved)
            source = await stack.enter_async_context(paid_provider(resolved, options.deadline)) if has_account else None
            outputs_live = entry_of(provider.provider).abilities.outputs_live
            is_sandbox = await kind_of(store) == "sandbox"
            repairer = Repairer(store, ledger, source, run_id, clock, outputs_live, is_sandbox=is_sandbox)
        heartbeat = Heartbeat(store, run_id, process, clock)
        if repair:
            await heartbeat.ask_time()
        run_liveness = StoreRunLiveness(store, heartbeat, process, clock)
        verification = Verification(store, view, ledger, run_liveness, repairer, on_progress)
        verification.report.without_account = without_account
        verification.report.was_asked = repairer is not None and repairer.has_source
        try:
            await verification.run()
        finally:
            # Record the repairs that were done, even if the rest failed.
            await ledger.flush()
        return verification.report


def _has_key(resolved: ProviderSettings) -> bool:
    """Whether there is an API, and a key for it, from which lost images can be fetched."""
    return entry_of(resolved.provider).abilities.claims and resolved.api_key is not None
