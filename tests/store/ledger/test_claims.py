"""The ledger in an object store: claims and request ids, and what is known of an attempt."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import StoreError
from prefect_imagegen.core.ledger.events import RETRY_ASKED, RETRY_ASKED_RANK, Claim
from prefect_imagegen.store.ledger.reading import load_ledger
from tests.store.ledger.conftest import (
    KEY,
    NOW,
    OTHER,
    DoublingStore,
    FailingStore,
    event,
    ledger,
    segment_of,
)

pytestmark = pytest.mark.anyio


def claim(nonce="n1", attempt="a1") -> Claim:
    return Claim("run-1", nonce, attempt, NOW, {"prompt": "Käse 🧀", "seed": 7, "image_urls": ["ab" * 32]})


def named(n: int, key: bytes = KEY) -> str:
    return f"{key.hex()}-{n}"


async def test_a_claim_is_won_once(store) -> None:
    """Who creates a claim first has it; another process, or another attempt of the same one, loses."""
    assert await ledger(store).claim(KEY, 1, claim()) is True
    assert await ledger(store, "n2").claim(KEY, 1, claim("n2", "a2")) is False
    assert await ledger(store).claim(KEY, 1, claim("n1", "a3")) is False
    assert await ledger(store, "n2").claim(KEY, 1, claim("n2", "a1")) is False
    (record,) = await ledger(store).claims(KEY)
    assert (record.claim.nonce, record.claim.attempt_id) == ("n1", "a1")


async def test_an_own_claim_sent_twice_is_won(store) -> None:
    """A claim whose put was sent again by the client library meets itself, and is won."""
    assert await ledger(DoublingStore(store, 0)).claim(KEY, 1, claim()) is True
    assert await ledger(store).claim(KEY, 1, claim()) is True


async def test_twelve_processes_claim_one_key(store) -> None:
    """Of twelve processes that claim one key at once, one wins."""
    ledgers = [ledger(store, f"n{n}") for n in range(12)]
    results = await asyncio.gather(
        *(process_ledger.claim(KEY, 1, claim(f"n{n}", f"a{n}")) for n, process_ledger in enumerate(ledgers))
    )
    assert sum(results) == 1


async def test_claims_come_back_as_made(store) -> None:
    """Every claim of a key comes back by number with all that it said, and with its request_id where it has one."""
    book = ledger(store)
    for n in (1, 2, 10):
        await book.claim(KEY, n, claim(attempt=f"a{n}"))
    await book.record_request_id(KEY, 2, "id-2")
    await book.claim(OTHER, 1, claim(attempt="other"))
    records = await book.claims(KEY)
    assert [(record.claim_no, record.request_id) for record in records] == [(1, None), (2, "id-2"), (10, None)]
    assert records[0].claim == claim()
    assert await book.claims(bytes(16)) == []


async def test_claims_lie_where_the_layout_says(store) -> None:
    """A claim and its request_id are one object each, under the key's own folder."""
    await ledger(store).claim(KEY, 1, claim())
    await ledger(store).record_request_id(KEY, 1, "id-1")
    base = f"ledger/claims/00/{KEY.hex()}"
    assert [info.path for info in await store.list("ledger/claims")] == [f"{base}/1.id.json", f"{base}/1.json"]
    assert json.loads(await store.get(f"{base}/1.id.json")) == {"request_id": "id-1"}
    body = json.loads(await store.get(f"{base}/1.json"))
    assert (body["nonce"], body["attempt_id"], body["body"]["prompt"]) == ("n1", "a1", "Käse 🧀")


async def test_a_claim_keeps_all_that_it_says(store) -> None:
    """Account, fingerprint, endpoint, owner and the times by three clocks come back as they were written."""
    made = Claim(
        *("run-1", "n1", "a1", NOW, {"seed": 7}, "acc", "fp", "https://api", "runs/run-1/heartbeat.json"),
        store_time=NOW + timedelta(seconds=1),
        api_time=NOW + timedelta(hours=5, microseconds=3),
    )
    await ledger(store).claim(KEY, 1, made)
    (record,) = await ledger(store).claims(KEY)
    assert record.claim == made
    (info,) = await store.list("ledger/claims")
    assert record.stored == info.modified


