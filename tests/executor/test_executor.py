"""The executor with a real store and ledger, a scripted backend, and a clock that tests set."""

import asyncio
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from prefect_imagegen.control import RunControl
from prefect_imagegen.core import layout
from prefect_imagegen.core.budget import Budget
from prefect_imagegen.core.concurrency import AdaptiveLimit
from prefect_imagegen.core.errors import BackendError, StoreError
from prefect_imagegen.core.events import RANK, Claim
from prefect_imagegen.core.ledger import LedgerView
from prefect_imagegen.core.reconcile import same_call
from prefect_imagegen.core.references import ReferenceFacts
from prefect_imagegen.core.request import GenerationRequest, Reference
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor import Executor, Kit, Policy
from prefect_imagegen.executor import calls as calls_module
from prefect_imagegen.io.ledger import StoreLedger, load_ledger
from prefect_imagegen.io.limits import RateGate
from prefect_imagegen.io.object_store import FsspecObjectStore, open_object_store
from prefect_imagegen.ports import Balance, Delivery, HistoryRecord, Life, ObjectInfo, Submission

pytestmark = pytest.mark.anyio
REQUEST = GenerationRequest("flux-2-klein-9b", {"prompt": "a cup", "seed": 7})
HEX = REQUEST.key.hex()


def png() -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(sink, "PNG")
    return sink.getvalue()


class FakeClock:
    """Time passes only when somebody sleeps, and stands still at the horizon: who sleeps longer does not wake."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 1, tzinfo=UTC)
        self.horizon = self.time + timedelta(days=30)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        if self.time > self.horizon:
            self.time = self.horizon
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    def ends_in(self, seconds: float) -> None:
        self.horizon = self.time + timedelta(seconds=seconds)


class FakeBackend:
    """A backend that does what was enqueued, and remembers what it was asked for."""

    name, endpoint, queues, free = "segmind", "http://fake", True, False

    def __init__(self) -> None:
        self.submits: list[Any] = []
        self.collects: list[Any] = []
        self.found: str | None = None
        self.claimed: list[Mapping[str, Any]] = []
        self.sent: list[tuple[str, ...]] = []
        self.history: list[str] = []
        self.watch: Callable[[str], None] = lambda _: None
        self.in_flight = self.most_in_flight = 0

    async def check(self) -> Balance:
        return Balance(None)

    async def upload(self, data: bytes, media_type: str) -> str:
        raise NotImplementedError

    async def has_upload(self, url: str) -> bool:
        raise NotImplementedError

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        self._note("submit")
        self.sent.append(tuple(image_urls))
        step = self.submits.pop(0) if self.submits else "r1"
        if isinstance(step, BackendError):
            raise step
        return Submission(request, step)

    async def collect(self, submission: Submission) -> Delivery:
        self._note("collect")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.02)
        self.in_flight -= 1
        step = self.collects.pop(0) if self.collects else png()
        if isinstance(step, BackendError):
            raise step
        return Delivery(step, "image/png", submission.request_id, cost_usd=0.04, http_status=200)

    async def find(
        self, model: str, claimed: Mapping[str, Any], since: datetime, known_ids: frozenset[str], unnamed: int
    ) -> str | None:
        self._note("find")
        self.claimed.append(claimed)
        return None if self.found in known_ids else self.found

    async def record(self, request_id: str) -> HistoryRecord | None:
        return HistoryRecord(request_id, REQUEST.model, "COMPLETED", cost_usd=0.07)

    async def aclose(self) -> None:
        pass

    def _note(self, call: str) -> None:
        self.history.append(call)
        self.watch(call)


class FakeReferences:
    """Addresses that were enqueued, or errors; otherwise the references' own, with a mark where they are fresh."""

    inline = False

    def __init__(self) -> None:
        self.steps: list[BackendError | StoreError] = []

    async def addresses(self, request: GenerationRequest, *, fresh: bool) -> Sequence[str]:
        if self.steps:
            raise self.steps.pop(0)
        return [f"{one.uri}{'?fresh' if fresh else ''}" for one in request.references]


