"""One attempt: claim, POST, result, image; how often a row is sent, and what ends it."""

import io
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import ProviderError, StoreError
from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.policy.history_lookup import same_call
from prefect_imagegen.core.policy.outcomes import is_permanent
from prefect_imagegen.core.request.request import GenerationRequest, Reference
from prefect_imagegen.ports import Delivery, ObjectInfo, ObjectStore, Submission
from prefect_imagegen.store.ledger.reading import event_tables, load_ledger
from prefect_imagegen.store.object_store import FsspecObjectStore
from tests.executor.conftest import HEX, REQUEST, Bench, CountingStore, error, png

pytestmark = pytest.mark.anyio


async def test_everything_is_durable_before_the_next_step(bench: Bench) -> None:
    """The claim lies in the store before the POST, the id before the first poll, the image before the ledger's word."""
    calls: list[tuple[str, bool, bool]] = []

    def look(call: str) -> None:
        claim, id_file = bench.folder / layout.claim(HEX, 1), bench.folder / layout.claim_id(HEX, 1)
        calls.append((call, claim.exists(), id_file.exists()))

    bench.provider.watch = look
    result = await bench.make()
    assert calls == [("submit", True, False), ("collect", True, True)]
    assert (result.status, result.attempts, result.cost_usd) == ("generated", 1, 0.04)
    await bench.ledger.flush()
    view = await load_ledger(bench.store)
    (facts,) = view.facts(view.delivered_keys).values()
    assert (bench.folder / facts["image_path"]).read_bytes()
    assert facts["attempt_id"] == f"{HEX}-1"


async def test_what_an_image_asks_of_the_store(tmp_path: Path) -> None:
    """An image costs three PUTs (claim, id, image) and one HEAD, as docs/guides/scale.md says; nothing is read."""
    store = CountingStore(*fsspec.core.url_to_fs(str(tmp_path)), str(tmp_path))
    store.counts = Counter()
    assert (await Bench(tmp_path, LedgerView.empty(), store=store).make()).status == "generated"
    assert store.counts == {"PUT ledger": 2, "PUT images": 1, "HEAD images": 1}


PHOTO = "https://example.com/a.png"
WITH_PHOTO = GenerationRequest(
    REQUEST.model,
    REQUEST.params,
    (Reference("url", PHOTO, PHOTO, ReferenceFacts("ab", 9, 80, 80, "jpeg", ("turned",))),),
)


@pytest.mark.parametrize("inline", [False, True])
async def test_references_are_sent_by_their_addresses(bench: Bench, inline: bool) -> None:
    """What is sent is the references' addresses, the claim knows them as sent, and what was done to them is told."""
    bench.references.inline = inline
    result = await bench.make(WITH_PHOTO)
    assert result.status == "generated"
    assert bench.provider.sent == [(PHOTO,)]
    (claim,) = await bench.ledger.claims(WITH_PHOTO.key)
    assert same_call(WITH_PHOTO.body([PHOTO]), claim.claim.body)
    assert PHOTO not in str(claim.claim.body)
    assert result.applied["references"] == [{"position": 1, "changes": ["turned"]}]


async def test_what_the_api_cannot_fetch_is_uploaded_once(bench: Bench) -> None:
    """A failure that sounds like fetching is tried again with fresh addresses, once; then it is as it is."""
    failure = ProviderError("generation_failed", "image 1 could not be fetched", status=422, request_id="r1")
    bench.provider.collects = [failure]
    result = await bench.make(WITH_PHOTO)
    assert (result.status, result.attempts, result.maybe_paid) == ("generated", 2, 0)
    assert bench.provider.sent == [(PHOTO,), (f"{PHOTO}?fresh",)]
    other = replace(WITH_PHOTO, params=WITH_PHOTO.params | {"seed": 8})
    for _ in range(2):
        failure = ProviderError("generation_failed", "image 1 could not be fetched", status=422, request_id="r1")
        bench.provider.collects.append(failure)
    result = await bench.make(other)
    assert (result.status, result.error_kind, result.attempts) == ("failed", "generation_failed", 2)


