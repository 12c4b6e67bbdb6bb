"""The executor with a real store and ledger, a scripted backend, and a clock that tests set."""

import asyncio
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefect_imagegen.control import RunControl
from prefect_imagegen.core import layout
from prefect_imagegen.core.errors import BackendError, StoreError
from prefect_imagegen.core.events import Claim
from prefect_imagegen.core.ledger import LedgerView
from prefect_imagegen.core.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor import Executor, Policy
from prefect_imagegen.io.ledger import StoreLedger, load_ledger
from prefect_imagegen.io.limits import RateGate
from prefect_imagegen.io.object_store import FsspecObjectStore, open_object_store
from prefect_imagegen.ports import Balance, Delivery, Submission

pytestmark = pytest.mark.anyio
REQUEST = GenerationRequest("flux-2-klein-9b", {"prompt": "a cup", "seed": 7})
HEX = REQUEST.key.hex()


def png() -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(sink, "PNG")
    return sink.getvalue()


class FakeClock:
    """Time passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        await asyncio.sleep(0)


class FakeBackend:
    """A backend that does what was enqueued, and remembers what it was asked for."""

    name, endpoint, ambiguous_5xx = "segmind", "http://fake", True

    def __init__(self) -> None:
        self.submits: list[Any] = []
        self.collects: list[Any] = []
        self.found: Submission | None = None
        self.history: list[str] = []
        self.watch: Callable[[str], None] = lambda _: None
        self.in_flight = self.most_in_flight = 0

    async def check(self) -> Balance:
        return Balance(None)

    async def submit(self, request: GenerationRequest) -> Submission:
        self._note("submit")
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

    async def find(self, request: GenerationRequest, since: datetime, known_ids: frozenset[str]) -> Submission | None:
        self._note("find")
        return self.found

    async def aclose(self) -> None:
        pass

    def _note(self, call: str) -> None:
        self.history.append(call)
        self.watch(call)


class Bench:
    """One executor over one store."""

    def __init__(self, folder: Path, view: LedgerView, *, nonce: str = "n1", run_id: str = "run1", **more: Any) -> None:
        self.clock = FakeClock()
        self.folder = folder
        self.backend = FakeBackend()
        self.store: FsspecObjectStore = more.get("store") or open_object_store(str(folder))
        self.alive: set[str] = set()
        self.control = RunControl(self.clock, deadline=600.0, max_failure_rate=1.0)
        self.ledger = StoreLedger(self.store, view, run_id=run_id, nonce=nonce, clock=self.clock)
        self.executor = Executor(
            backend=self.backend,
            store=self.store,
            ledger=self.ledger,
            limiter=RateGate(None, self.clock.monotonic, self.control.sleep),
            max_in_flight=more.get("max_in_flight", 4),
            control=self.control,
            policy=Policy(run_id, nonce),
            clock=self.clock,
            draw=lambda: 1.0,
            is_alive=self._is_alive,
            decoder=self._decode,
        )

    async def make(self, request: GenerationRequest = REQUEST) -> RequestResult:
        return await self.executor.make(request, request.key)

    async def _is_alive(self, run_id: str) -> bool:
        return run_id in self.alive

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
    bench.backend.found = Submission(REQUEST, "hidden")
    result = await bench.make()
    assert (result.status, result.attempts, result.maybe_paid, result.request_id) == ("generated", 1, 0, "hidden")


@pytest.mark.parametrize(
    ("kind", "posts", "ends"),
    [
        ("unavailable", 5, "failed"),
        ("server_error", 3, "failed"),
        ("invalid_request", 1, "failed"),
        ("unknown", 1, "held"),
    ],
)
async def test_how_often_a_row_is_sent(bench: Bench, kind: str, posts: int, ends: str) -> None:
    """502 to 504 are sent five times, 500 three times, permanent and unknown ones once."""
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
    """Bytes that are no image are fetched three times; then the row fails for good, after one POST."""
    bench.backend.collects = [b"<html>", png()[:100]]
    assert (await bench.make()).status == "generated"
    assert bench.backend.history == ["submit", "collect", "collect", "collect"]
    bench.backend.collects = [b"", b"", b"", b""]
    result = await bench.make(GenerationRequest("flux-2-klein-9b", {"prompt": "b", "seed": 1}))
    assert (result.status, result.error_kind, result.attempts) == ("failed", "bad_output", 1)


async def test_an_image_without_a_ledger_entry_is_adopted(bench: Bench) -> None:
    """After winning a claim the store is asked first: an image that is there costs no call."""
    await bench.store.create(layout.image(HEX, "bin"), b"not read")
    await bench.store.create(layout.image(HEX, REQUEST.extension), png())
    result = await bench.make()
    assert (result.status, result.attempts, result.cost_usd) == ("generated", 0, None)
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
    assert (await bench.make()).error_kind == "other_run"
    bench.alive = set()
    held = await bench.make()
    assert (held.status, held.error_kind) == ("held", "unknown")
    await bench.ledger.record_request_id(REQUEST.key, 1, "theirs")
    result = await bench.make()
    assert (result.status, result.request_id, result.attempts) == ("generated", "theirs", 0)
    assert bench.backend.history == ["collect"]


async def test_a_sleeper_does_not_send(bench: Bench) -> None:
    """A claim older than 60 s is looked at again before its POST: who was overtaken meanwhile sends nothing."""
    head = bench.store.head

    async def slow_head(path: str) -> Any:
        bench.clock.time += timedelta(minutes=5)
        later = Claim("run2", "n2", f"{HEX}-2", bench.clock.now(), {})
        await bench.ledger.claim(REQUEST.key, 2, later)
        return await head(path)

    bench.store.head = slow_head  # type: ignore[method-assign]
    result = await bench.make()
    assert (result.status, result.error_kind) == ("held", "other_run")
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
        busy.append(sleeping + bench.executor.in_flight)
        sleeping -= 1

    bench.clock.sleep = watched  # type: ignore[method-assign]
    requests = [GenerationRequest("flux-2-klein-9b", {"prompt": f"p{n}", "seed": n}) for n in range(20)]
    results = await asyncio.gather(*map(bench.make, requests))
    assert {result.status for result in results} == {"generated"}
    assert bench.backend.most_in_flight == 3
    assert max(busy) > 3, "rows that wait must not keep others from running"