class Bench:
    """One executor over one store."""

    def __init__(self, folder: Path, view: LedgerView, *, nonce: str = "n1", run_id: str = "run1", **more: Any) -> None:
        self.clock = FakeClock()
        self.folder = folder
        self.backend = FakeBackend()
        self.store: FsspecObjectStore = more.get("store") or open_object_store(str(folder))
        self.alive: set[str] = set()
        self.dead: Life = "gone"
        self.store_ahead = datetime.now(UTC) - self.clock.time
        self.control = RunControl(self.clock, deadline=600.0, max_failure_rate=1.0)
        self.ledger = StoreLedger(self.store, view, run_id=run_id, nonce=nonce, clock=self.clock)
        self.references = FakeReferences()
        self.kit = Kit(
            backend=self.backend,
            references=self.references,
            store=self.store,
            ledger=self.ledger,
            limiter=RateGate(None, self.clock.monotonic, self.control.sleep),
            control=self.control,
            policy=Policy(run_id, nonce, **more.get("policy", {})),
            clock=self.clock,
            neighbours=self,
            draw=lambda: 1.0,
            decoder=self._decode,
            concurrency=AdaptiveLimit(more.get("max_in_flight", 4)),
            budget=more.get("budget") or Budget(),
        )
        self.executor = Executor(self.kit)

    async def make(self, request: GenerationRequest = REQUEST) -> RequestResult:
        """What becomes of a request, also if it has to wait for others first."""
        result = await self.executor.make(request, request.key)
        late = {one.key: one for one in await self.executor.settle()}
        return late.get(request.key, result)

    async def life(self, run_id: str) -> Life:
        return "live" if run_id in self.alive else self.dead

    def store_now(self) -> datetime:
        return self.clock.now() + self.store_ahead

    @staticmethod
    async def _decode(function: Callable[[bytes], Any], data: bytes) -> Any:
        return function(data)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, LedgerView.empty())


def error(kind: str, **more: Any) -> BackendError:
    return BackendError(kind, "as told", **more)


async def test_everything_is_durable_before_the_next_step(bench: Bench) -> None:
    """The claim lies in the store before the POST, the id before the first poll, the image before the ledger's word."""
    seen: list[tuple[str, bool, bool]] = []

    def look(call: str) -> None:
        claim, found = bench.folder / layout.claim(HEX, 1), bench.folder / layout.claim_id(HEX, 1)
        seen.append((call, claim.exists(), found.exists()))

    bench.backend.watch = look
    result = await bench.make()
    assert seen == [("submit", True, False), ("collect", True, True)]
    assert (result.status, result.attempts, result.cost_usd) == ("generated", 1, 0.04)
    await bench.ledger.flush()
    view = await load_ledger(bench.store)
    (facts,) = view.facts(view.delivered_keys).values()
    assert (bench.folder / facts["image_path"]).read_bytes()
    assert facts["attempt_id"] == f"{HEX}-1"


class CountingStore(FsspecObjectStore):
    """Counts its requests, by what they are and where they go."""

    counts: Counter[str]

    async def create(self, path: str, data: bytes, content_type: str = "") -> bool:
        self.counts[f"PUT {path.partition('/')[0]}"] += 1
        return await super().create(path, data, content_type)

    async def head(self, path: str) -> ObjectInfo | None:
        self.counts[f"HEAD {path.partition('/')[0]}"] += 1
        return await super().head(path)

    async def get(self, path: str) -> bytes | None:
        self.counts["GET"] += 1
        return await super().get(path)

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        self.counts["LIST"] += 1
        return await super().list(prefix)


async def test_what_an_image_asks_of_the_store(tmp_path: Path) -> None:
    """An image costs three PUTs (claim, id, image) and one HEAD, as docs/scale.md says; nothing is read or listed."""
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
    assert bench.backend.sent == [(PHOTO,)]
    (claim,) = await bench.ledger.claims(WITH_PHOTO.key)
    assert same_call(WITH_PHOTO.body([PHOTO]), claim.claim.body)
    assert PHOTO not in str(claim.claim.body)
    assert result.applied["references"] == [{"position": 1, "changes": ["turned"]}]


