"""What a run has open from its first check to its end: one store, one provider, one reading of the ledger."""

import asyncio
from datetime import UTC, datetime, timedelta

from prefect_imagegen.app.config.resolve import open_provider
from prefect_imagegen.app.config.settings import StoreSettings
from prefect_imagegen.ports import Balance, ObjectStore, Provider
from prefect_imagegen.providers.settings import ProviderSettings
from prefect_imagegen.store.ledger.reading import LedgerReading, read_again, read_ledger
from prefect_imagegen.store.object_store import open_object_store

_CHECK_HOLDS = timedelta(seconds=60)
"""How long the answer to the last check tells the API's time: a computer may sleep between plan and start."""


class OpenRun:
    """The open store, provider and ledger of one run. Close it with `aclose`, in the event loop that it was used in.

    Raises RefusedError for a store that cannot be opened. Nothing is read, and nobody is asked, before it is needed.
    """

    def __init__(self, store: StoreSettings, patience: float) -> None:
        """`patience`: seconds for one call of the provider, and to wait for the first healthy worker of a pool."""
        self.store = open_object_store(store.url, store.storage_options)
        self.loop = asyncio.get_running_loop()
        """The event loop that its connections belong to."""
        self.is_closed = False
        self.is_executed = False
        """Whether an execution uses it, and will close it."""
        self._patience = patience
        self._provider: Provider | None = None
        self._is_ready = False
        self._reading: LedgerReading | None = None
        self._checked_at: datetime | None = None

    def connect(self, settings: ProviderSettings) -> Provider:
        """The run's provider; the first call makes it, from resolved settings. Nothing is sent."""
        if self._provider is None:
            self._provider = open_provider(settings, self._patience)
        return self._provider

    async def reach(self, settings: ProviderSettings) -> Provider:
        """The run's provider, once its first worker is healthy. Raises ProviderError, RefusedError."""
        provider = self.connect(settings)
        if not self._is_ready:
            await provider.open()
            self._is_ready = True
        return provider

    async def check(self, settings: ProviderSettings) -> Balance:
        """The balance of the account, which also proves its key; unknown where there is none. Raises ProviderError."""
        provider = self.connect(settings)
        if provider.account is None or not provider.abilities.balance:
            return Balance(None)
        balance = await provider.account.check()
        self._checked_at = datetime.now(UTC)
        return balance

    @property
    def is_check_young(self) -> bool:
        """Whether the account was checked a moment ago, so that the provider knows the API's time."""
        return self._checked_at is not None and datetime.now(UTC) - self._checked_at < _CHECK_HOLDS

    async def read_ledger(self, store: ObjectStore | None = None) -> LedgerReading:
        """The ledger as it is now; what was read before is read again only if something was written since.

        `store`: the run's store behind another face, such as one that is patient. Raises StoreError.
        """
        store = store or self.store
        self._reading = await (read_ledger(store) if self._reading is None else read_again(store, self._reading))
        return self._reading

    async def aclose(self) -> None:
        """Close the connections; closing again does nothing."""
        self.is_closed = True
        provider, self._provider = self._provider, None
        if provider is not None:
            await provider.aclose()
        self.store.close()
