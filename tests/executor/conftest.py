"""An executor with a real store and ledger, a scripted provider, and a clock that tests set."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.ledger.events import Claim, Event, KnownAttempt
from prefect_imagegen.core.ledger.fold import LedgerView
from prefect_imagegen.core.policy.abilities import FREE
from prefect_imagegen.core.policy.adaptive_limit import AdaptiveLimit
from prefect_imagegen.core.policy.budget import Budget
from prefect_imagegen.core.policy.history_lookup import Candidate, Look, Window
from prefect_imagegen.core.request.request import GenerationRequest
from prefect_imagegen.core.results import RequestResult
from prefect_imagegen.executor import Executor, ExecutorContext, Policy
from prefect_imagegen.executor import attempt as calls_module
from prefect_imagegen.executor.control import RunControl
from prefect_imagegen.ports import Balance, Delivery, HistoryRecord, Liveness, ObjectInfo, Ownership, Submission
from prefect_imagegen.providers.limits import RateGate
from prefect_imagegen.providers.segmind.provider import ABILITIES
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.object_store import FsspecObjectStore, open_object_store
from tests.adversary.transitions import watched
from tests.support.builders.images import png
from tests.support.builders.ledger import event_of
from tests.support.builders.requests import request_for

REQUEST = request_for()
HEX = REQUEST.key.hex()


class FakeClock:
    """A clock that only `sleep` moves. It stops at `horizon`: a sleep that would end later never returns."""

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


class FakeProvider:
    """A provider that takes its answers from the lists that tests fill, and notes every call."""

    name, endpoint, abilities = "segmind", "http://fake", ABILITIES

    def __init__(self) -> None:
        self.submits: list[Any] = []
        self.collects: list[Any] = []
        self.uploads: dict[str, tuple[bytes, str]] = {}
        self.not_understood: Counter[str] = Counter()
        self.listed_id: str | None = None
        self.look: Look | None = None
        self.claimed: list[Mapping[str, Any]] = []
        self.windows: list[Window] = []
        self.sent: list[tuple[str, ...]] = []
        self.history: list[str] = []
        self.watch: Callable[[str], None] = lambda _: None
        self.in_flight = self.most_in_flight = 0

    @property
    def account(self) -> "FakeProvider":
        return self

    async def check(self) -> Balance:
        return Balance(None)

    async def upload(self, data: bytes, media_type: str) -> str:
        self._note("upload")
        url = f"{self.endpoint}/uploads/{len(self.uploads)}"
        self.uploads[url] = (data, media_type)
        return url

    async def has_upload(self, url: str) -> bool:
        return url in self.uploads

    async def submit(
        self, request: GenerationRequest, image_urls: Sequence[str], *, idempotency_key: str | None = None
    ) -> Submission:
        self._note("submit")
        self.sent.append(tuple(image_urls))
        step = self.submits.pop(0) if self.submits else "r1"
        if isinstance(step, ProviderError):
            raise step
        return Submission(request, step)

    async def collect(self, submission: Submission) -> Delivery:
        self._note("collect")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.02)
        self.in_flight -= 1
        step = self.collects.pop(0) if self.collects else png()
        if isinstance(step, ProviderError):
            raise step
        return Delivery(step, "image/png", request_id=submission.request_id, cost_usd=0.04, http_status=200)

    def now(self) -> datetime | None:
        return None

    async def find(self, model: str, claimed: Mapping[str, Any], window: Window) -> Look:
        self._note("find")
        self.claimed.append(claimed)
        self.windows.append(window)
        if self.look is not None:
            return self.look
        return Look((Candidate(self.listed_id, "same", "COMPLETED"),) if self.listed_id else ())

    async def record(self, request_id: str) -> HistoryRecord | None:
        return HistoryRecord(request_id, REQUEST.model, "COMPLETED", cost_usd=0.07)

    async def aclose(self) -> None:
        pass

    def _note(self, call: str) -> None:
        self.history.append(call)
        self.watch(call)


class FakeReferences:
    """The references' own addresses, with `?fresh` after a forced upload; an error in `steps` is raised first."""

    inline = False

    def __init__(self) -> None:
        self.steps: list[Exception] = []

    async def addresses(self, request: GenerationRequest, *, force_upload: bool) -> Sequence[str]:
        if self.steps:
            raise self.steps.pop(0)
        return [f"{reference.uri}{'?fresh' if force_upload else ''}" for reference in request.references]