async def test_what_the_api_cannot_fetch_is_uploaded_once(bench: Bench) -> None:
    """A failure that sounds like fetching is tried again with fresh addresses, once; then it is as it is."""
    failure = BackendError("generation_failed", "image 1 could not be fetched", status=422, request_id="r1")
    bench.backend.collects = [failure]
    result = await bench.make(WITH_PHOTO)
    assert (result.status, result.attempts, result.maybe_paid) == ("generated", 2, 0)
    assert bench.backend.sent == [(PHOTO,), (f"{PHOTO}?fresh",)]
    other = replace(WITH_PHOTO, params=WITH_PHOTO.params | {"seed": 8})
    for _ in range(2):
        failure = BackendError("generation_failed", "image 1 could not be fetched", status=422, request_id="r1")
        bench.backend.collects.append(failure)
    result = await bench.make(other)
    assert (result.status, result.error_kind, result.attempts) == ("failed", "generation_failed", 2)


async def test_references_that_cannot_be_sent(bench: Bench, tmp_path: Path) -> None:
    """A reference that cannot be read fails its row before any claim; a key that uploads refuse stops the run."""
    bench.references.steps = [BackendError("reference_unreadable", "gone"), BackendError("auth", "no such key")]
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
    for one in (bench, other):
        assert await one.ledger.claims(WITH_PHOTO.key) == []
        assert one.backend.history == []


async def test_each_post_has_a_claim_of_its_own(bench: Bench) -> None:
    """A transient failure is tried again as attempt n+1; a look into the history goes before, and is counted."""
    bench.backend.submits = [error("unavailable", status=503), error("server_error", status=500), "r3"]
    result = await bench.make()
    assert (result.status, result.attempts, result.maybe_paid, result.request_id) == ("generated", 3, 2, "r3")
    assert bench.backend.history == ["submit", "find", "submit", "find", "submit", "collect"]
    claims = await bench.ledger.claims(REQUEST.key)
    assert [(claim.n, claim.request_id) for claim in claims] == [(1, None), (2, None), (3, "r3")]


async def test_work_hidden_behind_a_5xx_is_taken_over(bench: Bench) -> None:
    """An answered 5xx whose call is in the history is fetched, not sent again."""
    bench.backend.submits = [error("unavailable", status=503)]
    bench.backend.found = "hidden"
    result = await bench.make()
    assert (result.status, result.attempts, result.maybe_paid, result.request_id) == ("generated", 1, 0, "hidden")


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
    bench.backend.submits = [error(kind) for _ in range(9)]
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == (ends, kind, posts)


async def test_free_failures_do_not_count_but_end(bench: Bench) -> None:
    """429 and unsent calls are no attempts; without any progress they stop the run at the deadline."""
    bench.backend.submits = [error("rate_limited", retry_after=5.0) for _ in range(20)] + ["r1"]
    assert (await bench.make()).status == "generated"
    bench.backend.submits = [error("unsent") for _ in range(200)]
    result = await bench.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert (result.status, bench.control.stop_reason) == ("not_run", "deadline")


async def test_bad_bytes_are_fetched_again_never_bought(bench: Bench) -> None:
    """Bytes that are no image are fetched five times, ever later; then the row fails for good, after one POST."""
    bench.backend.collects = [b"<html>", png()[:100], b"", b""]
    started = bench.clock.monotonic()
    assert (await bench.make()).status == "generated"
    assert bench.backend.history == ["submit", *["collect"] * 5]
    assert bench.clock.monotonic() - started > 1.0
    bench.backend.collects = [b"", b"", b"", b"", b"", b""]
    result = await bench.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert (result.status, result.error_kind, result.attempts) == ("failed", "bad_output", 1)