async def test_references_that_cannot_be_sent(bench: Bench, tmp_path: Path) -> None:
    """A reference that cannot be read fails its row before any claim; a key that uploads refuse stops the run."""
    bench.references.steps = [ProviderError("reference_unreadable", "gone"), ProviderError("auth", "no such key")]
    result = await bench.make(WITH_PHOTO)
    assert (result.status, result.error_kind, result.attempts) == ("failed", "reference_unreadable", 0)
    assert not bench.control.stopped
    result = await bench.make(WITH_PHOTO)
    assert (result.status, result.error_kind, result.attempts) == ("not_run", "auth", 0)
    assert bench.control.stop_reason == "auth"
    other = Bench(tmp_path / "other", LedgerView.empty())
    other.references.steps = [StoreError("store_unreachable", "away")]
    result = await other.make(WITH_PHOTO)
    assert (result.status, result.error_kind, other.control.stop_reason) == ("not_run", "store", "store")
    for refused_bench in (bench, other):
        assert await refused_bench.ledger.claims(WITH_PHOTO.key) == []
        assert refused_bench.provider.history == []


async def test_each_post_has_a_claim_of_its_own(bench: Bench) -> None:
    """A transient failure is tried again as attempt n+1; a look into the history goes before, and is counted."""
    bench.provider.submits = [error("unavailable", status=503), error("server_error", status=500), "r3"]
    result = await bench.make()
    assert (result.status, result.attempts, result.maybe_paid, result.request_id) == ("generated", 3, 2, "r3")
    assert bench.provider.history == ["submit", "find", "submit", "find", "submit", "collect"]
    claims = await bench.ledger.claims(REQUEST.key)
    assert [(claim.claim_no, claim.request_id) for claim in claims] == [(1, None), (2, None), (3, "r3")]


async def test_each_post_has_an_id_of_its_own(bench: Bench) -> None:
    """What was accepted and failed for a passing reason is sent again, and the id of that POST is made durable too."""
    bench.provider.submits = ["r1", "r2", "r3"]
    bench.provider.collects = [error("generation_error", request_id=f"r{n}") for n in (1, 2)]
    result = await bench.make()
    assert (result.status, result.attempts, result.request_id) == ("generated", 3, "r3")
    claims = await bench.ledger.claims(REQUEST.key)
    assert [(claim.claim_no, claim.request_id) for claim in claims] == [(1, "r1"), (2, "r2"), (3, "r3")]


@pytest.mark.parametrize(
    ("kind", "ends"), [("generation_error", "billed_failure"), ("generation_failed", "generation_failed")]
)
async def test_a_failure_that_was_billed_is_not_sent_again(bench: Bench, kind: str, ends: str) -> None:
    """Where the answer to a failed job names a cost, the row is not paid for again; row, budget and ledger have it."""
    bench.provider.submits = ["r1", "r2"]
    bench.provider.collects = [error(kind, request_id="r1", cost_usd=0.05)]
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts, result.cost_usd) == ("failed", ends, 1, 0.05)
    assert is_permanent(ends)
    assert (result.paid, bench.context.budget.reserved) == (1, 0.0)
    assert bench.context.budget.spent == pytest.approx(result.cost_usd)
    await bench.ledger.flush()
    costs = [event["cost_usd"] for event in await _events(bench.store) if event["type"] in ("failed", "delivered")]
    assert sum(costs) == pytest.approx(result.cost_usd)


async def _events(store: ObjectStore) -> list[dict[str, Any]]:
    return [event async for table in event_tables(store) for event in table.to_pylist()]


@pytest.mark.parametrize(
    ("kind", "posts", "ends"),
    [
        ("unavailable", 5, "failed"),
        ("server_error", 3, "failed"),
        ("invalid_request", 1, "failed"),
    ],
)
async def test_how_often_a_row_is_sent(bench: Bench, kind: str, posts: int, ends: str) -> None:
    """502 to 504 are sent five times, 500 three times, permanent ones once."""
    bench.provider.submits = [error(kind) for _ in range(9)]
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == (ends, kind, posts)


@pytest.mark.parametrize("most", [1, 2])
async def test_the_users_limit_of_attempts(tmp_path: Path, most: int) -> None:
    """A row is sent `max_attempts` times at most, where its failure may be tried more often."""
    bench = Bench(tmp_path, LedgerView.empty(), policy={"max_attempts": most})
    bench.provider.submits = [error("unavailable") for _ in range(9)]
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == ("failed", "unavailable", most)


async def test_free_failures_do_not_count_but_end(bench: Bench) -> None:
    """429 and unsent calls are no attempts; without any progress they stop the run at the deadline."""
    bench.provider.submits = [error("rate_limited", retry_after=5.0) for _ in range(20)] + ["r1"]
    assert (await bench.make()).status == "generated"
    bench.provider.submits = [error("unsent") for _ in range(200)]
    result = await bench.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert (result.status, bench.control.stop_reason) == ("not_run", "deadline")