class FakeAccounts:
    """Says whose an attempt is by the fingerprint of its claim; `shown` is whether the history shows its calls."""

    name = "a1"

    def __init__(
        self, fingerprint: str = "k1", *, linked: Collection[str] = (), shown: bool = True, forgets: bool = False
    ) -> None:
        self.fingerprint, self.linked, self.shown, self.forgets = fingerprint, linked, shown, forgets

    async def ownership(self, attempt: KnownAttempt) -> Ownership:
        sender = attempt.record.claim.fingerprint if attempt.record else None
        return "same" if sender in (None, self.fingerprint) else "linked" if sender in self.linked else "other"

    def shows(self, attempt: KnownAttempt, request_ids: Collection[str]) -> bool:
        return self.shown


class Bench:
    """An executor over a store in a folder, with its ledger, clock, run control and scripted provider."""

    def __init__(self, folder: Path, view: LedgerView, *, nonce: str = "n1", run_id: str = "run1", **more: Any) -> None:
        self.clock = FakeClock()
        self.folder = folder
        self.provider = FakeProvider()
        self.store: FsspecObjectStore = more.get("store") or open_object_store(str(folder))
        self.alive: set[str] = set()
        self.beat_age = 0.0
        self.dead: Liveness = "dead"
        self.store_ahead = datetime.now(UTC) - self.clock.time
        self.control = RunControl(self.clock, deadline=600.0, max_failure_rate=1.0)
        self.ledger = StoreLedger(self.store, view, run_id=run_id, nonce=nonce, clock=self.clock)
        self.references = FakeReferences()
        self.context = ExecutorContext(
            provider=self.provider,
            references=self.references,
            accounts=more.get("accounts") or FakeAccounts(),
            store=self.store,
            ledger=self.ledger,
            limiter=RateGate(None, self.clock.monotonic, self.control.sleep),
            control=self.control,
            policy=Policy(run_id, nonce, **more.get("policy", {})),
            clock=self.clock,
            run_liveness=self,
            jitter=lambda: 1.0,
            run_decode=self._decode,
            concurrency=AdaptiveLimit(more.get("max_in_flight", 4)),
            budget=more.get("budget") or Budget(),
        )
        self.executor = Executor(self.context)

    async def make(self, request: GenerationRequest = REQUEST) -> RequestResult:
        """The result of a request, after it was deferred too."""
        result = await self.executor.make(request, request.key)
        late = {deferred.key: deferred for deferred in await self.executor.finish_deferred()}
        return late.get(request.key, result)

    async def liveness_of(self, owner: str) -> Liveness:
        return "alive" if owner.split("/")[1] in self.alive else self.dead

    def since_beat(self) -> float:
        return self.beat_age

    def store_now(self) -> datetime:
        return self.clock.now() + self.store_ahead

    @staticmethod
    async def _decode(function: Callable[[bytes], Any], data: bytes) -> Any:
        return function(data)


@pytest.fixture(autouse=True)
def only_drawn_transitions() -> Iterator[None]:
    """Fail a test whose requests change state in a way that docs/design/executor.md does not show."""
    with watched() as watch:
        yield
    assert watch.undrawn == []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, LedgerView.empty())


def error(kind: str, **more: Any) -> ProviderError:
    return ProviderError(kind, "as told", **more)


class CountingStore(FsspecObjectStore):
    """Counts its requests by method; PUTs and HEADs also by top-level folder."""

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


async def other_claim(bench: Bench, request_id: str | None) -> None:
    claim = Claim("run0", "n0", f"{HEX}-1", bench.clock.now(), {})
    assert await bench.ledger.claim(REQUEST.key, 1, claim)
    if request_id:
        await bench.ledger.record_request_id(REQUEST.key, 1, request_id)


class Hanging:
    """Holds the POSTs of a bench until a test answers them; `six` is set when six are open."""

    def __init__(self, bench: Bench) -> None:
        self.answers: list[asyncio.Future[str]] = []
        self.six = asyncio.Event()
        bench.provider.submit = self.submit  # type: ignore[method-assign]

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        if len(self.answers) == 6:
            self.six.set()
        return Submission(request, await answer)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "STUCK_AT_LEAST_S", 0.05)


@pytest.fixture
def free(tmp_path: Path) -> Bench:
    """A bench whose calls cost nothing, as those of a pool."""
    bench = Bench(tmp_path, LedgerView.empty(), policy={"drain_seconds": 0.0})
    bench.provider.abilities = FREE
    bench.provider.submits = [None]
    return bench


def event(kind: str, n: int, **more: Any) -> Event:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    return event_of(kind, REQUEST.key, f"{HEX}-{n}", time=now, **{"run_id": "run0"} | more)


def claim_of(fingerprint: str | None, **more: Any) -> Claim:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    return Claim("run0", "n0", f"{HEX}-1", now, {"prompt": "a cup"}, fingerprint, fingerprint, **more)