async def test_an_image_without_a_ledger_entry_is_adopted(bench: Bench) -> None:
    """After winning a claim the store is asked first: an image that is there costs no call."""
    await bench.store.create(layout.image(HEX, "bin"), b"not read")
    await bench.store.create(layout.image(HEX, REQUEST.extension), png())
    result = await bench.make()
    assert (result.status, result.attempts, result.cost_usd) == ("generated", 0, None)
    assert bench.backend.history == []


async def test_the_cost_of_an_adopted_image(bench: Bench) -> None:
    """An image whose claim has an id is adopted with the cost that the history tells."""
    await other_claim(bench, "theirs")
    await bench.store.create(layout.image(HEX, REQUEST.extension), png())
    result = await bench.make()
    assert (result.status, result.attempts, result.cost_usd) == ("generated", 0, 0.07)
    assert bench.backend.history == []


async def other_claim(bench: Bench, request_id: str | None) -> None:
    claim = Claim("run0", "n0", f"{HEX}-1", bench.clock.now(), {})
    assert await bench.ledger.claim(REQUEST.key, 1, claim)
    if request_id:
        await bench.ledger.record_request_id(REQUEST.key, 1, request_id)


async def test_claims_of_others(bench: Bench) -> None:
    """A living run keeps its row; a dead one's call is fetched by its id, and held if it left none."""
    await other_claim(bench, None)
    bench.alive = {"run0"}
    bench.clock.ends_in(100)
    assert (await bench.make()).error_kind == "other_run"
    bench.alive = set()
    bench.clock.ends_in(100)
    held = await bench.make()
    assert (held.status, held.error_kind) == ("held", "unknown")
    assert set(bench.backend.history) == {"find"}
    await bench.ledger.record_request_id(REQUEST.key, 1, "theirs")
    result = await bench.make()
    assert (result.status, result.request_id, result.attempts) == ("generated", "theirs", 0)
    assert bench.backend.history[-1] == "collect"


async def test_a_stop_while_a_claim_is_made(bench: Bench) -> None:
    """A run that stops between claim and POST sends nothing, and closes the attempt: nobody has to ask for it."""
    claim = bench.ledger.claim

    async def stopping(*claimed: Any) -> bool:
        bench.control.stop("signal", "SIGTERM was received")
        return await claim(*claimed)

    bench.ledger.claim = stopping  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, bench.backend.history) == ("not_run", [])
    assert bench.ledger.is_closed(f"{HEX}-1")


async def test_an_output_that_is_not_found(tmp_path: Path) -> None:
    """A paid output that answers 404 is held and asked for again by later runs; after its week it is lost for good."""
    ends = []
    for number, days in enumerate((0, 6, 9)):
        bench = Bench(tmp_path, LedgerView.empty(), nonce=f"n{number}", run_id=f"run{number}")
        bench.clock.time += timedelta(days=days)
        bench.backend.collects = [error("submitted", status=404)]
        result = await bench.make()
        ends.append((result.status, result.error_kind, *bench.backend.history))
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


async def test_a_living_run_is_watched(bench: Bench) -> None:
    """A row that a living run works on is reused when its image appears, and taken over when that run ends."""
    await other_claim(bench, "theirs")
    bench.alive = {"run0"}
    asleep = bench.clock.sleep

    async def sleep(seconds: float) -> None:
        await bench.store.create(layout.image(HEX, REQUEST.extension), png())
        await asleep(seconds)

    bench.clock.sleep = sleep  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, result.cost_usd, result.attempts) == ("reused", 0.0, 0)
    assert result.image is not None
    assert bench.backend.history == []


async def test_a_run_that_dies_while_it_is_watched(bench: Bench) -> None:
    """When a watched run ends, its call is fetched by its id, and paid for once."""
    await other_claim(bench, "theirs")
    bench.alive = {"run0"}
    asleep = bench.clock.sleep

    async def sleep(seconds: float) -> None:
        bench.alive = set()
        await asleep(seconds)

    bench.clock.sleep = sleep  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, result.request_id, result.attempts) == ("generated", "theirs", 0)


