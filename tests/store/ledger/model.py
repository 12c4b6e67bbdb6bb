"""Runs that ask, write, die, compact and read in any order; and a model in plain Python of what they must find."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from prefect_imagegen.core import layout
from prefect_imagegen.core.ledger.events import RANK, RETRY_ASKED, RETRY_ASKED_RANK, Claim, Event, ImageFacts
from prefect_imagegen.core.ledger.fold import KEY_TYPE, LedgerView
from prefect_imagegen.store.ledger import compaction
from prefect_imagegen.store.ledger.compaction import compact
from prefect_imagegen.store.ledger.ledger import StoreLedger
from prefect_imagegen.store.ledger.reading import event_tables, load_ledger

T = TypeVar("T")
KEYS = [bytes([n]) * 16 for n in (0, 7, 128, 255)]
RANKS = RANK | {RETRY_ASKED: RETRY_ASKED_RANK}
TIME = datetime(2026, 8, 1, tzinfo=UTC)
Step = tuple[str, bytes, str]
"""Type, key and attempt of an event."""


class Clock:
    """A machine's clock that stands still; its ticks make names unique."""

    def now(self) -> datetime:
        return TIME

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        """Nobody waits here."""


class CompactorDiedError(BaseException):
    """kill -9, as far as a test within the process can tell it."""


@dataclass
class Run:
    """One process: what it works on, and what it recorded and has not flushed yet."""

    ledger: StoreLedger
    knew: set[bytes]
    """The keys that ever had an image, when it read the ledger."""
    open: set[tuple[bytes, int]] = field(default_factory=set)
    next: dict[bytes, int] = field(default_factory=dict)
    """The number to go on with, of the keys whose attempt it ended itself."""
    buffered: list[Step] = field(default_factory=list)
    durable: list[Step] = field(default_factory=list)
    """What was durable when it read the ledger."""
    recorded: list[Step] = field(default_factory=list)


@dataclass
class Reader:
    """A reader in the middle of its work: what was durable when it began, and what it has seen since."""

    tables: AsyncIterator[pa.Table]
    durable: set[Step]
    steps: set[Step]


