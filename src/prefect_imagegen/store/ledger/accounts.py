"""Which accounts have paid in a store: `ledger/accounts/<fingerprint>.json`, one file for each API key that was used.

The first key of a store founds an account, named by its fingerprint. Another key belongs to an account if it can look
up one of the account's calls by its id; if it certainly cannot, for any account, it founds one of its own. If neither
is certain, the key stays without a record, and the next run tries again.
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

_LOOK_UP_TIMEOUT_S = 30.0
_CLAIMS_READ = 200
"""How many of the newest claims are read to find calls of an account that no event names."""
LookUp = Callable[[str], Awaitable[HistoryRecord | None]]
"""Looks one call up in the request history by its request_id; None if the history does not have it."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What a store records of one API key: its account, the provider and origin it was used at.

    `proof`: the request_id of the call that showed that it belongs to the account; None for an account's first key.
    """

    fingerprint: str
    account: str
    provider: str
    origin: str
    proof: str | None = None


class NoAccounts:
    """A `ports.Accounts` for providers without accounts: GPU workers, and the embedded sandbox, which `forgets`."""

    name: str | None = None
    fingerprint: str | None = None

    def __init__(self, *, forgets: bool = False) -> None:
        self.forgets = forgets

    async def ownership(self, attempt: KnownAttempt) -> Ownership:  # noqa: ARG002 - the port's signature
        """Always `same`: without accounts every call is ours."""
        return "same"

    def shows(self, attempt: KnownAttempt, request_ids: Collection[str]) -> bool:  # noqa: ARG002 - the same
        """Always true: without accounts nothing has to be proven."""
        return True


class StoreAccounts:
    """A `ports.Accounts` of one store, for the API key in use. Get one from `open_accounts`."""

    forgets = False

    def __init__(
        self, view: LedgerView, fingerprint: str, name: str, keys: Collection[KeyRecord], look_up: LookUp
    ) -> None:
        self.fingerprint: str | None = fingerprint
        self.name: str | None = name
        self.keys = tuple(keys)
        self._view = view
        self._look_up = look_up
        self._account_of = {key.fingerprint: key.account for key in keys}
        self._proven: dict[str, bool] = {}

    async def ownership(self, attempt: KnownAttempt) -> Ownership:
        """Whose call an attempt is: `same` key, `linked` (another key of our account), or `other` account.

        An attempt that names no account (older stores) is linked if we can look up a call of its run.
        """
        sender = attempt.record.claim.fingerprint if attempt.record else None
        if sender is not None and sender == self.fingerprint:
            return "same"
        if attempt.account is not None:
            account = self._resolved(attempt.account)
            if account == self._resolved(str(self.name)):
                return "linked"
            # A key without a record of its own is linked to ours if ours can look up one of its calls.
            is_placed = account in self._account_of.values()
            return "linked" if not is_placed and await self._is_ours(account, account=account) else "other"
        return "linked" if await self._is_ours(str(attempt.run_id), run_id=attempt.run_id) else "other"

    def shows(self, attempt: KnownAttempt, request_ids: Collection[str]) -> bool:
        """Whether any of these request ids is known as a call of the attempt's account (or run, if it names none)."""
        if attempt.account is None:
            return bool(self._view.calls_among(request_ids, run_id=attempt.run_id))
        account = self._resolved(attempt.account)
        names = [name for name in {account, *self._account_of} if self._resolved(name) == account]
        return any(self._view.calls_among(request_ids, account=name) for name in names)

    def _resolved(self, account: str) -> str:
        """The account behind a name in the ledger, which may be the fingerprint of a key that was linked later."""
        return self._account_of.get(account, account)

    async def _is_ours(self, name: str, *, account: str | None = None, run_id: str | None = None) -> bool:
        """Whether the key in use can look up a call of an account, or of a run; `name` is the cache key."""
        if name not in self._proven:
            calls = self._view.newest_calls(account=account, run_id=run_id)
            verdicts = [await _verdict(self._look_up, request_id) for request_id, _ in calls]
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
    look_up: LookUp,
    history_complete_until: datetime,
) -> StoreAccounts:
    """The accounts of a store, for one API key; a new key is recorded, if it is clear which account it belongs to.

    `look_up` asks the request history for one call. Calls from before `history_complete_until` are certainly in the
    history; younger ones may be missing. Raises StoreError.
    """
    fingerprint = await asyncio.to_thread(fingerprint_of, api_key, base_url)
    keys = {key.fingerprint: key for key in await known_keys(store)}
    if fingerprint not in keys:
        place: _Place | None = _Place(fingerprint)
        if keys:
            accounts = {key.account for key in keys.values()}
            place = await _place(fingerprint, store, view, accounts, look_up, history_complete_until)
        if place is None:
            return StoreAccounts(view, fingerprint, fingerprint, list(keys.values()), look_up)
        record = KeyRecord(fingerprint, place.account, provider, origin_of(base_url), place.proof)
        path = layout.account(fingerprint)
        if not await store.create(path, json.dumps(asdict(record)).encode(), "application/json"):
            record = _key_record(path, await store.get(path))  # the listing lagged and did not show it
        keys[fingerprint] = record
    return StoreAccounts(view, fingerprint, keys[fingerprint].account, list(keys.values()), look_up)