async def test_bad_bytes_are_fetched_again_never_bought(bench: Bench) -> None:
    """Bytes that are no image are fetched five times, ever later; then the row is held, after one POST."""
    bench.provider.collects = [b"<html>", png()[:100], b"", b""]
    started = bench.clock.monotonic()
    assert (await bench.make()).status == "generated"
    assert bench.provider.history == ["submit", *["collect"] * 5]
    assert bench.clock.monotonic() - started > 1.0
    bench.provider.collects = [b"", b"", b"", b"", b"", b""]
    result = await bench.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert (result.status, result.error_kind, result.attempts) == ("held", "submitted", 1)
    assert result.request_id == "r1"


@pytest.mark.parametrize(("days", "ends"), [(0, "held"), (7, "held"), (9, "failed")])
async def test_junk_is_not_yet_an_output(tmp_path: Path, days: int, ends: str) -> None:
    """What a CDN serves in place of a paid image is asked for again by every run, until outputs are deleted."""
    bench = Bench(tmp_path, LedgerView.empty())
    bench.provider.collects = [b"<html>"] * 5
    assert (await bench.make()).status == "held"
    later = Bench(tmp_path, LedgerView.empty(), nonce="n2", run_id="run2")
    later.clock.time += timedelta(days=days)
    later.provider.collects = [b"<html>"] * 5
    result = await later.make()
    assert (result.status, result.attempts, "submit" in later.provider.history) == (ends, 0, False)
    if ends == "failed":
        assert (result.error_kind, result.cost_usd, result.paid) == ("bad_output", 0.07, 1)
    last = Bench(tmp_path, LedgerView.empty(), nonce="n3", run_id="run3")
    if ends == "held":
        assert (await last.make()).status == "generated"
        assert "submit" not in last.provider.history


async def test_an_output_that_is_not_found(tmp_path: Path) -> None:
    """A paid output that answers 404 is held and asked for again by later runs; after its week it is lost for good."""
    ends = []
    for number, days in enumerate((0, 6, 9)):
        bench = Bench(tmp_path, LedgerView.empty(), nonce=f"n{number}", run_id=f"run{number}")
        bench.clock.time += timedelta(days=days)
        bench.provider.collects = [error("submitted", status=404)]
        result = await bench.make()
        ends.append((result.status, result.error_kind, *bench.provider.history))
    assert ends == [
        ("held", "submitted", "submit", "collect"),
        ("held", "submitted", "collect"),
        ("failed", "output_lost", "collect"),
    ]


async def test_a_store_that_fails_after_the_id_was_kept(tmp_path: Path) -> None:
    """The row is held as submitted, with its id: the next run fetches it, and `retry` leaves it alone."""

    class Failing(FsspecObjectStore):
        async def create(self, path: str, data: bytes, content_type: str = "") -> bool:
            if path.startswith("images/"):
                raise StoreError("store_unreachable", "a time-out")
            return await super().create(path, data, content_type)

    store = Failing(*fsspec.core.url_to_fs(str(tmp_path)), str(tmp_path))
    result = await Bench(tmp_path, LedgerView.empty(), store=store).make()
    assert (result.status, result.error_kind, result.request_id) == ("held", "submitted", "r1")


async def test_an_id_that_cannot_be_stored_stops_the_run(bench: Bench) -> None:
    """Where the store does not take a request_id nothing more is sent, and what was paid is still fetched."""
    tries = 0

    async def refuse(key: bytes, n: int, request_id: str) -> None:
        nonlocal tries
        tries += 1
        raise StoreError("store_unreachable", "gone")

    bench.ledger.record_request_id = refuse  # type: ignore[method-assign]
    result = await bench.make()
    # Tried once: the store around the real one has already retried (store/patient_store.py).
    assert (result.status, tries, bench.control.stop_reason) == ("generated", 1, "store")
    later = await bench.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert later.status == "not_run"


async def test_credentials_and_models(bench: Bench) -> None:
    """A refused model fails its own rows only; a refused key ends the run before anything more is sent."""
    bench.provider.submits = [error("model_unavailable")]
    assert (await bench.make()).error_kind == "model_unavailable"
    again = await bench.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert (again.status, again.attempts) == ("failed", 0)
    bench.provider.submits = [error("auth", status=401)]
    other = GenerationRequest("flux-2-klein-4b", {"prompt": "b", "seed": 1})
    assert (await bench.make(other)).status == "not_run"
    assert bench.control.stop_reason == "auth"
    assert (await bench.make(other)).attempts == 0