async def test_looks_and_their_times(bench: Bench) -> None:
    """An unknown outcome is looked up at 30 s, 2 min and at the lag; only then it is sent again, as attempt 2."""
    bench.backend.submits = [error("unknown"), "r2"]
    looks: list[float] = []
    start = bench.clock.time
    bench.backend.watch = lambda call: looks.append((bench.clock.time - start).total_seconds())
    result = await bench.make()
    assert (result.status, result.attempts, result.maybe_paid, result.request_id) == ("generated", 2, 0, "r2")
    assert bench.backend.history == ["submit", "find", "find", "find", "submit", "collect"]
    assert looks[:4] == [0.0, 30.0, 120.0, 7200.0]
    await bench.ledger.flush()
    view = await load_ledger(bench.store)
    assert view.rank_of(f"{HEX}-1") >= RANK["failed"]


async def test_an_unknown_outcome_found_is_fetched(bench: Bench) -> None:
    """A call that the history knows is fetched, not sent again; the whole body is compared, addresses hashed."""
    request = GenerationRequest(
        "flux-2-klein-9b", {"prompt": "a cup", "seed": 7}, (Reference("url", "http://a/b", "http://a/b?sig=x"),)
    )
    bench.backend.submits = [error("unknown")]
    bench.backend.found = "hidden"
    result = await bench.make(request)
    assert (result.status, result.attempts, result.request_id) == ("generated", 1, "hidden")
    (claimed,) = bench.backend.claimed
    assert claimed["prompt"] == "a cup"
    assert "sig=x" not in str(claimed)
    claims = await bench.ledger.claims(request.key)
    assert [(claim.n, claim.request_id) for claim in claims] == [(1, "hidden")]


async def test_a_run_does_not_stay_open_for_unknown_outcomes(bench: Bench) -> None:
    """After the look at 30 s the row ends held; the next run goes on where this one ended."""
    bench.backend.submits = [error("unknown")]
    bench.clock.ends_in(100)
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == ("held", "unknown", 1)
    assert bench.backend.history == ["submit", "find"]


@pytest.mark.parametrize("policy", ["hold", "retry-once"])
async def test_on_unknown(policy: str, tmp_path: Path) -> None:
    """`hold` asks nothing and sends nothing; `retry-once` looks once and sends once more, counted, then holds."""
    bench = Bench(tmp_path, LedgerView.empty(), policy={"on_unknown": policy})
    bench.backend.submits = [error("unknown"), error("unknown"), "r3"]
    result = await bench.make()
    assert (result.status, result.error_kind) == ("held", "unknown")
    once = policy == "retry-once"
    assert bench.backend.history == (["submit", "find", "submit", "find"] if once else ["submit"])
    assert (result.attempts, result.maybe_paid) == ((2, 1) if once else (1, 0))


async def test_hold_covers_an_answered_5xx(tmp_path: Path) -> None:
    """With `hold` even the documented guess is not made."""
    bench = Bench(tmp_path, LedgerView.empty(), policy={"on_unknown": "hold"})
    bench.backend.submits = [error("unavailable", status=503)]
    result = await bench.make()
    assert (result.status, result.error_kind, result.attempts) == ("held", "unknown", 1)


async def test_a_look_that_fails_proves_nothing(bench: Bench) -> None:
    """While the history cannot be read, however late it is, nothing is sent again."""
    bench.backend.submits = [error("unknown")]
    bench.clock.ends_in(20_000)

    def refuse(call: str) -> None:
        if call == "find":
            raise error("unsent")

    bench.backend.watch = refuse
    result = await bench.make()
    assert (result.status, result.attempts) == ("held", 1)
    assert bench.backend.history.count("find") > 10


async def test_nobody_sends_over_a_young_claim(tmp_path: Path) -> None:
    """The claim of a run that is silent, not gone, is left alone for 120 s, by the store's clock."""
    for dead, first in (("silent", 120.0), ("gone", 0.0)):
        bench = Bench(tmp_path / dead, LedgerView.empty(), policy={"history_lag": 0.0})
        bench.dead = dead
        await other_claim(bench, None)
        sent: list[datetime] = []
        start = bench.clock.time
        bench.backend.watch = lambda call, sent=sent, bench=bench: (
            sent.append(bench.clock.time) if call == "submit" else None
        )
        result = await bench.make()
        assert (result.status, result.attempts) == ("generated", 1)
        assert (sent[0] - start).total_seconds() == pytest.approx(first, abs=5)