async def known_keys(store: ObjectStore) -> list[KeyRecord]:
    """The API keys that a store has on record, sorted by fingerprint. Raises StoreError that names a damaged file."""
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
    """The account that a key belongs to, and the request_id that proves it (None for an account of its own)."""

    account: str
    proof: str | None = None


async def _place(
    fingerprint: str,
    store: ObjectStore,
    view: LedgerView,
    accounts: Collection[str],
    look_up: LookUp,
    history_complete_until: datetime,
) -> _Place | None:
    """The account of a key that is not on record; None if that is not certain."""
    is_certain = True
    for account in sorted(accounts):
        # That a recent call is not in the history proves nothing: the history lags.
        settled, newest = (
            view.newest_calls(account=account, before=history_complete_until),
            view.newest_calls(account=account),
        )
        claimed = None if newest else await _claimed(store, account)
        if claimed == []:
            continue  # the account has no calls: nothing to recognise it by, and nothing of it to protect
        for request_id in claimed or [name for name, _ in settled or newest]:
            verdict = await _verdict(look_up, request_id) if request_id else None
            if verdict:
                return _Place(account, request_id)
            is_certain = is_certain and verdict is False
        is_certain = is_certain and bool(settled)
    return _Place(fingerprint) if is_certain else None


async def _claimed(store: ObjectStore, account: str) -> list[str | None]:
    """The request ids of an account's newest claims, None for each call that got none.

    For accounts that no event names, because their runs died before they wrote any. Ends with None if there are more
    claims than were read.
    """
    infos = [info for info in await store.list(layout.CLAIMS) if info.path.rpartition("/")[2][:-5].isdigit()]
    infos.sort(key=lambda info: (info.modified is not None, info.modified, info.path), reverse=True)
    request_ids: list[str | None] = []
    for info in infos[:_CLAIMS_READ]:
        if json_object(info.path, await store.get(info.path)).get("account") == account:
            data = await store.get(f"{info.path[:-5]}.id.json")
            request_ids.append(None if data is None else str(json_object(info.path, data).get("request_id")))
    return request_ids if len(infos) <= _CLAIMS_READ else [*request_ids, None]


async def _verdict(look_up: LookUp, request_id: str) -> bool | None:
    """Whether the key in use can look up a call; None if the history gave no answer."""
    try:
        return await asyncio.wait_for(look_up(request_id), _LOOK_UP_TIMEOUT_S) is not None
    except (ProviderError, TimeoutError):
        return None