async def test_a_claim_of_an_older_store_is_read(store) -> None:
    """A claim of version 0.1 names no account, key, endpoint, owner or further times: they are null, not an error."""
    old = {"run_id": "run-0", "nonce": "n0", "attempt_id": named(1), "time": NOW.isoformat(), "body": {"seed": 7}}
    await store.put(layout.claim(KEY.hex(), 1), json.dumps(old).encode())
    await store.put(layout.claim_id(KEY.hex(), 1), b'{"request_id": "id-1"}')
    (known,) = await ledger(store).known(KEY)
    assert known.record.claim == Claim("run-0", "n0", named(1), NOW, {"seed": 7})
    assert (known.account, known.endpoint, known.request_id, known.run_id) == (None, None, "id-1", "run-0")
    assert known.record.claim.owner is known.record.claim.api_time is known.record.claim.store_time is None


async def test_a_claim_of_a_later_store_is_read(store) -> None:
    """A claim with fields that this version does not know is read without them."""
    await ledger(store).claim(KEY, 1, claim())
    path = layout.claim(KEY.hex(), 1)
    await store.put(path, json.dumps(json.loads(await store.get(path)) | {"part": 7}).encode())
    assert (await ledger(store).claims(KEY))[0].claim == claim()


class LaggingStore(FailingStore):
    """A store whose listings show nothing yet; what is asked for by name is there."""

    async def list(self, prefix: str):
        return [] if prefix.startswith("ledger/claims") else await self._store.list(prefix)


async def test_claim_id_and_events_are_one(store) -> None:
    """Of each attempt claim, id object and events are told together, whichever of them a crash has left."""
    book = ledger(store)
    await book.claim(KEY, 1, replace(claim(attempt=named(1)), account="acc", endpoint="https://api"))
    await book.claim(KEY, 3, claim(attempt=named(3)))
    await book.record_request_id(KEY, 3, "id-3")
    # The id of the first reached a segment, its id object was never written.
    await book.record(event("submitted", attempt=named(1), request_id="id-1", account="acc"))
    await book.record(event("failed", attempt=named(2), request_id="id-2", error_kind="unsent", error_message="dns"))
    await book.record(event("submitted", OTHER, named(1, OTHER), request_id="id-9"))

    def facts_of(known):
        return [
            (attempt.claim_no, attempt.rank, attempt.request_id, attempt.error_kind, attempt.record is not None)
            for attempt in known
        ]

    expected = [(1, 1, "id-1", None, True), (2, 2, "id-2", "unsent", False), (3, -1, "id-3", None, True)]
    before = await book.known(KEY)
    assert facts_of(before) == expected
    await book.flush()
    other = ledger(store, "n2")
    await other.refresh(at_once=True)
    for known in (await book.known(KEY), await other.known(KEY)):
        assert known == before
    later = await ledger(store, "n3", await load_ledger(store)).known(KEY)
    assert later == before
    assert [(attempt.account, attempt.endpoint, attempt.is_closed) for attempt in later] == [
        ("acc", "https://api", False),
        (None, None, True),
        (None, None, False),
    ]


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("first", [0, 1])
async def test_a_persons_word_gives_an_attempt_free(store, flushed, first) -> None:
    """`retry_asked` closes an attempt above its failure, is told as asked, and leaves the reason as it was."""
    book = ledger(store)
    steps = [event("failed", attempt=named(1), error_kind=kind) for kind in ("content_policy", RETRY_ASKED)]
    for step in (steps[first], steps[1 - first]):
        await book.record(step)
    if flushed:
        await book.flush()
    (known,) = await book.known(KEY)
    assert (known.rank, known.is_asked, known.error_kind) == (RETRY_ASKED_RANK, True, "content_policy")
    assert (known.is_closed, known.is_delivered) == (True, False)