async def test_a_late_claim_needs_one_look(bench: Bench) -> None:
    """A claim older than the lag is looked up once and then sent again."""
    await other_claim(bench, None)
    bench.clock.time += timedelta(hours=3)
    result = await bench.make()
    assert (result.status, result.attempts) == ("generated", 1)
    assert bench.backend.history == ["find", "submit", "collect"]


async def test_a_sleeper_does_not_send(bench: Bench) -> None:
    """A claim older than 60 s is looked at again before its POST: who was overtaken meanwhile sends nothing."""
    head = bench.store.head

    async def slow_head(path: str) -> Any:
        bench.store.head = head  # type: ignore[method-assign]
        bench.clock.ends_in(500)
        bench.clock.time += timedelta(minutes=5)
        later = Claim("run2", "n2", f"{HEX}-2", bench.clock.now(), {})
        await bench.ledger.claim(REQUEST.key, 2, later)
        return await head(path)

    bench.store.head = slow_head  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, result.error_kind) == ("held", "unknown")
    assert "submit" not in bench.backend.history


async def test_an_id_that_cannot_be_stored_stops_the_run(bench: Bench) -> None:
    """Five tries to store a request_id; then nothing more is sent, and what was paid is still fetched."""
    tries = 0

    async def refuse(key: bytes, n: int, request_id: str) -> None:
        nonlocal tries
        tries += 1
        raise StoreError("store_unreachable", "gone")

    bench.ledger.record_request_id = refuse  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, tries, bench.control.stop_reason) == ("generated", 5, "store")
    later = await bench.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert later.status == "not_run"


async def test_credentials_and_models(bench: Bench) -> None:
    """A refused model fails its own rows only; a refused key ends the run before anything more is sent."""
    bench.backend.submits = [error("model_unavailable")]
    assert (await bench.make()).error_kind == "model_unavailable"
    again = await bench.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert (again.status, again.attempts) == ("failed", 0)
    bench.backend.submits = [error("auth", status=401)]
    other = GenerationRequest("flux-2-klein-4b", {"prompt": "b", "seed": 1})
    assert (await bench.make(other)).status == "not_run"
    assert bench.control.stop_reason == "auth"
    assert (await bench.make(other)).attempts == 0


async def test_an_interruption_leaves_sent_rows_held(bench: Bench) -> None:
    """A signal lets go of what is being fetched: held, with its id in the store."""
    bench.backend.watch = lambda call: bench.control.interrupt("signal", "SIGTERM") if call == "collect" else None
    result = await bench.make()
    assert (result.status, result.error_kind, result.request_id) == ("held", "submitted", "r1")
    assert (bench.folder / layout.claim_id(HEX, 1)).exists()


async def test_slots(tmp_path: Path) -> None:
    """Never more in flight than slots, and a row that waits to try again holds none."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=3)
    bench.backend.submits = [error("unavailable", status=503) for _ in range(10)]
    sleeping, busy = 0, [0]

    async def watched(seconds: float) -> None:
        nonlocal sleeping
        sleeping += 1
        await asyncio.sleep(0.03)
        busy.append(sleeping + bench.executor.slots.used)
        sleeping -= 1

    bench.clock.sleep = watched  # type: ignore[method-assign]
    requests = [GenerationRequest("flux-2-klein-9b", {"prompt": f"p{n}", "seed": n}) for n in range(20)]
    results = await asyncio.gather(*map(bench.make, requests))
    assert {result.status for result in results} == {"generated"}
    assert bench.backend.most_in_flight == 3
    assert max(busy) > 3, "rows that wait must not keep others from running"


async def test_a_cap_is_never_exceeded_and_wholly_used(tmp_path: Path) -> None:
    """Calls are sent while the worst known cost still fits; then the run stops, resumable; nothing is overshot."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=8, budget=Budget(cap=0.41))
    requests = [GenerationRequest("flux-2-klein-9b", {"prompt": f"p{n}", "seed": n}) for n in range(30)]
    results = await asyncio.gather(*map(bench.make, requests))
    made = [result for result in results if result.status == "generated"]
    assert len(made) == 10
    assert {result.status for result in results} == {"generated", "not_run"}
    assert bench.control.stop_reason == "budget"
    assert bench.kit.budget.spent == pytest.approx(0.4)
    assert (bench.kit.budget.reserved, bench.kit.budget.overshoot) == (pytest.approx(0.0), 0.0)


