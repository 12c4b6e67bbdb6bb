"""Which accounts have paid in a store: `ledger/accounts/<fingerprint>.json`, one for each key that was used.

The first key of a store founds an account, named by its fingerprint. Another key belongs to an account if it can look
up a call of it by its id; if all such calls are certainly unknown to it, it founds another one. Everything in between
is undetermined: linked to nothing, and asked again by the next run.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.ledger.accounts import fingerprint_of, origin_of
from prefect_imagegen.core.ledger.events import KnownAttempt
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.ports import HistoryRecord, ObjectStore, Ownership
from prefect_imagegen.store.ledger.files import json_object

_ASK_WITHIN_S = 30.0
_CLAIMS_READ = 200
"""So many claims tell whose calls a store holds that no event tells of."""
Recorded = Callable[[str], Awaitable[HistoryRecord | None]]


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as the store knows it: the account it belongs to, where it was used, and the call that proves it."""

    fingerprint: str
    account: str
    provider: str
    origin: str
    proof: str | None = None


class NoAccounts:
    """A `ports.Accounts` for backends without any: GPU workers, and an embedded sandbox, which `forgets`."""

    name: str | None = None
    fingerprint: str | None = None

    def __init__(self, *, forgets: bool = False) -> None:
        self.forgets = forgets

    async def ownership(self, attempt: KnownAttempt) -> Ownership:  # noqa: ARG002 - the port's signature
        """Ours: there is nobody else."""
        return "same"

    def shows(self, attempt: KnownAttempt, request_ids: Collection[str]) -> bool:  # noqa: ARG002 - the same
        """Nothing has to be proven."""
        return True


class StoreAccounts:
    """A `ports.Accounts` of one store, seen from one key. Get one from `open_accounts`."""

    forgets = False

    def __init__(
        self, view: LedgerView, fingerprint: str, name: str, keys: Collection[KeyRecord], recorded: Recorded
    ) -> None:
        self.fingerprint: str | None = fingerprint
        self.name: str | None = name
        self.keys = tuple(keys)
        self._view = view
        self._recorded = recorded
        self._account_of = {key.fingerprint: key.account for key in keys}
        self._proven: dict[str, bool] = {}

    async def ownership(self, attempt: KnownAttempt) -> Ownership:
        """Whose call an attempt is; one of a store that named no accounts belongs to whoever can look up its run's."""
        sender = attempt.record.claim.fingerprint if attempt.record else None
        if sender is not None and sender == self.fingerprint:
            return "same"
        if attempt.account is not None:
            account = self._resolved(attempt.account)
            if account == self._resolved(str(self.name)):
                return "linked"
            # A key that could not be placed is placed by what this one can look up of it.
            is_placed = account in self._account_of.values()
            return "linked" if not is_placed and await self._is_ours(account, account=account) else "other"
        return "linked" if await self._is_ours(str(attempt.run_id), run_id=attempt.run_id) else "other"

    def shows(self, attempt: KnownAttempt, request_ids: Collection[str]) -> bool:
        """Whether some request ids of a listing are known as calls of the attempt's account, or of its run."""
        if attempt.account is None:
            return bool(self._view.calls_among(request_ids, run_id=attempt.run_id))
        account = self._resolved(attempt.account)
        names = [name for name in {account, *self._account_of} if self._resolved(name) == account]
        return any(self._view.calls_among(request_ids, account=name) for name in names)

    def _resolved(self, account: str) -> str:
        """The account that a name stands for: keys that were linked later had used their own fingerprint."""
        return self._account_of.get(account, account)

    async def _is_ours(self, name: str, *, account: str | None = None, run_id: str | None = None) -> bool:
        """Whether the key in use can look up a call of an account, or of a run."""
        if name not in self._proven:
            calls = self._view.newest_calls(account=account, run_id=run_id)
            verdicts = [await _verdict(self._recorded, one) for one, _ in calls]
            if any(verdicts) or None not in verdicts:
                self._proven[name] = any(verdicts)
        return self._proven.get(name, False)


