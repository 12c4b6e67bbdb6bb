"""The faults that the adversary itself has found, each to be put back into the product. See `mutations`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from prefect_imagegen.core.ledger.events import KnownAttempt
from prefect_imagegen.executor.context import ExecutorContext
from prefect_imagegen.executor.pending import PendingRequest
from prefect_imagegen.providers.segmind import history as segmind_history
from prefect_imagegen.providers.segmind.history_pages import Page
from prefect_imagegen.store.heartbeat import Heartbeat
from prefect_imagegen.store.ledger.accounts import StoreAccounts

from .world.session import UploadingReferences


@contextmanager
def outputs_on_two_pages() -> Iterator[None]:
    """History rows are distinguished by their ids alone, so that a page of further outputs counts as a repetition."""
    row_ids = property(
        lambda self: frozenset((record.request_id, ()) for record in self.records if record and record.request_id)
    )
    with patch.object(Page, "row_id_set", row_ids), moving_listing():
        yield


def moving_listing() -> AbstractContextManager[Any]:
    """A listing to which calls are added while it is read is not read again."""
    return patch.object(segmind_history, "_LISTING_TRIES", 1)


def last_beat_fails_at_once() -> AbstractContextManager[Any]:
    """A store error at the last heartbeat turns a run that has ended into one that was stopped."""
    original = Heartbeat.beat

    async def beat(self: Heartbeat, *, ended: bool = False, store: object = None) -> None:
        await original(self, ended=ended)

    return patch.object(Heartbeat, "beat", beat)


def uploads_are_waited_for() -> AbstractContextManager[Any]:
    """A run that is told to stop waits for uploads that hang."""
    original = ExecutorContext.unless_interrupted

    async def unless_interrupted(self: ExecutorContext, call: Any, kind: str, grace: float) -> Any:
        is_upload = getattr(call, "__qualname__", "") == UploadingReferences.addresses.__qualname__
        return await call if is_upload else await original(self, call, kind, grace)

    return patch.object(ExecutorContext, "unless_interrupted", unless_interrupted)


def fetched_is_own() -> AbstractContextManager[Any]:
    """Calls of another account that a key can fetch count as its own account's calls."""

    def account_of(self: ExecutorContext, row: PendingRequest) -> str | None:
        del row
        return self.accounts.name

    return patch.object(ExecutorContext, "_account_of", account_of)


def unplaced_stays_unplaced() -> AbstractContextManager[Any]:
    """A key whose account could not be determined counts as another account's for ever."""
    original = StoreAccounts.ownership

    async def ownership(self: StoreAccounts, attempt: KnownAttempt) -> str:
        account = attempt.account and self._resolved(attempt.account)
        if account is None or account in (self._resolved(str(self.name)), *self._account_of.values()):
            return await original(self, attempt)
        sender = attempt.record.claim.fingerprint if attempt.record else None
        return "same" if sender == self.fingerprint else "other"

    return patch.object(StoreAccounts, "ownership", ownership)