async def test_an_unmeasured_class_goes_two_at_a_time(tmp_path: Path) -> None:
    """Until five costs of a class are measured at most two of it are in flight, then all slots are used."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=8, budget=Budget(cap=100.0))
    seen: list[tuple[int, int]] = []
    bench.backend.watch = lambda _: seen.append((bench.kit.budget.measured.total(), bench.executor.slots.used))
    requests = [GenerationRequest("flux-2-klein-9b", {"prompt": f"p{n}", "seed": n}) for n in range(30)]
    await asyncio.gather(*map(bench.make, requests))
    assert max(used for measured, used in seen if measured < 5) == 2
    assert max(used for _, used in seen) == 8


async def test_unknown_outcomes_stay_reserved(tmp_path: Path) -> None:
    """What may have been billed is not spent again: its price stays reserved, and the run stops at the cap."""
    bench = Bench(tmp_path, LedgerView.empty(), budget=Budget(cap=0.09), policy={"on_unknown": "hold"})
    bench.backend.submits = [error("unknown"), error("unknown")]
    requests = [GenerationRequest("flux-2-klein-9b", {"prompt": f"p{n}", "seed": n}) for n in range(3)]
    results = [await bench.make(request) for request in requests]
    assert [result.status for result in results] == ["held", "held", "not_run"]
    assert bench.kit.budget.reserved == pytest.approx(2 * 0.04019)


async def test_stuck_jobs_give_their_slots_away(tmp_path: Path) -> None:
    """A job far slower than the others is polled without a slot; at the end of the run it is held, with its id."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=1, policy={"straggler_seconds": 0.0})
    for _ in range(40):
        bench.kit.totals.add(0.001)
    collect = bench.backend.collect

    async def stuck(submission: Submission) -> Delivery:
        if submission.request.prompt == "stuck":
            await asyncio.Event().wait()
        return await collect(submission)

    bench.backend.collect = stuck  # type: ignore[method-assign]
    calls_module.STUCK_AT_LEAST_S, before = 0.05, calls_module.STUCK_AT_LEAST_S
    try:
        requests = [GenerationRequest("flux-2-klein-9b", {"prompt": p, "seed": 1}) for p in ("stuck", "a", "b")]
        results = [await bench.executor.make(request, request.key) for request in requests]
    finally:
        calls_module.STUCK_AT_LEAST_S = before
    assert [result.status for result in results] == ["held", "generated", "generated"]
    bench.clock.time += timedelta(minutes=1)
    (late,) = await bench.executor.settle()
    assert (late.status, late.error_kind, late.request_id) == ("held", "submitted", "r1")