async def test_a_damaged_image_ends_its_row_alone(bench: Bench) -> None:
    """An image in the store that is none ends its row, with the remedy; nothing is called, and the run goes on."""
    await bench.store.create(layout.image(HEX, REQUEST.extension), b"not an image")
    result = await bench.make()
    assert (result.status, result.error_kind, bench.provider.history) == ("failed", "image_damaged", [])
    assert not bench.control.stopped
    assert (await bench.make(replace(REQUEST, params=REQUEST.params | {"seed": 8}))).status == "generated"


async def test_an_unexpected_error_ends_one_row(bench: Bench) -> None:
    """A fault of ours about one row fails it before its POST, holds it after; twenty in a row stop the run."""

    def burst(call: str) -> None:
        if call == "collect":
            raise ZeroDivisionError("ours")

    bench.provider.watch = burst
    result = await bench.make()
    assert (result.status, result.error_kind, result.request_id) == ("held", "submitted", "r1")
    assert not bench.control.stopped

    async def broken(path: str) -> ObjectInfo | None:
        raise ZeroDivisionError("ours")

    bench.store.head = broken  # type: ignore[method-assign]
    kinds = []
    for seed in range(25):
        result = await bench.make(replace(REQUEST, params=REQUEST.params | {"seed": 100 + seed}))
        kinds.append((result.status, result.error_kind))
    assert kinds[0] == ("failed", "internal")
    assert bench.control.stop_reason == "internal"
    assert bench.provider.history.count("submit") == 1


async def test_an_unexpected_error_tells_no_secret(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What a library says of an address with a signature, and where, is told without the signature."""

    def burst(call: str) -> None:
        if call == "submit":
            raise LookupError("no answer: https://h/a.png?sig=plant-1") from ValueError("https://me:plant-2@h/a.png")

    bench.provider.watch = burst
    result = await bench.make()
    assert result.error_kind in ("internal", "unknown")
    assert "no answer: https://h/a.png" in str(result.error_message)
    assert "in burst" in caplog.text  # the traceback is there
    assert "plant-" not in f"{result.error_message} {caplog.text}"


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("count", [1, 19])
async def test_an_unexpected_error_about_references_ends_its_row(bench: Bench, inline: bool, count: int) -> None:
    """Whatever goes wrong when references are got ready ends that row before its claim; the run goes on."""
    bench.references.inline = inline
    for seed in range(count):
        bench.references.steps = [ZeroDivisionError("bad transform")]
        result = await bench.make(replace(WITH_PHOTO, params=REQUEST.params | {"seed": 100 + seed}))
        assert (result.status, result.error_kind, result.attempts) == ("failed", "internal", 0)
        assert "bad transform" in (result.error_message or "")
    assert (bench.control.stopped, bench.provider.history) == (False, [])
    assert await bench.ledger.claims(WITH_PHOTO.key) == []
    assert (await bench.make(WITH_PHOTO)).status == "generated"


async def test_an_image_in_another_format_is_kept_and_told(bench: Bench) -> None:
    """What was delivered is kept as it came, under the name that was asked for, with a flag and its true format."""
    sink = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(sink, "JPEG")
    bench.provider.collects = [sink.getvalue()]
    result = await bench.make()
    assert result.image is not None
    assert (result.status, result.image.format, result.image.flags) == ("generated", "jpeg", ("other_format",))
    assert result.applied["format"] == "jpeg"
    assert await bench.store.get(layout.image(HEX, "png")) == sink.getvalue()


async def test_several_images_of_one_answer(bench: Bench) -> None:
    """Of an answer with several images the first goes to the key and the others lie beside it: none is lost."""
    first, second = png(), png()

    async def collect(submission: Submission) -> Delivery:
        return Delivery(first, "image/png", request_id=submission.request_id, cost_usd=0.04, more=(second,))

    bench.provider.collect = collect  # type: ignore[method-assign]
    result = await bench.make()
    assert result.image is not None
    assert "more_images" in result.image.flags
    assert await bench.store.get(layout.image(HEX, REQUEST.extension)) == first
    assert await bench.store.get(layout.more_image(HEX, 2, REQUEST.extension)) == second
