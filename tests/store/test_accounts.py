"""Whose calls a store holds: accounts are told apart by what a key can look up, and in doubt nobody's."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError, StoreError
from prefect_imagegen.core.ledger.accounts import fingerprint_of, origin_of
from prefect_imagegen.core.ledger.events import Claim, ClaimRecord, Event, KnownAttempt
from prefect_imagegen.core.ledger.fold import LedgerView, events_table, fold
from prefect_imagegen.ports import HistoryRecord
from prefect_imagegen.store.ledger.accounts import KeyRecord, NoAccounts, known_keys, open_accounts

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
SETTLED = NOW - timedelta(hours=2)
URL = "https://api.segmind.com"
A, B, C = "SG_aaaaaaaaaaaaaaaa", "SG_bbbbbbbbbbbbbbbb", "SG_cccccccccccccccc"
PRINT = {key: fingerprint_of(key, URL) for key in (A, B, C)}


class History:
    """What one key can look up: some request ids, while others fail in some way."""

    def __init__(self, *own: str, failing: str = "") -> None:
        self.own = set(own)
        self.failing = failing
        self.asked: list[str] = []

    async def __call__(self, request_id: str) -> HistoryRecord | None:
        self.asked.append(request_id)
        if self.failing in (request_id, "all"):
            raise ProviderError("unknown", "not understood")
        return HistoryRecord(request_id, "m", "COMPLETED") if request_id in self.own else None


def paid(request_id: str, account: str | None = None, *, hours: float = 5, run: str = "run-1") -> Event:
    key = request_id.encode().rjust(16, b"\0")
    when = NOW - timedelta(hours=hours)
    return Event("submitted", key, f"{key.hex()}-1", run, when, request_id=request_id, account=account)


def view_of(*events: Event) -> LedgerView:
    return fold([events_table(events)])


async def opened(store, key: str, view: LedgerView | None = None, history: History | None = None):
    return await open_accounts(
        store,
        view or LedgerView.empty(),
        api_key=key,
        base_url=f"{URL}/v2",
        provider="segmind",
        look_up=history or History(),
        history_complete_until=SETTLED,
    )


def attempt(account=None, *, fingerprint=None, run="run-1", has_claim=True) -> KnownAttempt:
    claim = Claim(run, "n", "a", NOW, {}, account=account, fingerprint=fingerprint)
    record = ClaimRecord(1, claim, None) if has_claim else None
    return KnownAttempt(1, record=record, account=account, run_id=run)


# Fingerprints


def test_a_fingerprint_is_fixed() -> None:
    """The fingerprint of a key is the same for ever, on every machine: stores remember it."""
    assert PRINT[A] == fingerprint_of(A, f"{URL}/v1/") == "2a743d3dc574feb3"
    assert len(set(PRINT.values())) == 3


@given(st.text(min_size=1, max_size=40))
def test_a_fingerprint_gives_nothing_away(key: str) -> None:
    """Sixteen hex digits, whatever the key; not the key, nor a part of it."""
    fingerprint = fingerprint_of(key, URL)
    assert len(fingerprint) == 16
    assert int(fingerprint, 16) >= 0
    assert len(key) < 6 or key not in fingerprint


@pytest.mark.parametrize("other", ["http://api.segmind.com", "https://api.segmind.com:8443", "https://gateway.example"])
def test_a_key_has_a_fingerprint_for_each_origin(other: str) -> None:
    """The same key at another API is another sender: scheme, host and port count, path and case do not."""
    assert fingerprint_of(A, other) != PRINT[A]
    assert fingerprint_of(A, "HTTPS://API.segmind.com/v1") == PRINT[A]
    assert origin_of("https://user:secret@Host.example:8443/v2?x=1") == "https://host.example:8443"


# Founding and linking


async def test_the_first_key_founds_an_account(timed_store) -> None:
    """The first key of a store founds an account named by its fingerprint; nothing is asked, no key is stored."""
    history = History()
    accounts = await opened(timed_store, A, view_of(paid("r1")), history)
    assert (accounts.name, accounts.fingerprint, history.asked) == (PRINT[A], PRINT[A], [])
    path = layout.account(PRINT[A])
    assert json.loads(timed_store.objects[path][0]) == {
        "fingerprint": PRINT[A],
        "account": PRINT[A],
        "provider": "segmind",
        "origin": URL,
        "proof": None,
    }
    assert all(A.encode() not in data for data, _ in timed_store.objects.values())
    assert await known_keys(timed_store) == [KeyRecord(PRINT[A], PRINT[A], "segmind", URL)]


async def test_a_known_key_asks_nothing(timed_store) -> None:
    """A key that the store knows has its account at once, also when the history is out of reach."""
    await opened(timed_store, A)
    history = History(failing="all")
    assert (await opened(timed_store, A, view_of(paid("r1", PRINT[A])), history)).name == PRINT[A]
    assert history.asked == []


async def test_a_rotated_key_is_linked_by_proof(timed_store) -> None:
    """A new key that can look up one of the newest calls of an account belongs to it, and the proof is kept."""
    await opened(timed_store, A)
    view = view_of(*(paid(f"r{n}", PRINT[A], hours=20 - n) for n in range(6)))
    history = History("r4")
    accounts = await opened(timed_store, B, view, history)
    assert (accounts.name, accounts.fingerprint) == (PRINT[A], PRINT[B])
    assert history.asked == ["r5", "r4"]
    assert json.loads(timed_store.objects[layout.account(PRINT[B])][0])["proof"] == "r4"
    assert await accounts.ownership(attempt(PRINT[A], fingerprint=PRINT[A])) == "linked"
    assert await accounts.ownership(attempt(PRINT[A], fingerprint=PRINT[B])) == "same"


async def test_a_young_call_may_prove_but_not_disprove(timed_store) -> None:
    """A call younger than the lag links a key that finds it; that it is not found says nothing."""
    await opened(timed_store, A)
    view = view_of(paid("r1", PRINT[A], hours=1))
    assert (await opened(timed_store, B, view, History("r1"))).name == PRINT[A]
    undetermined = await opened(timed_store, C, view, History())
    assert undetermined.name == PRINT[C]
    assert layout.account(PRINT[C]) not in timed_store.objects


async def test_another_account_is_certain_only_by_settled_calls(timed_store) -> None:
    """A key founds another account if up to three settled calls of each account are certainly not its own."""
    await opened(timed_store, A)
    view = view_of(*(paid(f"r{n}", PRINT[A], hours=20 - n) for n in range(6)), paid("young", PRINT[A], hours=0.1))
    history = History()
    accounts = await opened(timed_store, B, view, history)
    assert accounts.name == PRINT[B]
    assert history.asked == ["r5", "r4", "r3"]
    assert json.loads(timed_store.objects[layout.account(PRINT[B])][0])["account"] == PRINT[B]
    assert await accounts.ownership(attempt(PRINT[A], fingerprint=PRINT[A])) == "other"


@pytest.mark.parametrize(
    ("events", "failing"),
    [
        ([paid("r1", PRINT[A])], "r1"),
        ([paid("r1", PRINT[A]), paid("r2", PRINT[A]), paid("r3", PRINT[A])], "r2"),
        ([paid("r1", PRINT[A], hours=1)], ""),
    ],
)
async def test_in_between_nothing_is_determined(timed_store, events, failing) -> None:
    """A history that errs, or calls that are too young: nothing is linked, founded or written; the next run asks."""
    await opened(timed_store, A)
    before = dict(timed_store.objects)
    accounts = await opened(timed_store, B, view_of(*events), History(failing=failing))
    assert timed_store.objects == before
    assert (accounts.name, accounts.fingerprint) == (PRINT[B], PRINT[B])
    assert await accounts.ownership(attempt(PRINT[A], fingerprint=PRINT[A])) == "other"
    # What it sends itself is its own, undetermined or not.
    assert await accounts.ownership(attempt(PRINT[B], fingerprint=PRINT[B])) == "same"
    settled = view_of(paid("r9", PRINT[A]), *events)
    assert (
        await opened(timed_store, B, settled, History("r9", *[event.request_id for event in events]))
    ).name == PRINT[A]


async def test_an_account_that_has_paid_for_nothing_hinders_nobody(timed_store) -> None:
    """A key that was used first and paid for nothing does not keep the one that pays from having an account."""
    await opened(timed_store, A)
    assert (await opened(timed_store, B)).name == PRINT[B]
    assert {key.fingerprint for key in await known_keys(timed_store)} == {PRINT[A], PRINT[B]}


async def test_calls_of_an_undetermined_time_are_ours_once_linked(timed_store) -> None:
    """What a key sent while it was undetermined belongs, once it is linked, to the account."""
    await opened(timed_store, A)
    view = view_of(paid("r1", PRINT[A]), paid("r2", PRINT[B]))
    await opened(timed_store, B, view, History("r1"))
    accounts = await opened(timed_store, A, view)
    assert await accounts.ownership(attempt(PRINT[B], fingerprint=PRINT[B])) == "linked"
    assert accounts.shows(attempt(PRINT[A]), {"r2"})


async def test_a_store_of_many_accounts(timed_store) -> None:
    """A key is looked for in every account; a certain 'no' from one does not hide the 'yes' of another."""
    await opened(timed_store, A)
    view = view_of(paid("a1", PRINT[A]), paid("b1", PRINT[B]))
    await opened(timed_store, B, view, History("b1"))
    assert (await opened(timed_store, C, view, History("b1"))).name == PRINT[B]
    assert {(key.fingerprint, key.account) for key in await known_keys(timed_store)} == {
        (PRINT[A], PRINT[A]),
        (PRINT[B], PRINT[B]),
        (PRINT[C], PRINT[B]),
    }


async def test_a_listing_that_lags_founds_no_second_account(timed_store) -> None:
    """A key whose record is there but not listed yet keeps the account of its record."""
    await opened(timed_store, A)
    await opened(timed_store, B, view_of(paid("r1", PRINT[A])), History("r1"))

    class Lagging(type(timed_store)):
        async def list(self, prefix: str):
            return []

    lagging = Lagging()
    lagging.objects = timed_store.objects
    assert (await opened(lagging, B)).name == PRINT[A]


@pytest.mark.parametrize("data", [b"", b"{", b"[]"])
async def test_a_damaged_record_is_named(timed_store, data) -> None:
    """A record of a key that cannot be read is an error that names it."""
    await timed_store.put(layout.account(PRINT[B]), data)
    with pytest.raises(StoreError, match=PRINT[B]):
        await opened(timed_store, A)


# Claims of older stores


async def test_a_claim_without_account_is_proven_by_its_run(timed_store) -> None:
    """A claim of version 0.1 belongs to who can look up another call of its run; the answer is asked once."""
    view = view_of(paid("r1", run="old"), paid("x1", run="strange"))
    history = History("r1")
    accounts = await opened(timed_store, A, view, history)
    for _ in range(2):
        assert await accounts.ownership(attempt(run="old")) == "linked"
        assert await accounts.ownership(attempt(run="strange")) == "other"
        assert await accounts.ownership(attempt(run="without calls")) == "other"
        assert await accounts.ownership(attempt(run="old", has_claim=False)) == "linked"
    assert history.asked == ["r1", "x1"]


async def test_a_history_that_errs_is_asked_again_for_a_run(timed_store) -> None:
    """While a run's calls cannot be told they are another's; as soon as they can be they are ours."""
    history = History("r1", failing="r1")
    accounts = await opened(timed_store, A, view_of(paid("r1", run="old")), history)
    assert await accounts.ownership(attempt(run="old")) == "other"
    history.failing = ""
    assert await accounts.ownership(attempt(run="old")) == "linked"


# What a listing shows


async def test_a_listing_has_to_show_the_account(timed_store) -> None:
    """Absence counts from a listing that shows a call of the attempt's account, or, where it has none, of its run."""
    await opened(timed_store, A)
    view = view_of(paid("r1", PRINT[A]), paid("x1", PRINT[C]), paid("o1", run="old"))
    accounts = await opened(timed_store, B, view, History("r1"))
    assert accounts.shows(attempt(PRINT[A]), {"r1", "new"})
    for ids in (set(), {"new"}, {"x1"}, {"o1"}):
        assert not accounts.shows(attempt(PRINT[A]), ids)
    assert accounts.shows(attempt(run="old"), {"o1"})
    assert not accounts.shows(attempt(run="old"), {"r1", "x1"})


async def test_backends_without_accounts() -> None:
    """Workers have no accounts: everything is ours, and nothing has to be shown."""
    accounts = NoAccounts()
    assert (accounts.name, accounts.fingerprint, accounts.forgets) == (None, None, False)
    assert await accounts.ownership(attempt("acc")) == "same"
    assert accounts.shows(attempt("acc"), [])
    assert NoAccounts(forgets=True).forgets