async def test_a_hung_submit_is_cut_and_looked_up(tmp_path: Path) -> None:
    """A POST that is not answered in ten times the usual time is an unknown outcome: looked up, not sent again."""
    bench = Bench(tmp_path, LedgerView.empty())
    for _ in range(40):
        bench.kit.submits.add(0.001)

    async def hang(request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        await asyncio.Event().wait()
        raise AssertionError

    bench.backend.submit = hang  # type: ignore[method-assign]
    bench.backend.found = "hidden"
    calls_module.SUBMIT_AT_LEAST_S, before = 0.05, calls_module.SUBMIT_AT_LEAST_S
    try:
        result = await bench.make()
    finally:
        calls_module.SUBMIT_AT_LEAST_S = before
    assert (result.status, result.attempts, result.request_id) == ("generated", 1, "hidden")


async def test_refusals_lower_the_concurrency(tmp_path: Path) -> None:
    """429s lower the number of calls in flight; successes raise it again."""
    bench = Bench(tmp_path, LedgerView.empty(), max_in_flight=16)
    bench.backend.submits = [error("rate_limited", status=429, retry_after=1.0) for _ in range(16)]
    requests = [GenerationRequest("flux-2-klein-9b", {"prompt": f"p{n}", "seed": n}) for n in range(200)]
    lowest = [16]
    bench.backend.watch = lambda _: lowest.append(bench.kit.concurrency.now)
    results = await asyncio.gather(*map(bench.make, requests))
    assert {result.status for result in results} == {"generated"}
    assert (min(lowest) <= 8, bench.kit.concurrency.now) == (True, 16)


@pytest.fixture
def free(tmp_path: Path) -> Bench:
    """A bench whose calls cost nothing, as those of a pool."""
    bench = Bench(tmp_path, LedgerView.empty(), policy={"drain_seconds": 0.0})
    bench.backend.free, bench.backend.queues = True, False
    bench.backend.submits = [None]
    return bench


async def test_a_free_call_leaves_no_claim(free: Bench) -> None:
    """Calls that cost nothing need no claim, no id and no reservation: two requests of the store for an image."""
    store = CountingStore(*fsspec.core.url_to_fs(str(free.folder)), str(free.folder))
    store.counts = Counter()
    counted = Bench(free.folder, LedgerView.empty(), store=store, budget=Budget(0.0))
    counted.backend.free, counted.backend.queues, counted.backend.submits = True, False, [None]
    result = await counted.make()
    assert (result.status, result.paid) == ("generated", 0)
    assert store.counts == {"HEAD images": 1, "PUT images": 1}
    assert not list(free.folder.glob("ledger/claims/*"))


@pytest.mark.parametrize("kind", ["unknown", "submitted", "worker_lost"])
async def test_a_lost_free_call_is_repeated_at_once(free: Bench, kind: str) -> None:
    """Nothing is owed for a call of unknown fate, so nobody looks it up or waits; five times is enough."""
    free.backend.submits = [error(kind, retry_after=0.0), None]
    started = free.clock.monotonic()
    result = await free.make()
    assert (result.status, result.attempts, result.maybe_paid) == ("generated", 2, 0)
    assert free.clock.monotonic() == started
    assert "find" not in free.backend.history
    free.backend.submits = [error(kind) for _ in range(9)]
    result = await free.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert (result.status, result.error_kind, result.attempts) == ("failed", "worker_lost", 5)


async def test_bad_bytes_of_a_worker_are_drawn_again(free: Bench) -> None:
    """What a worker delivers and is no image is asked for again, three times at most."""
    free.backend.submits = [None, None]
    free.backend.collects = [b"<html>"]
    assert (await free.make()).attempts == 2
    free.backend.submits = [None] * 9
    free.backend.collects = [b"<html>"] * 9
    result = await free.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert (result.status, result.error_kind, result.attempts) == ("failed", "worker_failed", 3)


async def test_a_stopped_free_call_is_not_run(free: Bench) -> None:
    """A call that a stop cuts short is as if it had not been sent: nothing is held."""
    free.backend.watch = lambda call: free.control.interrupt("signal", "stop") if call == "submit" else None
    free.backend.submits = [error("unknown")]
    result = await free.make()
    assert (result.status, result.error_kind) == ("not_run", "signal")


async def test_the_loser_of_two_free_runs_keeps_what_is_there(free: Bench) -> None:
    """Two runs may draw the same image; the store keeps the first, and the second records that one."""
    other = png()

    def put(call: str) -> None:
        path = free.folder / layout.image(HEX, REQUEST.extension)
        if call == "collect":
            path.parent.mkdir(parents=True)
            path.write_bytes(other)

    free.backend.watch = put
    result = await free.make()
    assert result.status == "generated"
    assert result.image is not None
    assert result.image.size_bytes == len(other)