async def test_a_word_alone_is_no_failure(store) -> None:
    """An open attempt that a person gave free is closed by that alone."""
    book = ledger(store)
    await book.claim(KEY, 1, claim(attempt=named(1)))
    await book.record(event("failed", attempt=named(1), error_kind=RETRY_ASKED))
    (known,) = await book.known(KEY)
    assert (known.error_kind, known.is_asked, known.is_closed) == (RETRY_ASKED, True, True)


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_listing_that_lags_hides_no_claim(store, lost) -> None:
    """Claims that are known to exist are read by name, with their ids, while the listing is empty."""
    await ledger(store).claim(KEY, 1, claim(attempt=named(1)))
    await ledger(store).record_request_id(KEY, 1, "id-1")
    await ledger(store).claim(KEY, 2, claim(attempt=named(2)))
    book = ledger(LaggingStore(store, 0))
    assert await book.known(KEY) == await book.claims(KEY) == []
    assert [record.request_id for record in await book.known(KEY, lost=lost)] == ["id-1", None][:lost]
    assert [record.claim_no for record in await book.claims(KEY, lost=lost)] == [1, 2][:lost]
    await book.record(event(attempt=named(1)))
    assert [record.record is not None for record in await book.known(KEY)] == [True]


async def test_a_lost_claim_that_is_not_there_is_none(store) -> None:
    """A claim that is asked for by name and does not exist is left out; one that is listed and gone is an error."""
    assert await ledger(store).claims(KEY, lost=2) == []
    await ledger(store).claim(KEY, 1, claim())

    class Gone(FailingStore):
        async def get(self, path: str) -> bytes | None:
            return None

    with pytest.raises(StoreError, match=r"1\.json"):
        await ledger(Gone(store, 0)).claims(KEY)


async def test_known_ids_are_those_of_any_run(store) -> None:
    """The ids of calls are known from what is buffered, flushed, read since, and read at the start."""
    await store.put("ledger/segments/a.parquet", segment_of(event("delivered", request_id="id-0", image=None)))
    book = ledger(store, view=await load_ledger(store))
    await book.record(event("submitted", OTHER, "b", request_id="id-1"))
    await book.flush()
    await book.record(event("submitted", OTHER, "c", request_id="id-2"))
    await store.put("ledger/segments/z.parquet", segment_of(event("failed", b"\x07" * 16, "d", request_id="id-3")))
    asked = ["id-0", "id-1", "id-2", "id-3", "strange"]
    assert await book.known_ids(asked) == {"id-0", "id-1", "id-2"}
    await book.refresh(at_once=True)
    assert await book.known_ids(asked) == set(asked) - {"strange"}
    assert await book.known_ids([]) == frozenset()


async def test_a_request_id_is_told_once(store) -> None:
    """The same request_id may be told again; another one for the same claim is an error, and the first stays."""
    book = ledger(store)
    await book.claim(KEY, 1, claim())
    await book.record_request_id(KEY, 1, "id-1")
    await book.record_request_id(KEY, 1, "id-1")
    await ledger(DoublingStore(store, 0)).record_request_id(KEY, 2, "id-2")
    with pytest.raises(StoreError) as raised:
        await ledger(store, "n2").record_request_id(KEY, 1, "id-9")
    assert raised.value.kind == "store_conflict"
    assert layout.claim_id(KEY.hex(), 1) in raised.value.message
    assert (await book.claims(KEY))[0].request_id == "id-1"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"{}", b'{"time": 5}', b'{"run_id": "r"}'])
async def test_a_damaged_claim_is_named(store, data) -> None:
    """A claim that cannot be read is an error that names its file; it is never taken for ours or for none."""
    path = layout.claim(KEY.hex(), 1)
    await store.put(path, data)
    book = ledger(store)
    for look in (lambda: book.claims(KEY), lambda: book.claim(KEY, 1, claim())):
        with pytest.raises(StoreError) as raised:
            await look()
        assert raised.value.kind == "store_damaged"
        assert path in raised.value.message
        assert raised.value.remedy


@pytest.mark.parametrize("data", [b"", b"{}", b"[]"])
async def test_a_damaged_request_id_is_named(store, data) -> None:
    """A request_id that cannot be read is an error that names its file: the call was made and must not be lost."""
    await ledger(store).claim(KEY, 1, claim())
    await store.put(layout.claim_id(KEY.hex(), 1), data)
    with pytest.raises(StoreError) as raised:
        await ledger(store).claims(KEY)
    assert layout.claim_id(KEY.hex(), 1) in raised.value.message