async def open_accounts(
    store: ObjectStore,
    view: LedgerView,
    *,
    api_key: str,
    base_url: str,
    provider: str,
    recorded: Recorded,
    settled_before: datetime,
) -> StoreAccounts:
    """The accounts of a store, and which one a key belongs to; a new key is told of there, if that can be known.

    `recorded` asks the history for one call. Calls from before `settled_before` are certainly in it, younger ones may
    not be yet. Raises StoreError.
    """
    fingerprint = await asyncio.to_thread(fingerprint_of, api_key, base_url)
    keys = {key.fingerprint: key for key in await known_keys(store)}
    if fingerprint not in keys:
        place: _Place | None = _Place(fingerprint)
        if keys:
            accounts = {key.account for key in keys.values()}
            place = await _place(fingerprint, store, view, accounts, recorded, settled_before)
        if place is None:
            return StoreAccounts(view, fingerprint, fingerprint, list(keys.values()), recorded)
        record = KeyRecord(fingerprint, place.account, provider, origin_of(base_url), place.proof)
        path = layout.account(fingerprint)
        if not await store.create(path, json.dumps(asdict(record)).encode(), "application/json"):
            record = _key_record(path, await store.get(path))  # a listing that lags had not shown it
        keys[fingerprint] = record
    return StoreAccounts(view, fingerprint, keys[fingerprint].account, list(keys.values()), recorded)


async def known_keys(store: ObjectStore) -> list[KeyRecord]:
    """The keys that a store knows, by fingerprint. Raises StoreError that names a damaged file."""
    infos = await store.list(layout.ACCOUNTS)
    return [_key_record(info.path, await store.get(info.path)) for info in infos if info.path.endswith(".json")]


def _key_record(path: str, data: bytes | None) -> KeyRecord:
    content: dict[str, Any] = json_object(path, data)
    return KeyRecord(
        path.rsplit("/", 1)[1][: -len(".json")],
        str(content.get("account")),
        str(content.get("provider")),
        str(content.get("origin")),
        content.get("proof"),
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """The account that a key belongs to, and the call that proves it; none for an account of its own."""

    account: str
    proof: str | None = None


async def _place(
    fingerprint: str,
    store: ObjectStore,
    view: LedgerView,
    accounts: Collection[str],
    recorded: Recorded,
    settled_before: datetime,
) -> _Place | None:
    """Where an unknown key belongs; None if that cannot be told."""
    is_certain = True
    for account in sorted(accounts):
        # Calls that are too young for the history prove nothing by their absence.
        settled, newest = view.newest_calls(account=account, before=settled_before), view.newest_calls(account=account)
        claimed = None if newest else await _claimed(store, account)
        if claimed == []:
            continue  # it has claimed nothing: there is nothing to know it by, and nothing of it to protect
        for request_id in claimed or [name for name, _ in settled or newest]:
            verdict = await _verdict(recorded, request_id) if request_id else None
            if verdict:
                return _Place(account, request_id)
            is_certain = is_certain and verdict is False
        is_certain = is_certain and bool(settled)
    return _Place(fingerprint) if is_certain else None


async def _claimed(store: ObjectStore, account: str) -> list[str | None]:
    """What the newest claims of an account led to: request ids, or None for a call that got none.

    Asked where no event tells of the account: its runs died before they wrote any down.
    """
    infos = [info for info in await store.list(layout.CLAIMS) if info.path.rpartition("/")[2][:-5].isdigit()]
    infos.sort(key=lambda info: (info.modified is not None, info.modified, info.path), reverse=True)
    found: list[str | None] = []
    for info in infos[:_CLAIMS_READ]:
        if json_object(info.path, await store.get(info.path)).get("account") == account:
            data = await store.get(f"{info.path[:-5]}.id.json")
            found.append(None if data is None else str(json_object(info.path, data).get("request_id")))
    return found if len(infos) <= _CLAIMS_READ else [*found, None]


async def _verdict(recorded: Recorded, request_id: str) -> bool | None:
    """Whether the key in use can look up a call; None where that cannot be told."""
    try:
        return await asyncio.wait_for(recorded(request_id), _ASK_WITHIN_S) is not None
    except (ProviderError, TimeoutError):
        return None
