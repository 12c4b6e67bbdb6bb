"""`verify`: check that the ledger and the images of a store agree, and repair what does not."""

import json
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.app.config.resolve import resolve_provider
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.app.maintenance.access import existing_store, paid_provider
from prefect_imagegen.app.maintenance.repair import Repairer
from prefect_imagegen.app.maintenance.verification import Verification
from prefect_imagegen.app.maintenance.verify_report import VerifyReport
from prefect_imagegen.core import layout
from prefect_imagegen.providers.limits import SystemClock
from prefect_imagegen.providers.registry import entry_of
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.heartbeat import Heartbeat, Process, StoreRunLiveness
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import load_ledger
from prefect_imagegen.store.object_store import FsspecObjectStore


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
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(existing_store(settings))
        clock, process = SystemClock(), Process.this(secrets.token_hex(8))
        run_id = f"{clock.now():%Y%m%dT%H%M%S}-verify-{process.nonce[:4]}"
        view = await load_ledger(store)
        ledger = StoreLedger(store, view, run_id=run_id, nonce=process.nonce, clock=clock)
        repairer = None
        if repair:
            has_account = await _has_account(store, provider, options)
            source = await stack.enter_async_context(paid_provider(provider, options)) if has_account else None
            outputs_live = entry_of(provider.provider).abilities.outputs_live
            repairer = Repairer(store, ledger, source, run_id, clock, outputs_live)
        heartbeat = Heartbeat(store, run_id, process, clock)
        if repair:
            await heartbeat.ask_time()
        run_liveness = StoreRunLiveness(store, heartbeat, process, clock)
        verification = Verification(store, view, ledger, run_liveness, repairer, on_progress)
        try:
            await verification.run()
        finally:
            # Record the repairs that were done, even if the rest failed.
            await ledger.flush()
        return verification.report


async def _has_account(store: FsspecObjectStore, provider: ProviderSettings, options: RunOptions) -> bool:
    """Whether lost images can be fetched: there is a key, and a sandbox store is not repaired from the real API."""
    about = json.loads(await store.get(layout.STORE_FILE) or b"{}")
    resolved = resolve_provider(provider, options)
    return (
        entry_of(resolved.provider).abilities.claims
        and resolved.api_key is not None
        and (about.get("kind") == "real" or resolved.base_url is not None)
    )