class LedgerModel(RuleBasedStateMachine):
    """Runs claim keys and record what becomes of them; the model knows which events reached the store."""

    runs = Bundle("runs")
    readers = Bundle("readers")
    store_class: type = object

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = self.store_class()
        self.durable: list[Step] = []
        self.used: set[tuple[bytes, int]] = set()
        self.born = 0

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    # Runs

    @initialize(target=runs)
    def first_run(self) -> Run:
        return self.begin()

    @rule(target=runs)
    def begin(self) -> Run:
        """A process starts and reads the ledger."""
        self.born += 1
        view = self.wait(load_ledger(self.store))
        ledger = StoreLedger(self.store, view, run_id="run", nonce=f"n{self.born}", clock=Clock())
        return Run(ledger, self.ever_delivered(), durable=list(self.durable))

    @rule(run=runs, key=st.sampled_from(KEYS))
    def ask(self, run: Run, key: bytes) -> None:
        """The way to a claim: never for a delivered key, always with a number of its own, also after compactions."""
        ledger = run.ledger
        known = ledger.view.states(pa.array([key], KEY_TYPE)).to_pylist()
        if known == ["delivered"] or any(open_key == key for open_key, _ in run.open):
            return
        n = run.next.get(key) or ledger.next_attempt(key)
        while not self.wait(ledger.claim(key, n, Claim("run", ledger._nonce, f"{key.hex()}-{n}", TIME, {}))):
            last = self.wait(ledger.claims(key))[-1]
            if not ledger.is_closed(last.claim.attempt_id):
                return
            n = last.claim_no + 1
        if key in self.ever_delivered() - run.knew:
            return  # it read the ledger long ago, wins what was removed since, and finds the image
        assert (key, n) not in self.used
        self.used.add((key, n))
        run.open.add((key, n))
        self.record(run, "claimed", key, n)

    @rule(run=runs, data=st.data(), kind=st.sampled_from(["submitted", "delivered", "failed"]))
    def goes_on(self, run: Run, data: st.DataObject, kind: str) -> None:
        """An attempt of the run comes to something."""
        if run.open:
            key, n = data.draw(st.sampled_from(sorted(run.open)))
            if kind != "submitted":
                run.open.remove((key, n))
                run.next[key] = n + 1
            self.record(run, kind, key, n)

    @rule(run=runs, data=st.data())
    def quarantine(self, run: Run, data: st.DataObject) -> None:
        """Somebody finds that an image is bad, long after or before anybody knows of it."""
        if self.used:
            self.record(run, "quarantined", *data.draw(st.sampled_from(sorted(self.used))))

    @rule(run=runs, data=st.data())
    def resend(self, run: Run, data: st.DataObject) -> None:
        """A person gives a key free, whatever its attempt has come to."""
        if self.used:
            self.record(run, RETRY_ASKED, *data.draw(st.sampled_from(sorted(self.used))))

    @rule(run=runs, key=st.sampled_from(KEYS))
    def known(self, run: Run, key: bytes) -> None:
        """What is known of an attempt holds all that was durable when the run began, and all that it recorded."""
        known = {attempt.claim_no: attempt for attempt in self.wait(run.ledger.known(key))}
        for kind, its_key, attempt in [*run.durable, *run.recorded]:
            n = attempt.split("-")[1]
            if its_key == key and n.isdigit():
                assert known[int(n)].rank >= RANKS[kind]
        for its_key, n in self.used:
            if its_key == key and layout.claim(key.hex(), n) in self.store.objects:
                assert known[n].record is not None

    @rule(run=runs, key=st.sampled_from(KEYS), odd=st.sampled_from(["x", "y"]), kind=st.sampled_from(list(RANK)))
    def oddity(self, run: Run, key: bytes, odd: str, kind: str) -> None:
        """An attempt with a name of another kind is an attempt too."""
        self.record(run, kind, key, odd)

    def record(self, run: Run, kind: str, key: bytes, n: object) -> None:
        attempt = f"{key.hex()}-{n}"
        image = ImageFacts(f"images/{attempt}.png", 1, 1, "png", 5, "ab" * 32) if kind == "delivered" else None
        asked = kind == RETRY_ASKED
        kind_told = "failed" if asked else kind
        self.wait(
            run.ledger.record(
                Event(kind_told, key, attempt, "run", TIME, image=image, error_kind=RETRY_ASKED if asked else None)
            )
        )
        run.buffered.append((kind, key, attempt))
        run.recorded.append((kind, key, attempt))

    @rule(run=runs)
    def flush(self, run: Run) -> None:
        """What was recorded becomes durable."""
        self.wait(run.ledger.flush())
        self.durable += run.buffered
        run.buffered = []

    @rule(run=consumes(runs))
    def die(self, run: Run) -> None:
        """A process dies with what it had not flushed."""

    # Compaction

    @rule(more_than=st.integers(0, 3), rows=st.sampled_from([2, 50_000]))
    def compact(self, more_than: int, rows: int) -> None:
        """Somebody compacts, into one file or many."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(compaction, "_FILE_ROWS", rows)
            patched.setattr(compaction, "_RUN_ROWS", rows)
            patched.setattr(compaction, "_FAN_OUT", 2 if rows == 2 else 64)
            self.wait(compact(self.store, Clock(), more_than=more_than))

    @rule()
    def compactor_dies(self) -> None:
        """A compactor dies when its files are written and its manifest is not."""

        def die(point: str) -> None:
            raise CompactorDiedError(point)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(compaction, "hit", die)
            with suppress(CompactorDiedError):
                self.wait(compact(self.store, Clock(), more_than=0))

    @rule(pauses=st.lists(st.integers(0, 3), min_size=1, max_size=8), run=runs)
    def compactors_race(self, pauses: list[int], run: Run) -> None:
        """Two compactors at once, while a run flushes: one of them wins at most."""
        calls = 0

        async def interleave(call: str, path: str) -> None:
            nonlocal calls
            calls += 1
            for _ in range(pauses[calls % len(pauses)]):
                await asyncio.sleep(0)

        async def race() -> list[Any]:
            both = (compact(self.store, Clock(), more_than=0) for _ in range(2))
            return await asyncio.gather(*both, run.ledger.flush())

        before = len(self.generations())
        with self.between_calls(interleave):
            first, second, _ = self.wait(race())
        self.durable += run.buffered
        run.buffered = []
        assert len(self.generations() - {0}) <= before + first + second
        # Both may win one after the other, where the flush gave the second one something to absorb.

    def generations(self) -> set[int]:
        return {
            int(path.removeprefix("ledger/generations/").removesuffix(".json"))
            for path in self.store.objects
            if path.startswith("ledger/generations/") and path.endswith(".json")
        }

    @contextmanager
    def between_calls(self, act: Any) -> Any:
        allowed = self.store.before
        self.store.before = act
        yield
        self.store.before = allowed

    @rule(hours=st.sampled_from([1, 12, 25]))
    def time_passes(self, hours: int) -> None:
        self.store.later(hours)

    # Readers

    @rule(target=readers)
    def start_reading(self) -> Any:
        """A reader lists the ledger, reads a little and is put to sleep."""
        reader = Reader(event_tables(self.store), set(self.durable), set())
        return reader if self.read_on(reader) else multiple()

    @rule(reader=consumes(readers))
    def finish_reading(self, reader: Reader) -> None:
        """A reader sees every event that was durable when it began, whatever was compacted and deleted meanwhile."""
        while self.read_on(reader):
            pass
        assert reader.durable <= reader.steps <= set(self.durable)

    def read_on(self, reader: Reader) -> bool:
        table = self.wait(anext(reader.tables, None))
        if table is not None:
            reader.steps |= steps_of(table)
        return table is not None

    # What always holds

    def ever_delivered(self) -> set[bytes]:
        return {key for kind, key, _ in self.durable if kind == "delivered"}

    def model_state(self, key: bytes) -> str | None:
        """The rule, in words: rank inside an attempt; then delivered, else what the highest number says.

        An attempt without a number is below none.
        """
        ranks: dict[str, int] = {}
        for kind, its_key, attempt in self.durable:
            if its_key == key:
                n = attempt.split("-")[1]
                ranks[n] = max(ranks.get(n, 0), RANKS[kind])
        numbers = sorted(int(n) for n in ranks if n.isdigit())
        deciding = [ranks[n] for n in ranks if not n.isdigit()] + [ranks[str(n)] for n in numbers[-1:]]
        if RANK["delivered"] in ranks.values():
            return "delivered"
        if any(rank <= RANK["submitted"] for rank in deciding):
            return "open"
        return "failed" if ranks else None

    @invariant()
    def every_durable_event_is_there_once(self) -> None:
        tables = self.wait(collect(event_tables(self.store)))
        counts = Counter(step for table in tables for step in rows_of(table))
        assert counts == Counter(self.durable)

    @invariant()
    def the_fold_is_the_model(self) -> None:
        view: LedgerView = self.wait(load_ledger(self.store))
        keys = pa.array(KEYS, KEY_TYPE)
        assert view.states(keys).to_pylist() == [self.model_state(key) for key in KEYS]
        ended = {attempt for kind, _, attempt in self.durable if RANKS[kind] >= RANK["failed"]}
        assert {attempt for _, _, attempt in self.durable if (view.rank_of(attempt) >= RANK["failed"])} == ended
        assert set(view.facts(keys)) == {key for key in KEYS if self.model_state(key) == "delivered"}

    @invariant()
    def claims_that_matter_are_there(self) -> None:
        """A key that is not delivered has all its claims."""
        for key, n in self.used:
            if self.model_state(key) != "delivered":
                assert layout.claim(key.hex(), n) in self.store.objects


async def collect(tables: AsyncIterator[pa.Table]) -> list[pa.Table]:
    return [table async for table in tables]


def rows_of(table: pa.Table) -> list[Step]:
    return [
        (RETRY_ASKED if row["error_kind"] == RETRY_ASKED else row["type"], row["key"], row["attempt_id"])
        for row in table.to_pylist()
    ]


def steps_of(table: pa.Table) -> set[Step]:
    return set(rows_of(table))
